using System.Runtime.CompilerServices;

namespace MambaVL.Tests.Checkpoints;

/// <summary>A test may use TorchSharp before anything of this library, which is what loads the native part.</summary>
internal static class NativeLibrary
{
    [ModuleInitializer]
    internal static void Load() => MambaVL.Runtime.EnsureLoaded();
}
