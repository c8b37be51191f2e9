using System.Runtime.CompilerServices;
using TorchSharp;

// Tests count the tensors of the whole process.
[assembly: CollectionBehavior(DisableTestParallelization = true)]

namespace MambaVL.Tests;

internal static class OneThread
{
    // The models are tiny: a second thread would wait more than it works, most of all on a busy machine.
    [ModuleInitializer]
    internal static void Set()
    {
        Runtime.EnsureLoaded();
        torch.set_num_threads(1);
    }
}
