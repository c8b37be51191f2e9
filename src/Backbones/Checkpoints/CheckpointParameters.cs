using System.Text;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MambaVL.Checkpoints;

/// <summary>One of the models that a checkpoint holds.</summary>
/// <param name="Shapes">What the model asks for: <see cref="ShapeRecorder.Shapes"/>.</param>
/// <param name="Names">How the checkpoint's names differ from the model's; null: not at all.</param>
/// <param name="DType">The precision of the parameters that are not kept in float32; float32 when null.</param>
/// <param name="Device">Where the parameters go; the CPU when null.</param>
public sealed record CheckpointPart(
    IReadOnlyDictionary<string, long[]> Shapes, CheckpointNames? Names = null, ScalarType? DType = null, Device? Device = null);

/// <summary>Takes a model's parameters from a checkpoint.</summary>
/// <remarks>
/// Names and shapes are checked before any value is read, and all that is wrong is listed in one error. Where the types
/// agree, parameters use the mapped file (see <see cref="Checkpoint.Read"/>). The checkpoint must stay open until the
/// model is built, and may be closed then.
/// </remarks>
/// <example><code>
/// var recorder = new ShapeRecorder();
/// new Mamba(recorder.Root, config).Dispose();
/// using var checkpoint = Checkpoint.Open(folder);
/// var model = new Mamba(new CheckpointParameters(checkpoint, recorder.Shapes, CheckpointNames.Mamba).Root, config);
/// </code></example>
public sealed class CheckpointParameters : ParameterSource
{
    private const int ListedPerKind = 20;

    private readonly Checkpoint _checkpoint;
    private readonly CheckpointPart _part;
    private readonly Dictionary<string, string?> _sources; // the checkpoint's name by the model's; null: initial values
    private readonly HashSet<string> _taken = [];

    /// <summary>Checks that the checkpoint holds the model's parameters and nothing else.</summary>
    /// <param name="checkpoint">The checkpoint; it stays the caller's.</param>
    /// <param name="shapes">What the model asks for: <see cref="ShapeRecorder.Shapes"/>.</param>
    /// <param name="names">How the checkpoint's names differ from the model's; null: not at all.</param>
    /// <param name="dtype">The precision of the parameters that are not kept in float32; float32 when null.</param>
    /// <param name="device">Where the parameters go; the CPU when null.</param>
    /// <exception cref="CheckpointException">Tensors are missing, unexpected or misshapen; the message lists them.</exception>
    public CheckpointParameters(Checkpoint checkpoint, IReadOnlyDictionary<string, long[]> shapes,
        CheckpointNames? names = null, ScalarType? dtype = null, Device? device = null)
        : this(checkpoint, new CheckpointPart(shapes, names, dtype, device))
    {
        new Fit(checkpoint).Check([this]);
    }

    private CheckpointParameters(Checkpoint checkpoint, CheckpointPart part)
    {
        ArgumentNullException.ThrowIfNull(checkpoint);
        ArgumentNullException.ThrowIfNull(part);
        ArgumentNullException.ThrowIfNull(part.Shapes);
        if (part.DType is { } type && !ElementTypes.IsFloat(type))
            throw new ArgumentException($"Parameters are floating-point numbers; found {type}.", nameof(part));
        (_checkpoint, _part, _sources) = (checkpoint, part, []);
    }

    /// <summary>Several models from one checkpoint, which must hold their parameters and nothing else.</summary>
    /// <param name="checkpoint">The checkpoint; it stays the caller's.</param>
    /// <param name="parts">The models, with prefixes that keep their names apart.</param>
    /// <returns>The source of each part, in their order.</returns>
    /// <exception cref="CheckpointException">Tensors are missing, unexpected or misshapen; the message lists them.</exception>
    public static IReadOnlyList<CheckpointParameters> ForParts(Checkpoint checkpoint, params IReadOnlyList<CheckpointPart> parts)
    {
        ArgumentNullException.ThrowIfNull(parts);
        var sources = parts.Select(p => new CheckpointParameters(checkpoint, p)).ToArray();
        new Fit(checkpoint).Check(sources);
        return sources;
    }

    /// <inheritdoc/>
    public override Parameter Take(string name, long[] shape, ParameterInitializer initial, bool keepFloat32)
    {
        ArgumentNullException.ThrowIfNull(name);
        ArgumentNullException.ThrowIfNull(shape);
        ArgumentNullException.ThrowIfNull(initial);
        if (!_sources.TryGetValue(name, out var source) || !_part.Shapes[name].AsSpan().SequenceEqual(shape))
            throw new InvalidOperationException($"The parameter '{name}' [{string.Join(", ", shape)}] was not among the shapes that were checked; record the shapes with the same configuration.");
        if (!_taken.Add(name)) throw new InvalidOperationException($"The parameter '{name}' is asked for twice.");

        var type = keepFloat32 ? ScalarType.Float32 : _part.DType ?? ScalarType.Float32;
        if (source is not null) return new Parameter(_checkpoint.Read(source, type, _part.Device), requires_grad: false);

        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        var values = empty(shape, dtype: ScalarType.Float32);
        using var random = new Generator((ulong)_taken.Count);
        initial(values, random);
        return new Parameter(values.to(type).to(_part.Device ?? CPU).MoveToOuterDisposeScope(), requires_grad: false);
    }

    /// <summary>Compares what models ask for with what a checkpoint holds.</summary>
    private sealed class Fit(Checkpoint checkpoint)
    {
        private readonly List<string> _missing = [], _misshapen = [], _unequal = [];
        private readonly HashSet<string> _claimed = [];

        public void Check(IReadOnlyList<CheckpointParameters> parts)
        {
            foreach (var part in parts)
                foreach (var (name, shape) in part._part.Shapes)
                    part._sources.Add(name, FindSource(part._part, name, shape));

            var unexpected = checkpoint.Tensors.Values
                .Where(t => !_claimed.Contains(t.Name) && !parts.Any(p => IsIgnored(p._part, t.Name)))
                .Select(Describe).ToList();
            if (_missing.Count + unexpected.Count + _misshapen.Count + _unequal.Count == 0) return;

            var message = new StringBuilder(
                $"does not fit the model: of {parts.Sum(p => p._part.Shapes.Count)} parameters {_missing.Count} are missing and {_misshapen.Count} misshapen; " +
                $"of {checkpoint.Tensors.Count} tensors {unexpected.Count} are unexpected.");
            List(message, "Missing", _missing);
            List(message, "Misshapen", _misshapen);
            List(message, "Unexpected", unexpected);
            List(message, "Tied, but not equal", _unequal);
            throw new CheckpointException(checkpoint.Path, null, message.ToString());
        }

        private string? FindSource(CheckpointPart part, string name, long[] shape)
        {
            var candidates = Candidates(part, name).Where(checkpoint.Tensors.ContainsKey).ToList();
            if (candidates.Count == 0)
            {
                var names = part.Names ?? new();
                if (!CheckpointNames.Matches(names.MayBeMissing, name)) _missing.Add($"{names.Prefix}{name} [{string.Join(", ", shape)}]");
                return null;
            }
            foreach (var candidate in candidates)
            {
                var entry = checkpoint.Tensors[candidate];
                if (!_claimed.Add(candidate)) throw new ArgumentException($"Two parts claim the tensor '{candidate}'; give them different prefixes.");
                if (!entry.Shape.SequenceEqual(shape) || !ElementTypes.IsFloat(entry.DType))
                    _misshapen.Add($"{Describe(entry)}, expected floating-point [{string.Join(", ", shape)}]");
                else if (candidate != candidates[0] && _misshapen.Count == 0 && !Equal(candidates[0], candidate))
                    _unequal.Add($"{candidate} and {candidates[0]}");
            }
            return candidates[0];
        }

        private static IEnumerable<string> Candidates(CheckpointPart part, string name)
        {
            var names = part.Names ?? new();
            yield return names.Prefix + name;
            foreach (var group in names.SameParameter)
            {
                if (!group.Contains(name)) continue;
                foreach (var other in group)
                    if (!part.Shapes.ContainsKey(other)) yield return names.Prefix + other;
            }
        }

        private bool Equal(string a, string b)
            => checkpoint.Tensors[a].DType == checkpoint.Tensors[b].DType && checkpoint.Stored(a).HasSameBytes(checkpoint.Stored(b));

        private static bool IsIgnored(CheckpointPart part, string name)
            => part.Names is { } names && name.StartsWith(names.Prefix, StringComparison.Ordinal)
                && CheckpointNames.Matches(names.Ignored, name[names.Prefix.Length..]);

        private static string Describe(TensorEntry t) => $"{CheckpointException.Quote(t.Name)[1..^1]} {ElementTypes.Name(t.DType)} [{string.Join(", ", t.Shape)}]";

        private static void List(StringBuilder message, string title, List<string> items)
        {
            if (items.Count == 0) return;
            message.Append($"\n{title}:");
            foreach (var item in items.Take(ListedPerKind)) message.Append("\n  ").Append(item);
            if (items.Count > ListedPerKind) message.Append($"\n  and {items.Count - ListedPerKind} more");
        }
    }
}
