using MambaVL.Images;
using MambaVL.Models;
using MambaVL.Tests.Prompts;
using TorchSharp;

namespace MambaVL.Tests.Models;

/// <summary>Whole models with first values, small enough to make anew in each test.</summary>
internal static class TinyVisionLanguage
{
    public const string Mamba = "mamba", NeoX = "gpt_neox";

    public static TheoryData<string> Backbones => [Mamba, NeoX];

    public static VisionLanguageConfig Config(string backbone)
    {
        var vocabulary = TinyTokenizer.Load().VocabularySize;
        return new()
        {
            Vision = new Eva02Config { PatchSize = 8, ImageSize = 32, Depth = 1, Width = 32, Heads = 2, MlpWidth = 84 },
            Language = backbone == Mamba
                // A head of its own: tied, it would mostly repeat the last token.
                ? new MambaConfig { HiddenSize = 48, LayerCount = 2, VocabularySize = vocabulary + 3, InitializerRange = 1, TieEmbeddings = false }
                : new GptNeoXConfig { HiddenSize = 48, LayerCount = 2, VocabularySize = vocabulary + 3, HeadCount = 3, InitializerRange = 1 },
        };
    }

    public static VisionLanguageModel Create(string backbone, long seed = 1, torch.ScalarType dtype = torch.ScalarType.Float32)
        => VisionLanguageModel.Create(Config(backbone), TinyTokenizer.Load(), seed, dtype).Livelier();

    /// <summary>First values make a Mamba that hardly remembers: what it says next follows from the last token. With larger
    /// steps and outputs the whole prompt matters, and rows that are mixed up are seen.</summary>
    public static VisionLanguageModel Livelier(this VisionLanguageModel model)
    {
        using var noGradients = torch.no_grad();
        foreach (var (name, parameter) in model.NamedParameters())
        {
            if (name.EndsWith("dt_proj.bias")) parameter.add_(3);
            if (name.EndsWith("A_log")) parameter.sub_(3);
            if (name.EndsWith("x_proj.weight") || name.EndsWith("out_proj.weight") || name.EndsWith("dense.weight")) parameter.mul_(4);
        }
        return model;
    }

    /// <summary>A picture of noise.</summary>
    public static DecodedImage Picture(int seed, int width = 40, int height = 30)
    {
        var pixels = new byte[width * height * 3];
        new Random(seed).NextBytes(pixels);
        return DecodedImage.FromPixels(width, height, pixels);
    }

    public static EncodedImage Encode(this VisionLanguageModel model, int seed)
    {
        using var picture = Picture(seed);
        return model.EncodeImage(picture);
    }
}
