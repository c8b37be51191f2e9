using MambaVL.Models;
using MambaVL.Tests.Models;
using MambaVL.Tests.Prompts;
using MambaVL.Training;
using Microsoft.ML;
using Microsoft.ML.Data;

namespace MambaVL.Tests.Training;

/// <summary>A row as a user's data set has it.</summary>
internal sealed class SquareRow
{
    public string Image { get; set; } = "";

    public string Task { get; set; } = "QuestionAnswering";

    public string Question { get; set; } = "what is its colour";

    public string[] Choices { get; set; } = [];

    public string Target { get; set; } = "";

    [VectorType(4)]
    public float[] Box { get; set; } = [float.NaN, float.NaN, float.NaN, float.NaN];
}

/// <summary>The smallest task with pictures in it: a red, green or blue square on a dark ground. The folder is gone when it is
/// disposed of.</summary>
internal sealed class Squares : IDisposable
{
    public static readonly (string Name, byte R, byte G, byte B)[] Colours = [("Red", 230, 30, 30), ("Green", 30, 220, 40), ("Blue", 40, 40, 230)];

    public Squares(int count = 12, bool others = false)
    {
        // Work as small as this only waits for other threads. OpenMP keeps their number for each thread by itself: said once for the
        // process, it would not reach a test's thread that had computed something before, and the bits depend on it.
        MambaVL.Runtime.EnsureLoaded();
        TorchSharp.torch.set_num_threads(1);
        Directory.CreateDirectory(Folder);
        for (var i = 0; i < count; i++)
        {
            var colour = Colours[i % 3];
            var random = new Random(i);
            var (x, y) = (random.Next(0, 16), random.Next(0, 16));
            var path = Path.Combine(Folder, $"{i}.bmp");
            File.WriteAllBytes(path, Bitmap(32, 32, (px, py) => px >= x && px < x + 16 && py >= y && py < y + 16 ? (colour.R, colour.G, colour.B) : ((byte)20, (byte)20, (byte)20)));
            Rows.Add(new() { Image = path, Target = colour.Name });
            if (!others) continue;
            Rows.Add(new() { Image = path, Task = "captioning", Question = "", Target = $"A {colour.Name.ToLowerInvariant()} square" });
            Rows.Add(new() { Image = path, Task = "Grounding", Question = "the square", Target = "", Box = [x, y, x + 16, y + 16] });
        }
    }

    public string Folder { get; } = Path.Combine(Path.GetTempPath(), $"mambavl-training-{Guid.NewGuid():n}");

    public List<SquareRow> Rows { get; } = [];

    public IDataView Data(MLContext ml) => ml.Data.LoadFromEnumerable(Rows);

    public void Dispose() => Directory.Delete(Folder, recursive: true);

    /// <summary>A model with first values, as small as the task is.</summary>
    public static VisionLanguageModel Model(string backbone, long seed = 1)
    {
        var vocabulary = TinyTokenizer.Load().VocabularySize;
        return VisionLanguageModel.Create(new()
        {
            Vision = new Eva02Config { PatchSize = 8, ImageSize = 16, Depth = 1, Width = 32, Heads = 2, MlpWidth = 40 },
            Language = backbone == TinyVisionLanguage.Mamba
                ? new MambaConfig { HiddenSize = 32, LayerCount = 2, VocabularySize = vocabulary }
                : new GptNeoXConfig { HiddenSize = 32, LayerCount = 2, VocabularySize = vocabulary, HeadCount = 2 },
        }, TinyTokenizer.Load(), seed);
    }

    /// <summary>What most tests train with: everything, a few steps, no file.</summary>
    public static InstructionTuneOptions Options(VisionLanguageModel model) => new()
    {
        Model = model, TrainVisionEncoder = true, LearningRate = 3e-3, BatchSize = 6, Epochs = 3, ReportSteps = 1, Metric = ValidationMetric.Loss,
    };

    /// <summary>Every weight that learnt, by name.</summary>
    public static Dictionary<string, float[]> Weights(VisionLanguageModel model)
        => model.NamedParameters().ToDictionary(p => p.Name, p => p.Parameter.data<float>().ToArray());

    private static byte[] Bitmap(int width, int height, Func<int, int, (byte R, byte G, byte B)> pixel)
    {
        var stride = (width * 3 + 3) / 4 * 4;
        var bytes = new byte[54 + stride * height];
        "BM"u8.CopyTo(bytes);
        BitConverter.TryWriteBytes(bytes.AsSpan(2), bytes.Length);
        (bytes[10], bytes[14], bytes[26], bytes[28]) = (54, 40, 1, 24);
        BitConverter.TryWriteBytes(bytes.AsSpan(18), width);
        BitConverter.TryWriteBytes(bytes.AsSpan(22), height);
        for (var y = 0; y < height; y++)
            for (var x = 0; x < width; x++)
            {
                var at = 54 + (height - 1 - y) * stride + x * 3; // rows from the bottom; blue first
                (bytes[at + 2], bytes[at + 1], bytes[at]) = pixel(x, y);
            }
        return bytes;
    }
}
