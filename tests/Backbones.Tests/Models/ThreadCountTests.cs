using MambaVL.Checkpoints;
using MambaVL.Models;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Models;

/// <summary>Sets the number of libtorch's threads, so nothing else may run meanwhile.</summary>
[Collection(Alone.Name)]
public class ThreadCountTests
{
    public static TheoryData<string, ScalarType> Cases => new()
    {
        { TinyVisionLanguage.Mamba, ScalarType.Float32 }, { TinyVisionLanguage.Mamba, ScalarType.BFloat16 },
        { TinyVisionLanguage.NeoX, ScalarType.Float32 }, { TinyVisionLanguage.NeoX, ScalarType.BFloat16 },
    };

    [Theory, MemberData(nameof(Cases))]
    public void ReadingAPromptGivesTheSameBitsWithAnyNumberOfThreads(string backbone, ScalarType dtype)
    {
        // Wide enough that libtorch splits its products between threads.
        LanguageConfig config = backbone == TinyVisionLanguage.Mamba
            ? new MambaConfig { HiddenSize = 768, LayerCount = 1, VocabularySize = 1000 }
            : new GptNeoXConfig { HiddenSize = 768, LayerCount = 1, VocabularySize = 1000, HeadCount = 12 };
        using var model = config.Create(new RandomParameters(1, dtype).Root);
        using var inference = inference_mode();
        using var scope = NewDisposeScope();
        var embeddings = model.Embed(arange(1, 601, dtype: ScalarType.Int64).unsqueeze(0));
        var before = get_num_threads();
        try
        {
            Compare.Same(Logits(2), Logits(1), backbone);
        }
        finally
        {
            set_num_threads(before);
        }

        Tensor Logits(int threads)
        {
            set_num_threads(threads);
            using var state = model.CreateState(600);
            return model.Prefill(embeddings, state);
        }
    }
}
