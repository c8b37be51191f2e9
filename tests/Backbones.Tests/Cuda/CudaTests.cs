using MambaVL.Cuda;
using MambaVL.Scan;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Cuda;

/// <summary>What needs no GPU, and what there is to say where there is none.</summary>
public class CudaTests
{
    [Fact]
    public void AHashCoversSourceOptionsAndCompiler()
    {
        string[] options = ["--gpu-architecture=sm_90a", "-DTYPE=bf16"];
        var hash = KernelSources.Hash("probe.cu", options, "13.0");
        hash.Should().MatchRegex("^[0-9a-f]{64}$");
        KernelSources.Hash("probe.cu", options, "13.0").Should().Be(hash);
        KernelSources.Hash("probe.cu", options, "12.9").Should().NotBe(hash, "another compiler gives other code");
        KernelSources.Hash("probe.cu", ["--gpu-architecture=sm_80", "-DTYPE=bf16"], "13.0").Should().NotBe(hash);
        KernelSources.Hash("probe.cu", [options[0]], "13.0").Should().NotBe(hash);
        KernelSources.Hash("probe.cu", [options[0] + options[1]], "13.0").Should().NotBe(hash, "two options are not one");
        KernelSources.Hash("common.cuh", options, "13.0").Should().NotBe(hash);
    }

    [Fact]
    public void AHashCoversTheHeaders()
    {
        var hash = KernelSources.Hash("probe.cu", [], "13.0");
        var more = new Dictionary<string, string>(KernelSources.Headers) { ["zz-test.cuh"] = "// more" };
        KernelSources.Hash("probe.cu", more, [], "13.0").Should().NotBe(hash);
        more.Remove("zz-test.cuh");
        KernelSources.Hash("probe.cu", more, [], "13.0").Should().Be(hash);
        more["common.cuh"] += " ";
        KernelSources.Hash("probe.cu", more, [], "13.0").Should().NotBe(hash);
    }

    [Fact]
    public void ASourceThatIsNotThereIsNamed() =>
        FluentActions.Invoking(() => KernelSources.Read("scam.cu")).Should().Throw<ArgumentException>().WithMessage("There is no kernel source 'scam.cu'; there are *common.cuh, *probe.cu*");

    [Fact]
    public void ACompilersLogIsExplainedByTheLinesThatItNames()
    {
        const string source = "first\nsecond\n    float y = z;\n";
        var headers = new Dictionary<string, string> { ["common.cuh"] = "a\nb\n" };
        const string log = "scan.cu(3): error: identifier \"z\" is undefined\ncommon.cuh(2): warning: b\nscan.cu(3): error: again\nother.h(1): note\nscan.cu(99): note";
        var message = CompilerLog.Explain("scan.cu", source, headers, ["-DTYPE=float", "--std=c++17"], "13.0", log);
        message.Should().Be($"scan.cu does not compile with NVRTC 13.0 (-DTYPE=float --std=c++17):\n{log}\n  scan.cu:3: float y = z;\n  common.cuh:2: b");
    }

    [Theory]
    [InlineData(ScalarType.Float32, "float")]
    [InlineData(ScalarType.BFloat16, "bf16")]
    [InlineData(ScalarType.Float16, "f16")]
    public void KernelsHaveNamesForTypes(ScalarType type, string name) => CudaTensor.TypeName(type).Should().Be(name);

    [Theory]
    [InlineData(ScalarType.Float64)]
    [InlineData(ScalarType.Int64)]
    [InlineData(ScalarType.Bool)]
    public void OtherTypesAreNamedInTheError(ScalarType type) =>
        FluentActions.Invoking(() => CudaTensor.TypeName(type)).Should().Throw<ArgumentException>()
            .WithMessage($"The kernels take Float32, BFloat16 and Float16; this is {type}.*").WithParameterName("type");

    [Fact]
    public void AGpuThatIsNotThereHasAReason()
    {
        var gpu = CudaGpu.TryGet(4711, out var problem);
        gpu.Should().BeNull();
        problem.Should().NotBeNullOrWhiteSpace();
        CudaGpu.TryGet(4711, out var again).Should().BeNull();
        again.Should().Be(problem);
        FluentActions.Invoking(() => CudaGpu.Get(4711)).Should().Throw<CudaException>().WithMessage($"The CUDA kernels cannot run on cuda:4711: {problem}.");
    }

    [SkippableFact]
    public void WithoutADriverOrCompilerTheReasonNamesWhatIsMissing()
    {
        var gpu = CudaGpu.TryGet(0, out var problem);
        Skip.IfNot(gpu is null, "There is a GPU.");
        (problem!.Contains("libcuda", StringComparison.Ordinal) || problem.Contains("driver", StringComparison.OrdinalIgnoreCase)
            || problem.Contains("NVRTC", StringComparison.Ordinal) || problem.Contains("capability", StringComparison.Ordinal)).Should().BeTrue(problem);
    }

    [Fact]
    public void AnAddressIsThatOfTheFirstElement()
    {
        using var t = arange(10, dtype: ScalarType.Float32);
        using var part = t[3..];
        (CudaTensor.Pointer(part) - CudaTensor.Pointer(t)).Should().Be(12);
        CudaTensor.Pointer(null).Should().Be(0);
    }
}
