using TorchSharp;

namespace MambaVL.Tests;

/// <summary>The test assembly as a program: native libraries are loaded once per process, so what depends on how they are
/// loaded runs in a process of its own. It prints what it found; the exit code is 0, or 3 for a clear error.</summary>
internal static class Probe
{
    private static int Main(string[] args)
    {
        try
        {
            if (args is ["describe"])
            {
                Console.WriteLine(Runtime.Describe());
                return 0;
            }
            Runtime.EnsureLoaded();
            if (args is ["cuda"]) Runtime.EnsureCuda();
            using var sum = torch.ones(2, 3).sum();
            var report = Runtime.Describe();
            Console.WriteLine($"sum={sum.item<float>()}");
            Console.WriteLine($"patched={report.PatchedCopy}");
            Console.WriteLine($"libtorch={report.LibtorchVersion} from {report.LibtorchSource}");
            // What the loader mapped, whatever the report says.
            foreach (var line in File.ReadLines("/proc/self/maps").Where(l => l.Contains("torch", StringComparison.OrdinalIgnoreCase) && l.Contains(".so", StringComparison.Ordinal))
                .Select(l => l[l.IndexOf('/')..]).Distinct())
                Console.WriteLine($"mapped={line}");
            return 0;
        }
        catch (NativeRuntimeException e)
        {
            Console.WriteLine(e.Message);
            return 3;
        }
    }
}
