using TorchSharp;

namespace MambaVL.Tests;

public class RuntimeTests
{
    [Fact]
    public void TheReportSaysWhatThisProcessRunsOn()
    {
        Runtime.EnsureLoaded();
        var report = Runtime.Describe();
        report.Error.Should().BeNull();
        report.Threads.Should().Be(torch.get_num_threads());
        report.CudaAvailable.Should().Be(torch.cuda.is_available());
        var text = report.ToString();
        text.Should().Contain(report.RuntimeIdentifier).And.Contain($"TorchSharp   {report.TorchSharpVersion}").And.Contain("libtorch").And.Contain("CUDA").And.Contain("threads");
        foreach (var library in report.NativeLibraries) text.Should().Contain(library);
    }

    [Fact]
    public void TheVersionOfLibtorchIsOneThatIsSupported()
    {
        var version = LibtorchInstall.Parse(Runtime.Describe().LibtorchVersion!);
        LibtorchInstall.Supports(version!.Value.Major, version.Value.Minor).Should().BeTrue();
    }

    [Fact]
    public void AnErrorKeepsItsParts()
    {
        var error = new NativeRuntimeException("It is missing.", "a file", ["/here", "/there"], "install it");
        error.Message.Should().Be("It is missing.\n  looked for: a file\n  where:      /here\n              /there\n  what to do: install it");
        (error.LookedFor, error.Cure).Should().Be(("a file", "install it"));
        error.Where.Should().Equal("/here", "/there");
    }
}
