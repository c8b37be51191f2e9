using MambaVL.Models;
using MambaVL.Prompts;

namespace MambaVL.Samples;

/// <summary>A whole Mamba-VL, so small that it needs no file: shows that everything runs, before any download.</summary>
internal static class DemoModel
{
    public static VisionLanguageModel Create()
    {
        var tokenizer = Tokenizer.Load(AppContext.BaseDirectory);
        var config = new VisionLanguageConfig
        {
            Vision = new Eva02Config { ImageSize = 112, PatchSize = 14, Width = 96, Depth = 2, Heads = 6, MlpWidth = 256 },
            // Wide first values, and a head of its own: else it would repeat one token, most often a line break.
            Language = new MambaConfig { HiddenSize = 96, LayerCount = 2, VocabularySize = tokenizer.VocabularySize, InitializerRange = 1, TieEmbeddings = false },
        };
        return VisionLanguageModel.Create(config, tokenizer, seed: 1);
    }
}
