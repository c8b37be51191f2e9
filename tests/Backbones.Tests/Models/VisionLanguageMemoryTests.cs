using MambaVL.Generation;
using MambaVL.Prompts;

namespace MambaVL.Tests.Models;

/// <summary>No tensor outlives the answer that it was made for.</summary>
public class VisionLanguageMemoryTests
{
    private static readonly Conversation[] Conversations = [Conversation.Caption(), Conversation.Ask("What is it"), Conversation.Locate("the circle")];

    private static readonly GenerationOptions Short = new() { MaxNewTokens = 12, IgnoreEndToken = true };

    [Theory, MemberData(nameof(TinyVisionLanguage.Backbones), MemberType = typeof(TinyVisionLanguage))]
    public void ManyAnswersLeaveNoTensorBehind(string backbone)
    {
        using var model = TinyVisionLanguage.Create(backbone);
        void Run(int seed)
        {
            using var image = model.Encode(seed);
            model.Generate([.. Conversations.Select(c => model.Request(image, c))], Short);
            _ = model.Stream(model.Request(image, Conversations[0]), Short).Take(2).ToList();
        }

        Run(1);
        Run(2);
        var before = Live();
        for (var i = 0; i < 10; i++) Run(i);
        Live().Should().Be(before);
    }

    // Of this thread: other threads' tensors wait for the garbage collector.
    private static long Live() => TorchSharp.DisposeScopeManager.Statistics.TensorStatistics.ThreadTotalLiveCount;
}
