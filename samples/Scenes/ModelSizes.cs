using MambaVL.Models;
using MambaVL.Prompts;

namespace MambaVL.Samples.Scenes;

/// <summary>How large a model is. The defaults make one of about 3.9 million weights, 7.8 MB in float16, with either backbone.</summary>
internal sealed record ModelSizes
{
    /// <summary>Pixels on a side that the encoder sees. A scene of 192 is shrunk a little: boxes stay exact to about two pixels.</summary>
    public int ImageSize { get; init; } = 160;

    /// <summary>Pixels on a side of a patch.</summary>
    public int Patch { get; init; } = 16;

    /// <summary>The encoder's width.</summary>
    public int Width { get; init; } = 192;

    /// <summary>The encoder's blocks.</summary>
    public int Depth { get; init; } = 4;

    /// <summary>The encoder's heads; null: one for 32 channels.</summary>
    public int? Heads { get; init; }

    /// <summary>The inner width of the encoder's MLP; null: 8/3 of its width, as EVA-02 has it.</summary>
    public int? Mlp { get; init; }

    /// <summary>The language model's width.</summary>
    public int Hidden { get; init; } = 192;

    /// <summary>The language model's layers; null: 7 of Mamba, 4 of GPT-NeoX, which are about equally many weights.</summary>
    public int? Layers { get; init; }

    /// <summary>Tokens of the tokeniser, at most.</summary>
    public int Vocabulary { get; init; } = 640;

    /// <summary>The configuration with a backbone: <c>mamba</c> or <c>pythia</c>.</summary>
    public VisionLanguageConfig ToConfig(string backbone, Tokenizer tokenizer) => new()
    {
        Vision = new Eva02Config
        {
            ImageSize = ImageSize, PatchSize = Patch, Width = Width, Depth = Depth, Heads = Heads ?? Width / 32,
            MlpWidth = Mlp ?? Width * 8 / 3, ReferenceGrid = ImageSize / Patch,
        },
        Language = backbone switch
        {
            "mamba" => new MambaConfig { HiddenSize = Hidden, LayerCount = Layers ?? 7, VocabularySize = tokenizer.VocabularySize },
            "pythia" => new GptNeoXConfig { HiddenSize = Hidden, LayerCount = Layers ?? 4, HeadCount = Hidden / 32, VocabularySize = tokenizer.VocabularySize, TieEmbeddings = true },
            _ => throw new ArgumentException($"--backbone is '{backbone}'; expected mamba or pythia."),
        },
    };
}
