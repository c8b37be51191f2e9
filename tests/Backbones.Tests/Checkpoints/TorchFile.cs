using System.Text;

namespace MambaVL.Tests.Checkpoints;

/// <summary>Writes the opcodes of a pickle, valid or not.</summary>
internal sealed class Pickle
{
    private readonly MemoryStream _code = new();

    public byte[] Bytes => _code.ToArray();

    public Pickle Op(params byte[] code)
    {
        _code.Write(code);
        return this;
    }

    public Pickle Op(char opcode) => Op((byte)opcode);

    public Pickle Start() => Op(0x80, 2);

    public Pickle Text(string s)
    {
        var bytes = Encoding.UTF8.GetBytes(s);
        return Op('X').Op(BitConverter.GetBytes(bytes.Length)).Op(bytes);
    }

    public Pickle Int(long n) => Op([0x8a, 8, .. BitConverter.GetBytes(n)]);

    public Pickle Global(string module, string name) => Op('c').Op(Encoding.UTF8.GetBytes($"{module}\n{name}\n"));

    public Pickle Tuple(params long[] items)
    {
        Op('(');
        foreach (var i in items) Int(i);
        return Op('t');
    }

    public Pickle Storage(string type, string key, long count)
        => Op('(').Text("storage").Global("torch", $"{type}Storage").Text(key).Text("cpu").Int(count).Op('t').Op('Q');

    public Pickle Tensor(string type, string key, long count, long offset, long[] shape, long[] strides)
        => Global("torch._utils", "_rebuild_tensor_v2").Op('(').Storage(type, key, count).Int(offset).Tuple(shape).Tuple(strides)
            .Op(0x89).Global("collections", "OrderedDict").Op(')').Op('R').Op('t').Op('R');

    /// <summary>A dictionary of tensors, whole.</summary>
    public static byte[] Of(params (string Name, string Type, string Key, long Count, long Offset, long[] Shape, long[] Strides)[] tensors)
    {
        var p = new Pickle().Start().Op('}').Op('(');
        foreach (var t in tensors) p.Text(t.Name).Tensor(t.Type, t.Key, t.Count, t.Offset, t.Shape, t.Strides);
        return p.Op('u').Op('.').Bytes;
    }
}

/// <summary>Writes a zip as torch.save lays it out, or one that is damaged in a way to be tested.</summary>
internal sealed class TorchFile
{
    public readonly List<(string Name, byte[] Data)> Entries = [];

    public ushort Method, Flags, Alignment = 64;

    public bool Zip64;

    public string Comment = "";

    public TorchFile(byte[] pickle, params byte[][] storages)
    {
        Entries.Add(("archive/data.pkl", pickle));
        Entries.Add(("archive/byteorder", "little"u8.ToArray()));
        for (var i = 0; i < storages.Length; i++) Entries.Add(($"archive/data/{i}", storages[i]));
        Entries.Add(("archive/version", "3\n"u8.ToArray()));
    }

    public byte[] Bytes()
    {
        var file = new MemoryStream();
        WriteTo(file);
        return file.ToArray();
    }

    public void WriteTo(Stream file)
    {
        var w = new BinaryWriter(file);
        var directory = new MemoryStream();
        var d = new BinaryWriter(directory);
        foreach (var (name, data) in Entries)
        {
            var n = Encoding.UTF8.GetBytes(name);
            var offset = file.Position;
            var padding = Alignment > 1 ? (int)((Alignment - (offset + 30 + n.Length + 4) % Alignment) % Alignment) : 0;
            w.Write(0x04034b50); w.Write((ushort)20); w.Write(Flags); w.Write(Method);
            w.Write(0); w.Write(0); w.Write(data.Length); w.Write(data.Length);
            w.Write((ushort)n.Length); w.Write((ushort)(Alignment > 1 ? 4 + padding : 0)); w.Write(n);
            if (Alignment > 1)
            {
                w.Write((ushort)0x4246); w.Write((ushort)padding); w.Write(new byte[padding]);
            }
            w.Write(data);

            d.Write(0x02014b50); d.Write((ushort)20); d.Write((ushort)20); d.Write(Flags); d.Write(Method);
            d.Write(0); d.Write(0); d.Write(Zip64 ? -1 : data.Length); d.Write(Zip64 ? -1 : data.Length);
            d.Write((ushort)n.Length); d.Write((ushort)(Zip64 ? 28 : 0)); d.Write((ushort)0); d.Write((ushort)0); d.Write((ushort)0);
            d.Write(0); d.Write(Zip64 ? -1 : (int)offset); d.Write(n);
            if (!Zip64) continue;
            d.Write((ushort)1); d.Write((ushort)24); d.Write((long)data.Length); d.Write((long)data.Length); d.Write(offset);
        }
        var start = file.Position;
        w.Write(directory.ToArray());
        if (Zip64)
        {
            var end = file.Position;
            w.Write(0x06064b50); w.Write(44L); w.Write((ushort)20); w.Write((ushort)20); w.Write(0); w.Write(0);
            w.Write((long)Entries.Count); w.Write((long)Entries.Count); w.Write(directory.Length); w.Write(start);
            w.Write(0x07064b50); w.Write(0); w.Write(end); w.Write(1);
        }
        var count = Zip64 ? ushort.MaxValue : (ushort)Entries.Count;
        w.Write(0x06054b50); w.Write(0); w.Write(count); w.Write(count);
        w.Write(Zip64 ? -1 : (int)directory.Length); w.Write(Zip64 ? -1 : (int)start);
        w.Write((ushort)Comment.Length); w.Write(Encoding.ASCII.GetBytes(Comment));
        w.Flush();
    }
}
