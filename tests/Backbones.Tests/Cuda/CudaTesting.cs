using System.Diagnostics;
using MambaVL.Cuda;

namespace MambaVL.Tests.Cuda;

/// <summary>What the tests of kernels share.</summary>
internal static class CudaTesting
{
    /// <summary>The first GPU; skips the test, and says why, where kernels cannot run on it.</summary>
    public static CudaGpu Gpu()
    {
        var gpu = CudaGpu.TryGet(0, out var problem);
        Skip.If(gpu is null, $"No GPU for kernels: {problem}.");
        return gpu!;
    }

    /// <summary>The run-time compiler; skips the test, and says why, where there is none.</summary>
    public static Nvrtc Compiler()
    {
        Skip.If(Nvrtc.Instance is null, $"No compiler: {Nvrtc.Problem}.");
        return Nvrtc.Instance!;
    }

    /// <summary>Runs this assembly's program (Runtime/Probe.cs) in a process of its own, and returns its exit code and what it
    /// printed.</summary>
    public static (int Code, string Output) Probe(string[] arguments, params (string Name, string Value)[] environment)
    {
        // Under the runner of a machine without an SDK, the runner is the program.
        var host = Environment.ProcessPath!;
        var start = Path.GetFileNameWithoutExtension(host) is "dotnet" or "testhost"
            ? new ProcessStartInfo("dotnet", ["exec", typeof(CudaTesting).Assembly.Location, .. arguments])
            : new ProcessStartInfo(host, ["probe", .. arguments]);
        (start.RedirectStandardOutput, start.RedirectStandardError) = (true, true);
        foreach (var (name, value) in environment) start.Environment[name] = value;
        return ProbeApp.Finish(Process.Start(start)!);
    }
}
