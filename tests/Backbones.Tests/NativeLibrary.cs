using System.Reflection;
using System.Runtime.CompilerServices;

namespace MambaVL.Tests;

/// <summary>A test may use TorchSharp before anything of this library, which is what loads the native part.</summary>
internal static class NativeLibrary
{
    [ModuleInitializer]
    internal static void Initialize()
    {
        // As a program (see Probe) the assembly decides itself when to load, and reports what fails.
        if (Assembly.GetEntryAssembly() != typeof(NativeLibrary).Assembly) Load();
    }

    // A method of its own: MambaVL is initialised when a method that calls into it is compiled.
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void Load() => Runtime.EnsureLoaded();
}
