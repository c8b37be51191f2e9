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
            if (args is ["end-while-compiling"]) EndWhileCompiling();
            else if (args is ["kernel-fault", var when]) KernelFault.Provoke(when);
            else Use(args);
            return 0;
        }
        catch (Exception e) when (e is NativeRuntimeException or CudaException)
        {
            Console.WriteLine(e.Message);
            return ClearError;
        }
    }

    // Comes back while sources are being compiled on other threads.
    private static void EndWhileCompiling()
    {
        var compiler = Nvrtc.Instance ?? throw new CudaException(Nvrtc.Problem!);
        using var begun = new CountdownEvent(4);
        for (var i = 0; i < 4; i++)
        {
            var b = 1 << i;
            new Thread(() =>
            {
                begun.Signal();
                CudaModule.Compile("mamba_decode.cu", 75, $"TYPE=float B={b} SMS=40 V=20011 D=768 E=1536 N=16 R=48 K=4 LAYER_NORM=true FOLD_NORM=false".Split(' '), compiler);
            }) { IsBackground = true }.Start();
        }
        begun.Wait();
        Thread.Sleep(200); // in the middle: each takes seconds
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
