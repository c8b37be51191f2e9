using System.Buffers.Binary;

namespace MambaVL;

/// <summary>
/// Makes libLibTorchSharp.so loadable with a C++ library older than the one that it was linked with. It changes only entries
/// of the version-needs list, and only where the outcome is the same function or none is ever called.
/// </summary>
internal static class VersionPatch
{
    /// <summary>The patched bytes, the versions whose entries were changed, and the changes in words.</summary>
    public sealed record Result(byte[] Bytes, IReadOnlyList<string> Versions, IReadOnlyList<string> Changes);

    // libstdc++ 12 gave condition_variable::wait a second version, which differs in being declared noexcept(false) for thread
    // cancellation; the one of GLIBCXX_3.4.11 has the same arguments and the same meaning, and every later library has it too.
    private static readonly (string Version, string Older, string Symbol)[] SameUnderAnOlderVersion =
        [("GLIBCXX_3.4.30", "GLIBCXX_3.4.11", "_ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE")];

    /// <summary>The needed versions that are neither weak nor provided.</summary>
    /// <param name="library">The library that asks.</param>
    /// <param name="provided">The versions that a library of this name has on this machine; null where it is not checked.</param>
    public static IReadOnlyList<VersionNeed> Missing(ElfFile library, Func<string, IReadOnlySet<string>?> provided) =>
        library.VersionNeeds().Where(n => !n.Weak && provided(n.File) is { } versions && !versions.Contains(n.Version)).ToList();

    /// <summary>Patches a copy of the bytes; null, and why, where a missing version is really used.</summary>
    public static Result? TryApply(ReadOnlySpan<byte> original, ElfFile library, IReadOnlyList<VersionNeed> missing, out string why)
    {
        var bytes = original.ToArray();
        var changes = new List<string>();
        foreach (var need in missing)
        {
            var used = library.RelocatedSymbols(need.Index);
            var twin = SameUnderAnOlderVersion.FirstOrDefault(t => t.Version == need.Version && used.SetEquals([t.Symbol]));
            var older = twin.Older is null ? null : library.VersionNeeds().FirstOrDefault(n => n.File == need.File && n.Version == twin.Older);
            if (used.Count == 0)
            {
                var flags = bytes.AsSpan((int)need.Offset + 4, 2);
                BinaryPrimitives.WriteUInt16LittleEndian(flags, (ushort)(BinaryPrimitives.ReadUInt16LittleEndian(flags) | ElfFile.WeakFlag));
                changes.Add($"{need.Version} is optional (nothing of it is called)");
            }
            else if (older is not null && !missing.Contains(older))
            {
                bytes.AsSpan((int)older.Offset, 4).CopyTo(bytes.AsSpan((int)need.Offset, 4));
                bytes.AsSpan((int)older.Offset + 8, 4).CopyTo(bytes.AsSpan((int)need.Offset + 8, 4));
                changes.Add($"{need.Version} is taken from {older.Version} (the same function)");
            }
            else
            {
                why = $"{need.Version} of {need.File} is missing, and {string.Join(", ", used.Order().Take(3))} of it is used";
                return null;
            }
        }
        why = "";
        return new Result(bytes, missing.Select(m => m.Version).ToList(), changes);
    }
}
