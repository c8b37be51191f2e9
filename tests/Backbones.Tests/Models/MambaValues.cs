using static TorchSharp.torch;

namespace MambaVL.Tests.Models;

/// <summary>First values with which no part of a Mamba is too small to be seen, and no layer is like another.</summary>
internal static class MambaValues
{
    /// <summary>Changes the steps and the states' decays of every layer, in place.</summary>
    public static void TellApart(IEnumerable<(string Name, Tensor Value)> parameters)
    {
        using var noGradients = no_grad();
        var layer = 0;
        foreach (var (name, value) in parameters)
        {
            if (name.EndsWith("dt_proj.bias")) value.add_(3);
            if (name.EndsWith("A_log")) value.sub_(2 + 0.1 * layer++);
        }
    }
}
