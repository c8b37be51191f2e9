using MambaVL.Checkpoints;
using TorchSharp;

namespace MambaVL.Tests;

public class SmokeTests
{
    [SkippableFact]
    public void TorchLoadsAndReadsAFixture()
    {
        using var file = Checkpoint.Open(Fixtures.Path("selective-scan", "expected.safetensors"));
        using var u = file.Read("0.u");
        u.shape.Should().NotBeEmpty();
        torch.isnan(u).any().item<bool>().Should().BeFalse();
    }
}
