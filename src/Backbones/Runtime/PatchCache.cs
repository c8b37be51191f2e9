using System.Security.Cryptography;
using MambaVL.Checkpoints;

namespace MambaVL;

/// <summary>Patched libraries in a folder of the user's, so that a machine patches once.</summary>
internal static class PatchCache
{
    /// <summary>MAMBAVL_CACHE; else mambavl in XDG_CACHE_HOME, ~/.cache or the system's folder for local application data.
    /// Null where there is none of them.</summary>
    public static string? Folder(Func<string, string?> environment)
    {
        if (environment("MAMBAVL_CACHE") is { Length: > 0 } named) return Path.GetFullPath(named);
        // The XDG base directory specification: a relative path is to be ignored.
        if (environment("XDG_CACHE_HOME") is { Length: > 0 } xdg && Path.IsPathRooted(xdg)) return Path.Combine(xdg, "mambavl");
        if (environment("HOME") is { Length: > 0 } home && Path.IsPathRooted(home)) return Path.Combine(home, ".cache", "mambavl");
        var local = Environment.GetFolderPath(Environment.SpecialFolder.LocalApplicationData);
        return local.Length > 0 ? Path.Combine(local, "mambavl") : null;
    }

    /// <summary>The cache's file for an original: its name holds the original's SHA-256, and which versions were changed, since
    /// systems of different age may share a home folder.</summary>
    public static string FileFor(string folder, ReadOnlySpan<byte> original, IEnumerable<string> versions) =>
        Path.Combine(folder, "native", $"libLibTorchSharp-{Convert.ToHexStringLower(SHA256.HashData(original))}-{string.Join("-", versions.Order(StringComparer.Ordinal))}.so");

    /// <summary>Makes the file hold these bytes. A file that does already stays; any other (cut off, damaged, of an older
    /// version of this code) is replaced in one step, so that another process sees the old one or the new one, whole.</summary>
    /// <exception cref="IOException">The folder cannot be written.</exception>
    /// <exception cref="UnauthorizedAccessException">The folder cannot be written.</exception>
    public static void Put(string file, ReadOnlySpan<byte> bytes)
    {
        if (Holds(file, bytes)) return;
        var folder = Path.GetDirectoryName(file)!;
        CreateOwnFolder(folder);
        AtomicFile.Write(file, bytes);
    }

    /// <summary>Makes a folder that only the user may open, unless it is there.</summary>
    public static void CreateOwnFolder(string folder)
    {
        if (OperatingSystem.IsWindows()) Directory.CreateDirectory(folder);
        else Directory.CreateDirectory(folder, UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute);
    }

    private static bool Holds(string file, ReadOnlySpan<byte> bytes)
    {
        try
        {
            if (new FileInfo(file) is not { Exists: true } info || info.Length != bytes.Length) return false;
            return File.ReadAllBytes(file).AsSpan().SequenceEqual(bytes);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return false;
        }
    }
}
