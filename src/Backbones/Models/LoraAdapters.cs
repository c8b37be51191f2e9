// LoRA (arXiv 2106.09685): beside a frozen weight W stands a product of two narrow matrices, and only these learn.
//
//   here   paper   what it is
//   W      W0      the weight, (out, in), frozen
//   A      A       (r, in), random at first
//   B      B       (out, r), zero at first: what was attached changes nothing yet
//   scale  alpha/r how much of it counts
//
//   y = W x + scale B A x, or, once merged, (W + scale B A) x

using System.Globalization;
using MambaVL.Checkpoints;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;
using F = TorchSharp.torch.nn.functional;

namespace MambaVL.Models;

/// <summary>Low-rank adapters beside the projections of a model's language model: the few parameters that learn while the
/// model itself is frozen. Saved by themselves, or merged into the weights.</summary>
/// <remarks>
/// While they are attached, everything that the model computes counts them in, and a token is decoded by tensor operations:
/// the kernels read weights alone, and stand back until <see cref="Merge"/> or <see cref="Dispose"/>. The model cannot be
/// saved meanwhile, for its own weights are not all of it. Attach, merge and dispose while nobody else uses the model.
/// The parameters are float32 whatever the precision of the model; products are computed in the model's.
/// </remarks>
/// <example><code>
/// using var adapters = LoraAdapters.Attach(model, new() { Rank = 8, Alpha = 16 });
/// // ... learn adapters.NamedParameters() ...
/// adapters.Save("lora.safetensors");
/// adapters.Merge();                        // and the model decodes as fast as before
/// </code></example>
public sealed class LoraAdapters : IDisposable
{
    // The names are those of the peft library, so that its users know what they see.
    private const string Prefix = "base_model.model.", SuffixA = ".lora_A.weight", SuffixB = ".lora_B.weight";
    private const string RankKey = "r", AlphaKey = "lora_alpha", DropoutKey = "lora_dropout";

    private readonly LanguageModel _language;
    private readonly List<(string Name, Linear Linear, LowRank Adapter)> _attached = [];
    private bool _disposed;

    private LoraAdapters(LanguageModel language, LoraOptions options, IEnumerable<(string Name, Linear Linear)> targets)
    {
        (_language, Options) = (language, options);
        using var normal = inference_mode(false); // parameters that record gradients, whoever calls
        using var noGradients = no_grad();
        var source = new RandomParameters(options.Seed);
        foreach (var (name, linear) in targets)
            _attached.Add((name, linear, new(linear.weight, options, source)));

        foreach (var parameter in language.parameters()) parameter.requires_grad = false;
        foreach (var (_, linear, adapter) in _attached) linear.Adapter = adapter;
        language.Adapters = this;
    }

    /// <summary>What they were attached with.</summary>
    public LoraOptions Options { get; }

    /// <summary>Puts new adapters beside the projections of a model, and freezes every parameter of its language model. The
    /// model computes what it did before, until they learn.</summary>
    /// <param name="model">The model; it stays the caller's.</param>
    /// <param name="options">Size and places; the defaults when null.</param>
    /// <returns>The adapters; the caller owns them. Disposed, they leave the model as it was, but frozen.</returns>
    /// <exception cref="ArgumentException">An option is out of its range, or names no projection of the model.</exception>
    /// <exception cref="InvalidOperationException">The model has adapters.</exception>
    public static LoraAdapters Attach(VisionLanguageModel model, LoraOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(model);
        options ??= new();
        options.Check();
        if (model.Language.HasAdapters)
            throw new InvalidOperationException("The model has adapters already; merge them or dispose of them first.");

        // The head is a projection too, but of no layer: its name has one part.
        var projections = model.Language.named_modules()
            .Where(m => m.module is Linear && m.name.Contains('.'))
            .Select(m => (Name: m.name, Linear: (Linear)m.module)).ToList();
        var kinds = projections.Select(p => LastPart(p.Name)).Distinct().ToList();
        foreach (var target in options.Targets)
            if (!kinds.Contains(target))
                throw new ArgumentException($"{nameof(LoraOptions)}.{nameof(LoraOptions.Targets)} names '{target}'; the projections of this {model.Language.GetType().Name} are {string.Join(", ", kinds)}.", nameof(options));
        return new(model.Language, options, projections.Where(p => options.Targets.Count == 0 || options.Targets.Contains(LastPart(p.Name))));
    }

    /// <summary>Attaches adapters that <see cref="Save"/> wrote, with the rank, the scale and the projections that they had.</summary>
    /// <param name="model">The model that they were learnt on; it stays the caller's.</param>
    /// <param name="path">The file.</param>
    /// <returns>The adapters; the caller owns them.</returns>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="CheckpointException">The file is damaged, was not written by <see cref="Save"/>, or belongs to a
    /// model of other sizes; all that is missing, unexpected or misshapen is listed.</exception>
    /// <exception cref="InvalidOperationException">The model has adapters.</exception>
    public static LoraAdapters Load(VisionLanguageModel model, string path)
    {
        ArgumentNullException.ThrowIfNull(model);
        LoraOptions options;
        using (var checkpoint = Checkpoint.Open(path)) options = OptionsOf(checkpoint);
        LoraAdapters adapters;
        try
        {
            adapters = Attach(model, options);
        }
        catch (ArgumentException e)
        {
            throw new CheckpointException(path, null, $"does not fit the model: {e.Message}", e);
        }
        try
        {
            adapters.Load(path);
            return adapters;
        }
        catch
        {
            adapters.Dispose();
            throw;
        }
    }

    /// <summary>What learns, by its name in the file: <c>base_model.model.(projection).lora_A.weight</c> [r, in] and
    /// <c>lora_B.weight</c> [out, r], all float32. They stay the adapters'.</summary>
    public IEnumerable<(string Name, Parameter Parameter)> NamedParameters()
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        return _attached.SelectMany(a => new[] { (Prefix + a.Name + SuffixA, a.Adapter.A), (Prefix + a.Name + SuffixB, a.Adapter.B) });
    }

    internal static bool IsParameter(string name) => name.StartsWith(Prefix, StringComparison.Ordinal);

    /// <summary>Writes the adapters, and nothing of the model, to a .safetensors file: whole, or not at all. Rank and scale are in
    /// its metadata.</summary>
    /// <param name="path">The file; one that is there is replaced.</param>
    /// <exception cref="IOException">The file could not be written. What was there before is unchanged.</exception>
    /// <exception cref="ObjectDisposedException">They were merged or disposed of.</exception>
    public void Save(string path) => SafetensorsWriter.Write(path, NamedParameters().ToDictionary(p => p.Name, p => (Tensor)p.Parameter), new Dictionary<string, string>
    {
        ["format"] = "pt",
        [RankKey] = Options.Rank.ToString(CultureInfo.InvariantCulture),
        [AlphaKey] = Options.Alpha.ToString("r", CultureInfo.InvariantCulture),
        [DropoutKey] = Options.Dropout.ToString("r", CultureInfo.InvariantCulture),
    });

    /// <summary>Takes the values of a file into these adapters, whose parameters stay the same objects.</summary>
    /// <param name="path">A file that <see cref="Save"/> wrote, or the adapter_model.safetensors of another program if it has
    /// the same names.</param>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="CheckpointException">The file is damaged, has another rank or scale, or other projections; nothing was changed.</exception>
    /// <exception cref="ObjectDisposedException">They were merged or disposed of.</exception>
    public void Load(string path)
    {
        var parameters = NamedParameters().ToList();
        using var checkpoint = Checkpoint.Open(path);
        CheckSame(checkpoint, RankKey, Options.Rank, nameof(LoraOptions.Rank));
        CheckSame(checkpoint, AlphaKey, Options.Alpha, nameof(LoraOptions.Alpha));
        var source = new CheckpointParameters(checkpoint, parameters.ToDictionary(p => p.Name, p => p.Parameter.shape));
        using var noGradients = no_grad();
        foreach (var (name, parameter) in parameters)
        {
            using var values = source.Take(name, parameter.shape, Initial.Zeros, keepFloat32: true);
            parameter.copy_(values);
        }
    }

    /// <summary>Adds what was learnt to the weights, rounded to their precision, and detaches: the model is as fast as before, and
    /// can be saved. The adapters are disposed of.</summary>
    /// <exception cref="ObjectDisposedException">They were merged or disposed of.</exception>
    public void Merge()
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        using (no_grad())
            foreach (var (_, linear, adapter) in _attached)
            {
                using var scope = NewDisposeScope();
                linear.weight.copy_(linear.weight.to(ScalarType.Float32) + adapter.Difference()); // (out, in)
            }
        Dispose();
    }

    /// <summary>Detaches and frees the adapters. What was not merged or saved is lost.</summary>
    public void Dispose()
    {
        if (_disposed) return;
        _disposed = true;
        _language.Adapters = null;
        foreach (var (_, linear, adapter) in _attached)
        {
            linear.Adapter = null;
            adapter.Dispose();
        }
    }

    private static string LastPart(string name) => name[(name.LastIndexOf('.') + 1)..];

    private static LoraOptions OptionsOf(Checkpoint checkpoint)
    {
        if (Number(checkpoint, RankKey) is not { } rank || Number(checkpoint, AlphaKey) is not { } alpha)
            throw new CheckpointException(checkpoint.Path, null, $"has no '{RankKey}' and '{AlphaKey}' in its metadata, and the scale is nowhere else; attach adapters with the {nameof(LoraOptions)} that it was learnt with, and load it into these.");
        return new()
        {
            Rank = rank is >= 1 and <= int.MaxValue ? (int)rank : 0,
            Alpha = alpha,
            Dropout = Number(checkpoint, DropoutKey) ?? 0,
            Targets = [.. checkpoint.Tensors.Keys.Where(n => n.EndsWith(SuffixA, StringComparison.Ordinal)).Select(n => LastPart(n[..^SuffixA.Length])).Distinct().Order(StringComparer.Ordinal)],
        };
    }

    private static void CheckSame(Checkpoint checkpoint, string key, double ours, string option)
    {
        if (Number(checkpoint, key) is { } theirs && theirs != ours)
            throw new CheckpointException(checkpoint.Path, null, string.Create(CultureInfo.InvariantCulture, $"has {option} {theirs}, and the adapters were attached with {ours}; attach them with the file's."));
    }

    private static double? Number(Checkpoint checkpoint, string key)
    {
        if (!checkpoint.Metadata.TryGetValue(key, out var text)) return null;
        return double.TryParse(text, NumberStyles.Float, CultureInfo.InvariantCulture, out var number) ? number
            : throw new CheckpointException(checkpoint.Path, null, $"has {CheckpointException.Quote(text)} as '{key}' in its metadata; expected a number.");
    }
}

/// <summary>What is learnt beside one weight.</summary>
internal sealed class LowRank : IDisposable
{
    public readonly Parameter A; // (r, in)
    public readonly Parameter B; // (out, r)
    private readonly double _scale, _dropout;

    public LowRank(Tensor weight, LoraOptions options, RandomParameters source)
    {
        var (width, height) = (weight.shape[1], weight.shape[0]);
        (_scale, _dropout) = (options.Alpha / options.Rank, options.Dropout);
        A = Make([options.Rank, width], Initial.FanIn(width));
        B = Make([height, options.Rank], Initial.Zeros);

        // Owned by this object, not by the scope that it is made in.
        Parameter Make(long[] shape, ParameterInitializer initial)
        {
            using var values = source.Take("", shape, initial, keepFloat32: true);
            return (Parameter)new Parameter(values.to(weight.device, copy: true), requires_grad: true).DetachFromDisposeScope();
        }
    }

    /// <summary>(..., in) -> (..., out)</summary>
    public Tensor Rows(Tensor x)
    {
        using var scope = NewDisposeScope();
        var narrow = F.linear(Thinned(x), A.to(x.dtype)) * _scale;                // (..., r)
        return F.linear(narrow, B.to(x.dtype)).MoveToOuterDisposeScope();         // (..., out)
    }

    /// <summary>(in, l) -> (out, l), (b, in, l) -> (b, out, l)</summary>
    public Tensor Columns(Tensor x)
    {
        using var scope = NewDisposeScope();
        var narrow = A.to(x.dtype).matmul(Thinned(x)) * _scale;                   // (..., r, l)
        return B.to(x.dtype).matmul(narrow).MoveToOuterDisposeScope();            // (..., out, l)
    }

    /// <summary>What is added to the weight, float32: (out, in).</summary>
    public Tensor Difference()
    {
        using var scope = NewDisposeScope();
        return (B.mm(A) * _scale).MoveToOuterDisposeScope();
    }

    public void Dispose()
    {
        A.Dispose();
        B.Dispose();
    }

    // By the recording of gradients rather than by a mode of the module: a model that answers never leaves anything out.
    private Tensor Thinned(Tensor x) => _dropout > 0 && is_grad_enabled() ? F.dropout(x, _dropout, training: true) : x;
}
