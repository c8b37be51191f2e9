using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MambaVL.Checkpoints;

/// <summary>Fills a new parameter in place with the values that training starts from.</summary>
/// <param name="values">The parameter's values, float32 on the CPU.</param>
/// <param name="random">Where random numbers come from: its own for each parameter, so that models which are built at the
/// same time on several threads do not disturb each other, as they would on libtorch's one global generator.</param>
public delegate void ParameterInitializer(Tensor values, Generator random);

/// <summary>Where a model under construction takes its parameters from.</summary>
/// <remarks>
/// A model's constructor is the one description of its parameters: names, shapes, first values. It runs over
/// <see cref="ShapeRecorder"/> to learn what a checkpoint must hold, over a checkpoint to load it, and over
/// <see cref="RandomParameters"/> to start training. So a model that is loaded is never filled with random numbers.
/// </remarks>
public abstract class ParameterSource
{
    /// <summary>Makes the parameter called <paramref name="name"/>; the module that asks for it owns it.</summary>
    /// <param name="name">The full key, as checkpoints have it: <c>backbone.layers.0.mixer.A_log</c>.</param>
    /// <param name="shape">The shape that the model needs.</param>
    /// <param name="initial">Fills a new tensor in place with the values that training starts from.</param>
    /// <param name="keepFloat32">Whether the parameter stays float32 in a model of a lower precision.</param>
    public abstract Parameter Take(string name, long[] shape, ParameterInitializer initial, bool keepFloat32);

    /// <summary>The root of the names.</summary>
    public ParameterScope Root => new(this, "");
}

/// <summary>A <see cref="ParameterSource"/> and the prefix of the module that is under construction.</summary>
public readonly record struct ParameterScope(ParameterSource Source, string Prefix)
{
    /// <summary>The scope of a child: <c>scope["mixer"]["in_proj"]</c>.</summary>
    public ParameterScope this[string child] => new(Source, Prefix.Length == 0 ? child : $"{Prefix}.{child}");

    /// <summary>The scope of element <paramref name="index"/> of a list of modules.</summary>
    public ParameterScope this[int index] => this[index.ToString(System.Globalization.CultureInfo.InvariantCulture)];

    /// <inheritdoc cref="ParameterSource.Take"/>
    public Parameter Take(string name, long[] shape, ParameterInitializer initial, bool keepFloat32 = false)
        => Source.Take(this[name].Prefix, shape, initial, keepFloat32);
}

/// <summary>Notes every parameter that a model asks for and gives tensors without memory (device <c>meta</c>).</summary>
public sealed class ShapeRecorder : ParameterSource
{
    private readonly Dictionary<string, long[]> _shapes = [];
    private readonly HashSet<string> _keptFloat32 = [];

    /// <summary>The shape of each parameter, by its full key, in the order of construction.</summary>
    public IReadOnlyDictionary<string, long[]> Shapes => _shapes;

    /// <summary>The parameters that stay float32 in a model of a lower precision.</summary>
    public IReadOnlySet<string> KeptFloat32 => _keptFloat32;

    /// <inheritdoc/>
    public override Parameter Take(string name, long[] shape, ParameterInitializer initial, bool keepFloat32)
    {
        if (!_shapes.TryAdd(name, shape)) throw new InvalidOperationException($"The parameter '{name}' is asked for twice.");
        if (keepFloat32) _keptFloat32.Add(name);
        return new Parameter(empty(shape, dtype: ScalarType.Float32, device: META), requires_grad: false);
    }
}

/// <summary>Fills every parameter with the model's initial values: the start of training, and models for tests.</summary>
/// <param name="seed">The same seed gives the same values.</param>
/// <param name="dtype">The precision of the parameters that are not kept in float32; float32 when null.</param>
public sealed class RandomParameters(long seed, ScalarType? dtype = null) : ParameterSource
{
    private long _next = seed;

    /// <inheritdoc/>
    public override Parameter Take(string name, long[] shape, ParameterInitializer initial, bool keepFloat32)
    {
        using var noGrad = no_grad();
        var values = empty(shape, dtype: ScalarType.Float32);
        using var random = new Generator(unchecked((ulong)_next++ * 0x9E3779B97F4A7C15));
        initial(values, random);
        var target = keepFloat32 ? ScalarType.Float32 : dtype ?? ScalarType.Float32;
        if (target != ScalarType.Float32)
        {
            using var wide = values;
            values = wide.to(target);
        }
        return new Parameter(values, requires_grad: false);
    }
}
