using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace MambaVL;

// Minimal bootstrap so that the rest can be developed; the Runtime work item replaces it.
/// <summary>The native libraries.</summary>
public static class Runtime
{
    private static bool _done;

#pragma warning disable CA2255
    [ModuleInitializer]
#pragma warning restore CA2255
    internal static void Initialize() => EnsureLoaded();

    /// <summary>Makes TorchSharp's native library loadable on this machine.</summary>
    public static void EnsureLoaded()
    {
        if (_done) return;
        _done = true;
        var dir = Path.Combine(AppContext.BaseDirectory, "runtimes/linux-x64/native");
        if (!Directory.Exists(dir)) dir = AppContext.BaseDirectory;
        var data = File.ReadAllBytes(Path.Combine(dir, "libLibTorchSharp.so"));
        var patched = Path.Combine(Path.GetTempPath(), $"libLibTorchSharp-{Environment.ProcessId}.so");
        Patch(data);
        File.WriteAllBytes(patched, data);
        foreach (var f in Directory.GetFiles(dir, "libgomp*").Concat(["libc10.so", "libtorch_cpu.so", "libtorch.so"]))
            NativeLibrary.Load(Path.Combine(dir, f));
        NativeLibrary.Load(patched);
        File.Delete(patched);
    }

    private static void Patch(byte[] d)
    {
        var shoff = (int)BitConverter.ToUInt64(d, 0x28);
        int size = BitConverter.ToUInt16(d, 0x3A), n = BitConverter.ToUInt16(d, 0x3C);
        for (var i = 0; i < n; i++)
        {
            var s = shoff + i * size;
            if (BitConverter.ToUInt32(d, s + 4) != 0x6ffffffe) continue;
            int o = (int)BitConverter.ToUInt64(d, s + 24), count = (int)BitConverter.ToUInt32(d, s + 44);
            var strs = (int)BitConverter.ToUInt64(d, shoff + (int)BitConverter.ToUInt32(d, s + 40) * size + 24);
            for (var j = 0; j < count; j++)
            {
                var a = o + BitConverter.ToInt32(d, o + 8);
                for (var k = 0; k < BitConverter.ToUInt16(d, o + 2); k++)
                {
                    var name = strs + BitConverter.ToInt32(d, a + 8);
                    if (System.Text.Encoding.ASCII.GetString(d, name, 14) == "GLIBCXX_3.4.32") d[a + 4] |= 2;
                    a += BitConverter.ToInt32(d, a + 12);
                }
                o += BitConverter.ToInt32(d, o + 12);
            }
        }
    }
}
