using System.Collections.Concurrent;
using System.Text.RegularExpressions;
using MambaVL.Cuda;
using Xunit.Abstractions;

namespace MambaVL.Tests.Cuda;

/// <summary>Every kernel source, with every set of macros that its "// check:" lines name, compiled for every architecture by
/// the compiler that users have. No GPU is needed.</summary>
public partial class KernelCompilationTests(ITestOutputHelper output)
{
    [SkippableTheory]
    [InlineData(75)]
    [InlineData(80)]
    [InlineData(86)]
    [InlineData(89)]
    [InlineData(90)]
    [InlineData(100)]
    [InlineData(120)]
    public void EveryKernelCompilesFor(int capability)
    {
        var compiler = CudaTesting.Compiler();
        Skip.IfNot(compiler.Architectures.Contains(capability), $"NVRTC {compiler.Version} does not know compute capability {capability / 10}.{capability % 10}.");
        var problems = new ConcurrentQueue<string>();
        var cases = KernelSources.Names.Where(IsKernel).SelectMany(file => Checks(file).Select(defines => (file, defines))).ToList();
        Parallel.ForEach(cases, new() { MaxDegreeOfParallelism = Environment.ProcessorCount }, c =>
        {
            try
            {
                // An ELF file, as every cubin is.
                var cubin = CudaModule.Compile(c.file, capability, c.defines, compiler);
                if (!cubin.AsSpan().StartsWith("\u007fELF"u8)) problems.Enqueue($"{c.file} ({string.Join(' ', c.defines)}): the result is no cubin.");
            }
            catch (CudaException e)
            {
                problems.Enqueue(e.Message);
            }
        });
        output.WriteLine($"{cases.Count} compiles by NVRTC {compiler.Version} ({compiler.Name})");
        problems.Should().BeEmpty();
    }

    [Fact]
    public void EverySourceNamesItsSpecialisations()
    {
        KernelSources.Names.Where(IsKernel).Should().NotBeEmpty().And.AllSatisfy(file => Checks(file).Should().NotBeEmpty($"{file} needs '// check: -DNAME=VALUE ...' lines"));
        KernelSources.Headers.Should().ContainKey("common.cuh");
    }

    [SkippableFact]
    public void AFailedCompileGivesTheLogAndTheLine()
    {
        var compiler = CudaTesting.Compiler();
        const string source = "#include \"small.cuh\"\nextern \"C\" __global__ void broken(float* x) {\n    *x = misspelt(1.0f);\n}\n";
        var headers = new Dictionary<string, string> { ["small.cuh"] = "typedef unsigned int u32;\n" };
        FluentActions.Invoking(() => compiler.Compile("broken.cu", source, headers, ["--gpu-architecture=sm_75", "-DTYPE=float"]))
            .Should().Throw<CudaException>().WithMessage($"broken.cu does not compile with NVRTC {compiler.Version} (--gpu-architecture=sm_75 -DTYPE=float)*misspelt*broken.cu:3: ?x = misspelt(1.0f);*");
    }

    [SkippableFact]
    public void AnErrorInAHeaderShowsTheHeadersLine()
    {
        var compiler = CudaTesting.Compiler();
        var headers = new Dictionary<string, string> { ["small.cuh"] = "// fine\nunknown_type y;\n" };
        FluentActions.Invoking(() => compiler.Compile("uses.cu", "#include \"small.cuh\"\n", headers, ["--gpu-architecture=sm_75"]))
            .Should().Throw<CudaException>().WithMessage("*small.cuh:2: unknown_type y;*");
    }

    [SkippableFact]
    public void TheSameSourceGivesTheSameCode()
    {
        var compiler = CudaTesting.Compiler();
        CudaModule.Compile("probe.cu", 75, ["TYPE=float"], compiler).Should().Equal(CudaModule.Compile("probe.cu", 75, ["TYPE=float"], compiler));
    }

    // The process would end with SIGSEGV or SIGABRT.
    [SkippableFact]
    public void AProcessMayEndWhileSourcesAreCompiled()
    {
        CudaTesting.Compiler();
        var (code, output) = CudaTesting.Probe(["end-while-compiling"]);
        code.Should().Be(0, output);
    }

    private static bool IsKernel(string name) => name.EndsWith(".cu", StringComparison.Ordinal);

    /// <summary>The sets of macros, each as NAME=VALUE, that a source says it is to be checked with.</summary>
    private static IEnumerable<string[]> Checks(string file) => Check().Matches(KernelSources.Read(file))
        .Select(m => m.Groups[1].Value.Split(' ', StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries).Select(d => d[2..]).ToArray());

    [GeneratedRegex(@"^// check:([^\r\n]*)", RegexOptions.Multiline)]
    private static partial Regex Check();
}
