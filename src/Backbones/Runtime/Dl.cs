using System.Runtime.InteropServices;

namespace MambaVL;

/// <summary>The Linux loader (dlopen(3), dlinfo(3)), where NativeLibrary leaves out what is needed: the flags, the loader's
/// own message, and which file a name led to.</summary>
internal static partial class Dl
{
    /// <summary>Functions are looked up at their first call.</summary>
    public const int Lazy = 1;

    /// <summary>Every symbol is looked up while loading, so that a missing one is an error here and not the end of the process later.</summary>
    public const int Now = 2;

    /// <summary>Only a library that is loaded already.</summary>
    public const int NoLoad = 4;

    private const int RequestLinkMap = 2;

    /// <summary>A handle, or 0 and the loader's message.</summary>
    public static nint Open(string pathOrName, int flags, out string error)
    {
        dlerror();
        var handle = dlopen(pathOrName, flags);
        error = handle == 0 ? Marshal.PtrToStringUTF8(dlerror()) ?? "no reason given" : "";
        return handle;
    }

    /// <summary>The file behind a handle, or null where the loader does not say.</summary>
    public static string? PathOf(nint handle)
    {
        // struct link_map { l_addr; char* l_name; ... }
        if (dlinfo(handle, RequestLinkMap, out var map) != 0 || map == 0) return null;
        var path = Marshal.PtrToStringUTF8(Marshal.ReadIntPtr(map, nint.Size));
        return string.IsNullOrEmpty(path) ? null : path;
    }

    /// <summary>The version of the C library, such as 2.36.</summary>
    public static string GlibcVersion() => Marshal.PtrToStringUTF8(gnu_get_libc_version()) ?? "unknown";

    [LibraryImport("libdl.so.2", StringMarshalling = StringMarshalling.Utf8)]
    private static partial nint dlopen(string path, int flags);

    [LibraryImport("libdl.so.2")]
    private static partial nint dlerror();

    [LibraryImport("libdl.so.2")]
    private static partial int dlinfo(nint handle, int request, out nint result);

    [LibraryImport("libc.so.6")]
    private static partial nint gnu_get_libc_version();
}
