using System.Buffers.Binary;
using System.Runtime.InteropServices;
using System.Text;
using System.Text.Json;
using System.Text.Unicode;
using static TorchSharp.torch;

namespace MambaVL.Checkpoints;

/// <summary>The header of a .safetensors file: 8 bytes of length, JSON, then the tensors' bytes without a gap.</summary>
/// <remarks>The header may come from anywhere, so nothing in it is believed: every rule of the format is checked.</remarks>
internal static class SafetensorsReader
{
    /// <summary>The limit of the reference implementation, in bytes.</summary>
    public const int MaxHeader = 100_000_000;

    public const string MetadataKey = "__metadata__";

    public static List<StoredTensor> Read(MappedFile file, IDictionary<string, string> metadata)
    {
        if (file.Length < 8) throw Bad(file, $"the file is {file.Length} bytes long; a .safetensors file starts with 8 bytes that give the length of its header.");
        Span<byte> prefix = stackalloc byte[8];
        file.Read(0, prefix);
        var length = BinaryPrimitives.ReadUInt64LittleEndian(prefix);
        if (length > (ulong)(file.Length - 8))
            throw Bad(file, $"the header is said to be {length} bytes long, in a file of {file.Length}. The file is cut off, or is not a .safetensors file.");
        if (length > MaxHeader) throw Bad(file, $"the header is {length} bytes long; at most {MaxHeader} are accepted.");
        if (length < 2) throw Bad(file, $"the header is {length} bytes long, too short for a JSON object.");

        var header = new byte[length];
        file.Read(8, header);
        if (header[0] != '{') throw Bad(file, $"the header starts with byte 0x{header[0]:x2} instead of '{{': not a .safetensors file.");
        if (!Utf8.IsValid(header)) throw Bad(file, "the header is not UTF-8.");

        List<StoredTensor> tensors;
        try
        {
            tensors = ReadHeader(file, header, metadata);
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException)
        {
            // InvalidOperationException: an escape such as \ud800 that no string can hold.
            throw new CheckpointException(file.Path, null, $"the header is not valid JSON: {e.Message}", e);
        }
        CheckLayout(file, tensors, 8 + (long)length);
        return tensors;
    }

    private static List<StoredTensor> ReadHeader(MappedFile file, byte[] header, IDictionary<string, string> metadata)
    {
        // The deepest valid header is object, tensor, array.
        var json = new Utf8JsonReader(header, new JsonReaderOptions { MaxDepth = 3 });
        var tensors = new List<StoredTensor>();
        var names = new HashSet<string>();
        json.Read();
        while (json.Read() && json.TokenType == JsonTokenType.PropertyName)
        {
            var name = json.GetString()!;
            if (!names.Add(name)) throw Bad(file, "is in the header twice.", name);
            json.Read();
            if (name == MetadataKey) ReadMetadata(file, ref json, metadata);
            else tensors.Add(ReadTensor(file, ref json, name, 8 + header.Length));
        }
        while (json.Read()) { } // throws when anything but white space follows
        return tensors;
    }

    private static void ReadMetadata(MappedFile file, ref Utf8JsonReader json, IDictionary<string, string> metadata)
    {
        if (json.TokenType != JsonTokenType.StartObject) throw Bad(file, $"{MetadataKey} is {Article(json.TokenType)}, expected an object of strings.");
        while (json.Read() && json.TokenType == JsonTokenType.PropertyName)
        {
            var key = json.GetString()!;
            json.Read();
            if (json.TokenType != JsonTokenType.String)
                throw Bad(file, $"{MetadataKey} {CheckpointException.Quote(key)} is {Article(json.TokenType)}, expected a string.");
            if (!metadata.TryAdd(key, json.GetString()!)) throw Bad(file, $"{MetadataKey} {CheckpointException.Quote(key)} is there twice.");
        }
    }

    private static StoredTensor ReadTensor(MappedFile file, ref Utf8JsonReader json, string name, long dataStart)
    {
        if (json.TokenType != JsonTokenType.StartObject) throw Bad(file, $"is {Article(json.TokenType)}, expected an object with dtype, shape and data_offsets.", name);
        ScalarType? type = null;
        long[]? shape = null, offsets = null;
        while (json.Read() && json.TokenType == JsonTokenType.PropertyName)
        {
            var field = json.GetString()!;
            json.Read();
            switch (field)
            {
                case "dtype" when type is null:
                    var found = json.TokenType == JsonTokenType.String ? json.GetString()! : throw Bad(file, $"dtype is {Article(json.TokenType)}, expected a string.", name);
                    type = ElementTypes.Parse(found)
                        ?? throw Bad(file, $"element type {CheckpointException.Quote(found)} is not supported; expected one of {ElementTypes.Supported}.", name);
                    break;
                case "shape" when shape is null:
                    shape = ReadNumbers(file, ref json, name, field, ElementTypes.MaxRank);
                    break;
                case "data_offsets" when offsets is null:
                    offsets = ReadNumbers(file, ref json, name, field, 2);
                    if (offsets.Length != 2) throw Bad(file, $"data_offsets has {offsets.Length} numbers, expected 2.", name);
                    break;
                case "dtype" or "shape" or "data_offsets":
                    throw Bad(file, $"{field} is there twice.", name);
                default:
                    throw Bad(file, $"unknown field {CheckpointException.Quote(field)}; expected dtype, shape and data_offsets.", name);
            }
        }
        if (type is not { } dtype || shape is null || offsets is null)
            throw Bad(file, $"lacks {(type is null ? "dtype" : shape is null ? "shape" : "data_offsets")}.", name);

        var (start, end, available) = (offsets[0], offsets[1], file.Length - dataStart);
        if (start > end || end > available)
            throw Bad(file, $"data_offsets are [{start}, {end}]; expected start <= end <= {available}, the bytes after the header.", name);
        if (!ElementTypes.TryByteCount(shape, dtype, out var bytes) || bytes != end - start)
            throw Bad(file, $"shape [{string.Join(", ", shape)}] of {ElementTypes.Name(dtype)} does not fit data_offsets [{start}, {end}], {end - start} bytes.", name);
        return new StoredTensor(new TensorEntry(name, dtype, shape), file, dataStart + start, bytes);
    }

    private static long[] ReadNumbers(MappedFile file, ref Utf8JsonReader json, string name, string field, int limit)
    {
        if (json.TokenType != JsonTokenType.StartArray) throw Bad(file, $"{field} is {Article(json.TokenType)}, expected an array.", name);
        var numbers = new List<long>(4);
        while (json.Read() && json.TokenType != JsonTokenType.EndArray)
        {
            if (json.TokenType != JsonTokenType.Number) throw Bad(file, $"{field} holds {Article(json.TokenType)}, expected integers.", name);
            if (!json.TryGetInt64(out var n) || n < 0)
                throw Bad(file, $"{field} holds {Encoding.UTF8.GetString(json.ValueSpan[..Math.Min(json.ValueSpan.Length, 40)])}, expected an integer from 0 to 2^63 - 1.", name);
            if (numbers.Count == limit) throw Bad(file, $"{field} has more than {limit} numbers.", name);
            numbers.Add(n);
        }
        return [.. numbers];
    }

    // As the reference implementation has it: laid end to end, the tensors fill the rest of the file exactly.
    private static void CheckLayout(MappedFile file, List<StoredTensor> tensors, long dataStart)
    {
        var ordered = tensors.OrderBy(t => t.Offset).ThenBy(t => t.Extent).ToList();
        var end = dataStart;
        foreach (var t in ordered)
        {
            if (t.Offset != end)
                throw Bad(file, $"starts at byte {t.Offset - dataStart} of the data, where {end - dataStart} was expected: tensors {(t.Offset < end ? "overlap" : "leave a hole")}.", t.Entry.Name);
            end += t.Extent;
        }
        if (end != file.Length) throw Bad(file, $"{file.Length - end} bytes after the last tensor belong to none.");
    }

    private static string Article(JsonTokenType token) => token switch
    {
        JsonTokenType.StartObject => "an object",
        JsonTokenType.StartArray => "an array",
        JsonTokenType.String => "a string",
        JsonTokenType.Number => "a number",
        JsonTokenType.Null => "null",
        _ => "a boolean",
    };

    private static CheckpointException Bad(MappedFile file, string problem, string? tensor = null) => new(file.Path, tensor, problem);
}
