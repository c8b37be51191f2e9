using MambaVL.Checkpoints;
using MambaVL.Models;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MambaVL.Tests.Models;

/// <summary>First values as <see cref="RandomParameters"/>, of parameters whose gradients have places.</summary>
internal sealed class PlacedParameters(ScalarType dtype = ScalarType.Float32, Device? device = null) : ParameterSource
{
    private readonly RandomParameters _values = new(1, dtype);

    public override Parameter Take(string name, long[] shape, ParameterInitializer initial, bool keepFloat32)
    {
        using var noGradients = no_grad();
        var value = _values.Take(name, shape, initial, keepFloat32).detach().to(device ?? CPU);
        return new PlacedParameter(value, zeros_like(value).DetachFromDisposeScope());
    }

    /// <summary>All parameters of the layers.</summary>
    public static List<(string Name, Parameter Parameter)> Layers(Mamba model) => [.. model.named_parameters().Where(p => p.name.StartsWith("backbone.layers")).Select(p => (p.name, p.parameter))];

    /// <inheritdoc cref="Layers"/>
    public static List<(string Name, PlacedParameter Parameter)> OfLayers(Mamba model) => Layers(model).ConvertAll(p => (p.Name, (PlacedParameter)p.Parameter));

    /// <summary>Releases all gradients; in their places is what shows wherever it is read.</summary>
    public static void Poison(Mamba model)
    {
        using var noGradients = no_grad();
        foreach (var p in model.parameters().Cast<PlacedParameter>())
        {
            p.Release();
            p.Place.fill_(double.NaN);
        }
    }
}
