using System.Security.Cryptography;
using MambaVL.Checkpoints;

namespace MambaVL.Cuda;

/// <summary>Compiled kernels in a folder of the user's: <c>kernels/{source}-{hash}-sm_{architecture}.cubin</c> below the cache
/// folder of docs/native-runtime.md. The hash covers source, headers, options and NVRTC's version. A file begins with the SHA-256
/// of what follows: one that was cut off or damaged is compiled again.</summary>
internal static class CubinCache
{
    /// <summary>The cubin from the folder, or from <paramref name="compile"/>, which is then kept. A folder that cannot be
    /// read or written costs the time of a compile and nothing else.</summary>
    /// <param name="folder">Null: nothing is kept.</param>
    /// <param name="name">The file's name.</param>
    /// <param name="compile">Makes the cubin.</param>
    public static byte[] Get(string? folder, string name, Func<byte[]> compile)
    {
        var file = folder is null ? null : Path.Combine(folder, "kernels", name);
        if (file is not null && Read(file) is { } kept) return kept;
        var cubin = compile();
        if (file is not null) Keep(file, cubin);
        return cubin;
    }

    private static byte[]? Read(string file)
    {
        try
        {
            if (!File.Exists(file)) return null;
            var bytes = File.ReadAllBytes(file);
            return bytes.Length > SHA256.HashSizeInBytes
                && SHA256.HashData(bytes.AsSpan(SHA256.HashSizeInBytes)).AsSpan().SequenceEqual(bytes.AsSpan(0, SHA256.HashSizeInBytes))
                ? bytes[SHA256.HashSizeInBytes..] : null;
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return null;
        }
    }

    private static void Keep(string file, byte[] cubin)
    {
        try
        {
            PatchCache.CreateOwnFolder(Path.GetDirectoryName(file)!);
            AtomicFile.Write(file, [.. SHA256.HashData(cubin), .. cubin]);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
        }
    }
}
