using MambaVL.Generation;
using MambaVL.Images;
using MambaVL.Tests.Models;
using MambaVL.Transforms;
using Microsoft.ML;
using Microsoft.ML.Data;

namespace MambaVL.Tests;

/// <summary>A row as a user writes it.</summary>
internal sealed class Example
{
    public string Path { get; set; } = "";

    public string Question { get; set; } = "what is it";

    public string[] Choices { get; set; } = ["a cat", "a dog"];

    public float Number { get; set; }

    [VectorType(4)]
    public float[] Region { get; set; } = [1, 2, 20, 15];
}

/// <summary>A folder of small pictures, which is gone when it is disposed of; and what most tests do with them.</summary>
internal sealed class Pictures : IDisposable
{
    /// <summary>What other tests left to the garbage collector would go while a test counts tensors: it goes now.</summary>
    public static void CollectEarlierTests()
    {
        for (var i = 0; i < 2; i++)
        {
            GC.Collect();
            GC.WaitForPendingFinalizers();
        }
    }

    public static readonly TextStepOptions Short = new() { Generation = new GenerationOptions { MaxNewTokens = 6, IgnoreEndToken = true, Temperature = 30, Seed = 5 } };

    public Pictures(int count = 5)
    {
        Directory.CreateDirectory(Folder);
        for (var i = 0; i < count; i++) Write(i);
    }

    public string Folder { get; } = System.IO.Path.Combine(System.IO.Path.GetTempPath(), $"mambavl-transforms-{Guid.NewGuid():n}");

    public List<Example> Examples { get; } = [];

    public string Zip => System.IO.Path.Combine(Folder, "model.zip");

    public IDataView Data(MLContext ml) => ml.Data.LoadFromEnumerable(Examples);

    public static List<T> Column<T>(IDataView data, string column) => [.. data.GetColumn<T>(column)];

    /// <summary>Text and tokens of each row. The tiny models often write tokens that have no text.</summary>
    public static List<string> Texts(IDataView data, string column)
        => [.. data.GetColumn<string>(column + ".Text").Zip(data.GetColumn<int[]>(column + ".Ids"), (text, ids) => $"{text} [{string.Join(", ", ids)}]")];

    public void Dispose() => Directory.Delete(Folder, recursive: true);

    // A BMP of 24 bits: a header, and rows from the bottom that are padded to 4 bytes.
    private void Write(int i)
    {
        int width = 30 + i % 7, height = 24 + i % 5, stride = (width * 3 + 3) / 4 * 4;
        var bytes = new byte[54 + stride * height];
        new Random(i).NextBytes(bytes.AsSpan(54));
        "BM"u8.CopyTo(bytes);
        BitConverter.TryWriteBytes(bytes.AsSpan(2), bytes.Length);
        bytes[10] = 54;
        bytes[14] = 40;
        BitConverter.TryWriteBytes(bytes.AsSpan(18), width);
        BitConverter.TryWriteBytes(bytes.AsSpan(22), height);
        bytes[26] = 1;
        bytes[28] = 24;
        var path = System.IO.Path.Combine(Folder, $"{i}.bmp");
        File.WriteAllBytes(path, bytes);
        Examples.Add(new() { Path = path, Question = $"what is picture {i}", Number = i });
    }
}
