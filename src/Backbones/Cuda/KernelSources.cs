using System.Collections.Frozen;
using System.Reflection;
using System.Security.Cryptography;
using System.Text;

namespace MambaVL.Cuda;

/// <summary>The CUDA C++ of this project: Cuda/Kernels/*.cu, and the *.cuh that they include, embedded in the assembly.</summary>
internal static class KernelSources
{
    private const string Prefix = "Kernels/";

    /// <summary>The text of a file, such as <c>selective_scan.cu</c>.</summary>
    /// <exception cref="ArgumentException">There is no such file.</exception>
    public static string Read(string file)
    {
        using var stream = typeof(KernelSources).Assembly.GetManifestResourceStream(Prefix + file)
            ?? throw new ArgumentException($"There is no kernel source '{file}'; there are {string.Join(", ", Names)}.", nameof(file));
        using var reader = new StreamReader(stream, Encoding.UTF8);
        return reader.ReadToEnd();
    }

    /// <summary>Every file.</summary>
    public static IReadOnlyList<string> Names { get; } = [.. Assembly.GetExecutingAssembly().GetManifestResourceNames()
        .Where(n => n.StartsWith(Prefix, StringComparison.Ordinal)).Select(n => n[Prefix.Length..]).Order(StringComparer.Ordinal)];

    /// <summary>Every header, by name.</summary>
    public static IReadOnlyDictionary<string, string> Headers { get; } =
        Names.Where(n => n.EndsWith(".cuh", StringComparison.Ordinal)).ToFrozenDictionary(n => n, Read);

    /// <summary>SHA-256 of everything that decides what a compile gives, in hexadecimal.</summary>
    public static string Hash(string file, IEnumerable<string> options, string compiler) => Hash(file, Headers, options, compiler);

    /// <summary>The same, with these headers.</summary>
    internal static string Hash(string file, IReadOnlyDictionary<string, string> headers, IEnumerable<string> options, string compiler)
    {
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        foreach (var part in (string[])[compiler, file, Read(file), .. headers.OrderBy(h => h.Key, StringComparer.Ordinal).SelectMany(h => (string[])[h.Key, h.Value]), .. options])
        {
            var bytes = Encoding.UTF8.GetBytes(part);
            hash.AppendData(BitConverter.GetBytes(bytes.Length));
            hash.AppendData(bytes);
        }
        return Convert.ToHexStringLower(hash.GetHashAndReset());
    }
}
