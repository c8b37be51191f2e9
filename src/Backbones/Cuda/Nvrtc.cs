using System.Runtime.InteropServices;
using System.Text;

namespace MambaVL.Cuda;

/// <summary>NVIDIA's run-time compiler (nvrtc.h). It comes with libtorch's CUDA packages and with a Python install of
/// PyTorch, and needs neither a toolkit nor a GPU.</summary>
internal sealed unsafe class Nvrtc
{
    private readonly delegate* unmanaged<nint*, byte*, byte*, int, byte**, byte**, int> _create;
    private readonly delegate* unmanaged<nint, int, byte**, int> _compile;
    private readonly delegate* unmanaged<nint*, int> _destroy;
    private readonly delegate* unmanaged<nint, nuint*, int> _logSize, _cubinSize;
    private readonly delegate* unmanaged<nint, byte*, int> _log, _cubin;

    // What a compilation may still take when the process ends; a source takes seconds.
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(30);

    private static readonly object Gate = new();
    private static int _running; // compilations
    private static bool _ending; // the process

    private Nvrtc(nint library, string name)
    {
        _create = (delegate* unmanaged<nint*, byte*, byte*, int, byte**, byte**, int>)Export("nvrtcCreateProgram");
        _compile = (delegate* unmanaged<nint, int, byte**, int>)Export("nvrtcCompileProgram");
        _destroy = (delegate* unmanaged<nint*, int>)Export("nvrtcDestroyProgram");
        _logSize = (delegate* unmanaged<nint, nuint*, int>)Export("nvrtcGetProgramLogSize");
        _log = (delegate* unmanaged<nint, byte*, int>)Export("nvrtcGetProgramLog");
        _cubinSize = (delegate* unmanaged<nint, nuint*, int>)Export("nvrtcGetCUBINSize");
        _cubin = (delegate* unmanaged<nint, byte*, int>)Export("nvrtcGetCUBIN");
        int major = 0, minor = 0, count = 0;
        ((delegate* unmanaged<int*, int*, int>)Export("nvrtcVersion"))(&major, &minor);
        Version = $"{major}.{minor}";
        Name = name;
        ((delegate* unmanaged<int*, int>)Export("nvrtcGetNumSupportedArchs"))(&count);
        var architectures = new int[count];
        fixed (int* p = architectures) ((delegate* unmanaged<int*, int>)Export("nvrtcGetSupportedArchs"))(p);
        Architectures = architectures;

        nint Export(string function) => NativeLibrary.GetExport(library, function);
    }

    /// <summary>The compiler; null where there is none.</summary>
    public static Nvrtc? Instance => Found.Value.Compiler;

    /// <summary>Why there is no compiler; null where there is one.</summary>
    public static string? Problem => Found.Value.Problem;

    private static readonly Lazy<(Nvrtc? Compiler, string? Problem)> Found = new(Find);

    /// <summary>Such as 13.0.</summary>
    public string Version { get; }

    /// <summary>The library that was loaded.</summary>
    public string Name { get; }

    /// <summary>The architectures that it compiles for: 75 for compute capability 7.5.</summary>
    public IReadOnlyList<int> Architectures { get; }

    /// <summary>Machine code (a cubin) for one architecture.</summary>
    /// <param name="name">What messages call the source.</param>
    /// <param name="source">CUDA C++ without any header of CUDA's.</param>
    /// <param name="headers">Sources that it includes, by name.</param>
    /// <param name="options">As nvcc takes them.</param>
    /// <exception cref="CudaException">It does not compile: the compiler's log, and the lines that it complains of. Or the process is
    /// ending.</exception>
    public byte[] Compile(string name, string source, IReadOnlyDictionary<string, string> headers, IReadOnlyList<string> options)
    {
        lock (Gate)
        {
            if (_ending) throw new CudaException($"{name} is not compiled any more: the process is ending.");
            _running++;
        }
        try
        {
            return CompileNow(name, source, headers, options);
        }
        finally
        {
            lock (Gate)
            {
                _running--;
                Monitor.PulseAll(Gate);
            }
        }
    }

    private byte[] CompileNow(string name, string source, IReadOnlyDictionary<string, string> headers, IReadOnlyList<string> options)
    {
        nint program = 0;
        using var text = new Utf8Strings([name, source, .. headers.Values, .. headers.Keys, .. options]);
        var contents = text[2];
        var names = contents + headers.Count;
        var status = _create(&program, *text[1], *text[0], headers.Count, contents, names);
        if (status != 0) throw new CudaException($"NVRTC {Version} did not take {name}: status {status}.");
        try
        {
            status = _compile(program, options.Count, names + headers.Count);
            if (status != 0)
            {
                nuint length = 0;
                _logSize(program, &length);
                var log = new byte[Math.Max(1, (int)length)];
                fixed (byte* p = log) _log(program, p);
                throw new CudaException(CompilerLog.Explain(name, source, headers, options, Version, Encoding.UTF8.GetString(log).TrimEnd('\0', '\n', ' ')));
            }
            nuint size = 0;
            _cubinSize(program, &size);
            var cubin = new byte[size];
            fixed (byte* p = cubin) _cubin(program, p);
            return cubin;
        }
        finally
        {
            _destroy(&program);
        }
    }

    private static (Nvrtc?, string?) Find()
    {
        // Beside the libtorch in use first: its CUDA version is the one that the driver is known to run.
        var folders = Runtime.LibtorchFolders.Concat(NativeFolders.Candidates()).Distinct().ToList();
        var problems = new List<string>();
        foreach (var file in folders.SelectMany(Libraries).Concat(SystemNames))
        {
            if (!NativeLibrary.TryLoad(file, out var library)) continue;
            try
            {
                var found = new Nvrtc(library, file);
                AppDomain.CurrentDomain.ProcessExit += (_, _) => LetCompilationsEnd();
                return (found, null);
            }
            catch (EntryPointNotFoundException e)
            {
                problems.Add($"{file}: {e.Message}");
            }
        }
        return (null, $"NVRTC ({SystemNames[0]}) was found neither beside libtorch nor on the system's library path" +
            (problems.Count > 0 ? $" ({string.Join("; ", problems)})" : ""));
    }

    // When a process ends the C library takes NVRTC's globals down, and a thread that is compiling then crashes: the process ends with
    // SIGSEGV or SIGABRT in place of its exit code.
    private static void LetCompilationsEnd()
    {
        var until = Environment.TickCount64 + (long)Patience.TotalMilliseconds;
        lock (Gate)
        {
            _ending = true;
            while (_running > 0 && until - Environment.TickCount64 is > 0 and var left) Monitor.Wait(Gate, (int)left);
        }
    }

    private static string[] SystemNames { get; } = OperatingSystem.IsWindows()
        ? ["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"]
        : ["libnvrtc.so.13", "libnvrtc.so.12"];

    private static IEnumerable<string> Libraries(string folder)
    {
        try
        {
            return Directory.EnumerateFiles(folder, OperatingSystem.IsWindows() ? "nvrtc64_*.dll" : "libnvrtc*.so*")
                .Where(f => !Path.GetFileName(f).Contains("builtins", StringComparison.Ordinal) && !Path.GetFileName(f).Contains(".alt.", StringComparison.Ordinal))
                .OrderDescending(StringComparer.Ordinal).ToList();
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return [];
        }
    }

    /// <summary>Strings for C, one after the other; each as the address of its pointer.</summary>
    private sealed class Utf8Strings : IDisposable
    {
        private readonly byte** _pointers;
        private readonly int _count;

        public Utf8Strings(IReadOnlyList<string> texts)
        {
            _count = texts.Count;
            _pointers = (byte**)NativeMemory.AllocZeroed((nuint)Math.Max(1, _count), (nuint)sizeof(byte*));
            for (var i = 0; i < _count; i++) _pointers[i] = (byte*)Marshal.StringToCoTaskMemUTF8(texts[i]);
        }

        public byte** this[int index] => _pointers + index;

        public void Dispose()
        {
            for (var i = 0; i < _count; i++) Marshal.FreeCoTaskMem((nint)_pointers[i]);
            NativeMemory.Free(_pointers);
        }
    }
}
