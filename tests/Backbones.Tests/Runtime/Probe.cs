using System.Runtime.CompilerServices;
using MambaVL.Cuda;
using MambaVL.Tests.Cuda;
using TorchSharp;

namespace MambaVL.Tests;

/// <summary>The test assembly as a program: native libraries are loaded once per process, so what depends on how they are
/// loaded runs in a process of its own. It prints what it found; the exit code is 0, or 3 for a clear error.</summary>
internal static class Probe
{
    public const int ClearError = 3;

    private static int Main(string[] args)
    {
        if (args is ["torch-first"]) UseTorchSharpFirst();
        return Run(args);
    }

    // A method of its own: MambaVL is initialised when a method that calls into it is compiled.
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static int Run(string[] args)
    {
        try
        {
            if (args is ["describe"])
            {
                Console.WriteLine(Runtime.Describe());
                return 0;
            }
            if (args is ["kernel-fault", var when]) KernelFault.Provoke(when);
            else Use(args);
            return 0;
        }
        catch (Exception e) when (e is NativeRuntimeException or CudaException)
        {
            Console.WriteLine(e.Message);
            return ClearError;
        }
    }

    private static void Use(string[] args)
    {
        Runtime.EnsureLoaded();
        if (args is ["cuda"]) Runtime.EnsureCuda();
        using var sum = torch.ones(2, 3).sum();
        var report = Runtime.Describe();
        Console.WriteLine($"sum={sum.item<float>()}");
        Console.WriteLine($"patched={report.PatchedCopy}");
        Console.WriteLine($"libtorch={report.LibtorchVersion} from {report.LibtorchSource}");
        // What the loader mapped, whatever the report says.
        foreach (var file in File.ReadLines("/proc/self/maps").Where(l => l.Contains(".so", StringComparison.Ordinal)).Select(l => l[l.IndexOf('/')..])
            .Where(f => Path.GetFileName(f).Contains("torch", StringComparison.OrdinalIgnoreCase)).Distinct())
            Console.WriteLine($"mapped={file}");
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void UseTorchSharpFirst()
    {
        var output = Console.Out;
        Console.SetOut(TextWriter.Null); // TorchSharp prints its trace
        try
        {
            using var one = torch.ones(1);
        }
        catch (TypeInitializationException)
        {
        }
        finally
        {
            Console.SetOut(output);
        }
    }
}
