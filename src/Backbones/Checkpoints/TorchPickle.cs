using System.Buffers.Binary;
using System.Text;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Checkpoints;

/// <summary>Reads the pickle of a state dictionary: the opcodes and classes that torch.save uses for one, and no other.</summary>
/// <remarks>
/// A pickle is a program for a stack machine that can call any function of Python. This one has no functions to call: the
/// two that rebuild a tensor make a record of its place, and any other name or opcode ends the load with an error.
/// </remarks>
internal sealed class TorchPickle
{
    public sealed record Storage(string Key, ScalarType Type, long Count);

    public sealed record TensorView(Storage Storage, long Offset, long[] Shape, long[] Strides);

    /// <summary>A dictionary, in the order of the file; a key may be anything and may be there twice.</summary>
    public sealed class Dictionary
    {
        public readonly List<(object Key, object Value)> Items = [];
    }

    private enum Function { OrderedDict, RebuildTensor, RebuildParameter }

    private sealed class List;

    private sealed class Mark { public static readonly Mark Instance = new(); }

    private sealed class None { public static readonly None Instance = new(); }

    private const int MaxStack = 100_000, MaxMemo = 4_000_000, MaxName = 200;

    private static readonly UTF8Encoding Utf8 = new(encoderShouldEmitUTF8Identifier: false, throwOnInvalidBytes: true);

    // What the unpickler of Python calls find_class: every name that a file may use.
    private static readonly Dictionary<string, object> Globals = new()
    {
        ["collections OrderedDict"] = Function.OrderedDict,
        ["torch._utils _rebuild_tensor_v2"] = Function.RebuildTensor,
        ["torch._utils _rebuild_parameter"] = Function.RebuildParameter,
        ["torch DoubleStorage"] = ScalarType.Float64, ["torch FloatStorage"] = ScalarType.Float32,
        ["torch HalfStorage"] = ScalarType.Float16, ["torch BFloat16Storage"] = ScalarType.BFloat16,
        ["torch LongStorage"] = ScalarType.Int64, ["torch IntStorage"] = ScalarType.Int32,
        ["torch ShortStorage"] = ScalarType.Int16, ["torch CharStorage"] = ScalarType.Int8,
        ["torch ByteStorage"] = ScalarType.Byte, ["torch BoolStorage"] = ScalarType.Bool,
    };

    // Names for messages: opcodes that a pickle may have and a state dictionary has not.
    private static readonly Dictionary<byte, string> OtherOpcodes = new()
    {
        [(byte)'i'] = "INST", [(byte)'o'] = "OBJ", [0x81] = "NEWOBJ", [0x92] = "NEWOBJ_EX", [(byte)'P'] = "PERSID",
        [0x82] = "EXT1", [0x83] = "EXT2", [0x84] = "EXT4", [(byte)'0'] = "POP", [(byte)'1'] = "POP_MARK", [(byte)'2'] = "DUP",
        [(byte)'I'] = "INT", [(byte)'L'] = "LONG", [0x8b] = "LONG4", [(byte)'F'] = "FLOAT", [(byte)'S'] = "STRING",
        [(byte)'T'] = "BINSTRING", [(byte)'U'] = "SHORT_BINSTRING", [(byte)'V'] = "UNICODE", [0x8d] = "BINUNICODE8",
        [(byte)'B'] = "BINBYTES", [(byte)'C'] = "SHORT_BINBYTES", [0x8e] = "BINBYTES8", [0x96] = "BYTEARRAY8",
        [(byte)'l'] = "LIST", [(byte)'d'] = "DICT", [(byte)'p'] = "PUT", [(byte)'g'] = "GET", [0x8f] = "EMPTY_SET",
        [0x90] = "ADDITEMS", [0x91] = "FROZENSET", [0x97] = "NEXT_BUFFER", [0x98] = "READONLY_BUFFER",
    };

    private readonly byte[] _code;
    private readonly string _file;
    private readonly List<object> _stack = [];
    private readonly Dictionary<uint, object> _memo = [];
    private int _at;
    private int _opcodeAt;

    private TorchPickle(byte[] code, string file) => (_code, _file) = (code, file);

    /// <summary>What the pickle builds, if that is a dictionary.</summary>
    /// <param name="code">The pickle.</param>
    /// <param name="file">The file's name, for errors.</param>
    public static Dictionary Read(byte[] code, string file)
    {
        var pickle = new TorchPickle(code, file);
        return pickle.Run() as Dictionary ?? throw pickle.Bad("the pickle holds something other than a dictionary of tensors");
    }

    private object Run()
    {
        while (true)
        {
            _opcodeAt = _at;
            var opcode = Byte();
            switch (opcode)
            {
                case 0x80: // PROTO
                    if (Byte() is < 2 or > 5) throw Bad($"protocol {_code[_at - 1]}, expected 2 to 5");
                    break;
                case 0x95: Take(8); break; // FRAME: only a hint for reading ahead
                case (byte)'.':
                    if (_stack.Count != 1) throw Bad($"the program ends with {_stack.Count} values, expected one");
                    return _stack[0];

                case (byte)'N': Push(None.Instance); break;
                case 0x88: Push(true); break;
                case 0x89: Push(false); break;
                case (byte)'K': Push((long)Byte()); break;
                case (byte)'M': Push((long)BinaryPrimitives.ReadUInt16LittleEndian(Take(2))); break;
                case (byte)'J': Push((long)BinaryPrimitives.ReadInt32LittleEndian(Take(4))); break;
                case 0x8a: Push(Long1()); break;
                case (byte)'G': Push(BinaryPrimitives.ReadDoubleBigEndian(Take(8))); break;
                case (byte)'X': Push(Text(BinaryPrimitives.ReadUInt32LittleEndian(Take(4)))); break;
                case 0x8c: Push(Text(Byte())); break;

                case (byte)'(': Push(Mark.Instance); break;
                case (byte)')': Push(Array.Empty<object>()); break;
                case (byte)'t': Push(PopToMark()); break;
                case 0x85: Push(Pop(1)); break;
                case 0x86: Push(Pop(2)); break;
                case 0x87: Push(Pop(3)); break;
                case (byte)'}': Push(new Dictionary()); break;
                case (byte)']': Push(new List()); break;
                case (byte)'s': SetItems(Pop(2)); break;
                case (byte)'u': SetItems(PopToMark()); break;
                case (byte)'a': Pop(1); Peek<List>("a list"); break; // lists stand only in what is not read
                case (byte)'e': PopToMark(); Peek<List>("a list"); break;

                case (byte)'q': Memoize(Byte()); break;
                case (byte)'r': Memoize(BinaryPrimitives.ReadUInt32LittleEndian(Take(4))); break;
                case 0x94: Memoize((uint)_memo.Count); break;
                case (byte)'h': Push(Remembered(Byte())); break;
                case (byte)'j': Push(Remembered(BinaryPrimitives.ReadUInt32LittleEndian(Take(4)))); break;

                case (byte)'c': Push(Global(Line(), Line())); break;
                case 0x93: Push(StackGlobal(Pop(2))); break;
                case (byte)'Q': Push(ReadStorage(Pop(1)[0])); break;
                case (byte)'R': Push(Call(Pop(2))); break;
                case (byte)'b': // a state dictionary's _metadata, which holds version numbers of layers
                    Pop(1);
                    Peek<Dictionary>("an OrderedDict");
                    break;

                default:
                    throw Bad($"opcode 0x{opcode:x2} ({OtherOpcodes.GetValueOrDefault(opcode, "unknown")}) is not one that state dictionaries use");
            }
        }
    }

    private object Call(object[] functionAndArguments)
    {
        if (functionAndArguments is not [Function function, object[] arguments]) throw Bad("REDUCE calls something that is no function");
        switch (function)
        {
            case Function.OrderedDict when arguments.Length == 0:
                return new Dictionary();
            case Function.RebuildParameter when arguments is [TensorView tensor, bool, _]:
                return tensor;
            // storage, offset, size, stride, requires_grad, hooks, and in newer files metadata
            case Function.RebuildTensor when arguments is [Storage storage, long offset, object[] size, object[] stride, bool, _, ..] and { Length: 6 or 7 }:
                return new TensorView(storage, offset, Numbers(size), Numbers(stride));
            default:
                throw Bad($"{function} is called with other arguments than torch.save gives it");
        }
    }

    private Storage ReadStorage(object id)
    {
        if (id is not object[] parts || parts is not ["storage", ScalarType type, string key, string, long count])
            throw Bad("a persistent id other than ('storage', type, key, location, count)");
        return new Storage(key, type, count);
    }

    private object Global(string module, string name)
        => Globals.TryGetValue($"{module} {name}", out var known) ? known
            : throw Bad($"the class or function {CheckpointException.Quote($"{module}.{name}")} is not one that state dictionaries use; nothing was run. {TorchArchive.SaveAgain}");

    private object StackGlobal(object[] names)
        => names is [string module, string name] ? Global(module, name) : throw Bad("STACK_GLOBAL without two names");

    private long[] Numbers(object[] items)
    {
        if (items.Length > ElementTypes.MaxRank) throw Bad($"a tensor of {items.Length} dimensions; at most {ElementTypes.MaxRank} are accepted");
        var numbers = new long[items.Length];
        for (var i = 0; i < items.Length; i++) numbers[i] = items[i] is long n ? n : throw Bad("a size or stride that is no integer");
        return numbers;
    }

    private void SetItems(object[] items)
    {
        if (items.Length % 2 != 0) throw Bad("a key without a value");
        var target = Peek<Dictionary>("a dictionary").Items;
        for (var i = 0; i < items.Length; i += 2) target.Add((items[i], items[i + 1]));
    }

    private void Memoize(uint index)
    {
        if (_memo.Count >= MaxMemo) throw Bad($"more than {MaxMemo} remembered values");
        _memo[index] = Peek<object>("a value");
    }

    private object Remembered(uint index) => _memo.TryGetValue(index, out var value) ? value : throw Bad($"value {index} was never remembered");

    private long Long1()
    {
        var bytes = Take(Byte());
        if (bytes.Length > 8) throw Bad($"an integer of {bytes.Length} bytes");
        long value = bytes.Length > 0 && (bytes[^1] & 0x80) != 0 ? -1 : 0;
        for (var i = bytes.Length - 1; i >= 0; i--) value = value << 8 | bytes[i];
        return value;
    }

    private string Text(uint length)
    {
        if (length > _code.Length) throw Bad($"text of {length} bytes, beyond the end");
        try
        {
            return Utf8.GetString(Take((int)length));
        }
        catch (ArgumentException)
        {
            throw Bad("text that is not UTF-8");
        }
    }

    private string Line()
    {
        var length = _code.AsSpan(_at, Math.Min(_code.Length - _at, MaxName + 1)).IndexOf((byte)'\n');
        if (length < 0) throw Bad($"a name of a class that does not end within {MaxName} bytes");
        var line = Text((uint)length);
        _at++;
        return line;
    }

    private byte Byte() => Take(1)[0];

    private ReadOnlySpan<byte> Take(int count)
    {
        if (count > _code.Length - _at) throw Bad("the pickle ends in the middle");
        _at += count;
        return _code.AsSpan(_at - count, count);
    }

    private void Push(object value)
    {
        if (_stack.Count >= MaxStack) throw Bad($"more than {MaxStack} values on the stack");
        _stack.Add(value);
    }

    private T Peek<T>(string expected) where T : class
        => _stack.Count > 0 && _stack[^1] is T value and not Mark ? value : throw Bad($"expected {expected} on the stack");

    private object[] Pop(int count)
    {
        if (count > _stack.Count) throw Bad("too few values on the stack");
        object[] values = [.. _stack[^count..]];
        if (Array.Exists(values, v => v is Mark)) throw Bad("too few values after the mark");
        _stack.RemoveRange(_stack.Count - count, count);
        return values;
    }

    private object[] PopToMark()
    {
        var mark = _stack.LastIndexOf(Mark.Instance);
        if (mark < 0) throw Bad("no mark on the stack");
        object[] values = [.. _stack[(mark + 1)..]];
        _stack.RemoveRange(mark, _stack.Count - mark);
        return values;
    }

    private CheckpointException Bad(string problem) => new(_file, null, $"byte {_opcodeAt} of data.pkl: {problem.TrimEnd('.')}.");
}
