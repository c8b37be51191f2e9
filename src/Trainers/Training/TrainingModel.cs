using MambaVL.Models;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Training;

/// <summary>The copy of a model that learns, and its loss.</summary>
internal sealed class TrainingModel : IDisposable
{
    private readonly VisionLanguageConfig _config;
    private readonly ScalarType _resultPrecision;
    private readonly Tensor _mean, _std, _whole;
    private readonly FeatureStore? _features;
    private readonly LoraOptions? _lora;
    private readonly LoraAdapters? _adapters;

    /// <param name="options">The model to start from, and what of it learns.</param>
    /// <param name="config">From <see cref="ConfigOf"/>.</param>
    /// <param name="seesPicturesAgain">Whether what a frozen encoder made of a picture is worth keeping.</param>
    public TrainingModel(TrainingOptions options, VisionLanguageConfig config, bool seesPicturesAgain = true)
    {
        var origin = options.Model;
        (_config, Tokenizer) = (config, origin.Tokenizer);
        Device = origin.Device;
        Precision = options.Precision switch
        {
            TrainingPrecision.Float32 => ScalarType.Float32,
            TrainingPrecision.BFloat16 => ScalarType.BFloat16,
            _ => Device.type == DeviceType.CPU ? ScalarType.Float32 : ScalarType.BFloat16,
        };
        _resultPrecision = origin.Connector.parameters().First().dtype;
        var values = origin.NamedParameters().ToDictionary(p => p.Name, p => (Tensor)p.Parameter);
        _lora = options.Adapters;
        var plan = ParameterPlan.Of(config, Tokenizer, _lora);
        Parameters = new(plan, options.Share, name => values.GetValueOrDefault(name), Precision, Device);
        Model = VisionLanguageModel.Build(config, Tokenizer, Parameters);
        if (_lora is not null)
        {
            _adapters = LoraAdapters.Attach(Model, _lora);
            foreach (var (name, parameter) in _adapters.NamedParameters()) Parameters.Adopt(name, parameter);
        }
        if (!Model.Vision.parameters().Any(p => p.requires_grad)) _features = new(seesPicturesAgain ? options.FeatureMemory : 0);
        var images = config.Images;
        _mean = tensor(images.Mean.ToArray()).view(1, 3, 1, 1).to(Device).DetachFromDisposeScope();
        _std = tensor(images.Std.ToArray()).view(1, 3, 1, 1).to(Device).DetachFromDisposeScope();
        _whole = tensor(new[] { 255f }).view(1, 1, 1, 1).to(Device).DetachFromDisposeScope();
    }

    /// <summary>What a run's model is: the origin's sizes, with the changes that the options ask for.</summary>
    public static VisionLanguageConfig ConfigOf(TrainingOptions options)
    {
        var config = options.Model.Config;
        if (options.ImageSize is { } size) config = config with { Images = config.Images with { ImageSize = size } };
        if (options.InstructionFirst is { } first) config = config with { InstructionFirst = first };
        if (options.Norm is { } norm && config.Language is MambaConfig mamba) config = config with { Language = mamba with { Norm = norm } };
        return config;
    }

    public Device Device { get; }

    /// <summary>What it computes in.</summary>
    public ScalarType Precision { get; }

    public Prompts.Tokenizer Tokenizer { get; }

    public FlatParameters Parameters { get; }

    /// <summary>The model over the weights that learn: what it says changes with every step.</summary>
    public VisionLanguageModel Model { get; }

    /// <summary>Whether what the encoder makes of the pictures is known already, so that their pixels are not needed.</summary>
    public bool HasFeatures(MicroBatch batch) => _features?.Has(batch) ?? false;

    /// <summary>The loss of a micro-batch, a scalar of float32: its part of the step's. Records gradients where they are enabled.</summary>
    public Tensor Loss(MicroBatch batch)
    {
        using var patches = Patches(batch);
        return Loss(batch, patches);
    }

    /// <summary>As <see cref="Loss(MicroBatch)"/>, of pictures that were encoded already.</summary>
    /// <param name="batch">The rows.</param>
    /// <param name="patches">[k, n, width], of the batch's distinct pictures.</param>
    internal Tensor Loss(MicroBatch batch, Tensor patches)
    {
        using var scope = NewDisposeScope();
        var x = batch.To(Device);
        var embeddings = Model.Connector.forward(patches);                              // (k, n, d)
        embeddings = embeddings.index_select(0, x.Pictures);                            // (b, n, d)
        var text = Model.Language.EmbedTrusted(x.Ids);                                  // (b, l, d)
        var rows = text.flatten(0, 1).index_copy(0, x.Places, embeddings.to(text.dtype).flatten(0, 1)).view(text.shape); // (b, l, d)
        var logits = Model.Language.LogitsAt(rows, x.Asked);                            // (p, vocabulary)
        return TokenLoss.Of(logits, x.Targets, x.Weights, overwrites: true).MoveToOuterDisposeScope();
    }

    /// <summary>A model of these weights that is independent of this one; the caller owns it.</summary>
    /// <param name="weights">Flat, as <see cref="FlatParameters.Master"/>.</param>
    /// <param name="adapterFile">Where adapters, if there are any, are written by themselves; null: nowhere.</param>
    public VisionLanguageModel Result(Tensor weights, string? adapterFile = null)
    {
        var model = VisionLanguageModel.Build(_config, Tokenizer, Parameters.Copies(weights, _resultPrecision));
        if (_lora is null) return model;
        try
        {
            using var adapters = LoraAdapters.Attach(model, _lora);
            using (no_grad())
                foreach (var (name, parameter) in adapters.NamedParameters())
                {
                    using var learnt = Parameters.View(weights, name);
                    parameter.copy_(learnt);
                }
            if (adapterFile is not null) adapters.Save(adapterFile);
            adapters.Merge();
            return model;
        }
        catch
        {
            model.Dispose();
            throw;
        }
    }

    public void Dispose()
    {
        _adapters?.Dispose();
        Model.Dispose();
        Parameters.Dispose();
        _features?.Dispose();
        _mean.Dispose();
        _std.Dispose();
        _whole.Dispose();
    }

    // (k, n, width). Of a frozen encoder each picture's are made once and kept while there is room.
    private Tensor Patches(MicroBatch batch)
    {
        if (_features is null) return Model.Vision.Encode(Normalize(batch.Pixels!));
        using var noGradients = no_grad();
        if (batch.Pixels is null)
        {
            using var kept = _features.Get(batch, Device);
            return HostTensor.Send(kept, Device);
        }
        var patches = Model.Vision.Encode(Normalize(batch.Pixels));
        _features.Add(batch, patches);
        return patches;
    }

    // (k, size, size, 3) of bytes -> (k, 3, size, size). Dividing by tensors gives ImageProcessor's bits; by numbers, libtorch
    // multiplies with the reciprocal.
    private Tensor Normalize(Tensor pixels)
    {
        using var scope = NewDisposeScope();
        var x = HostTensor.Send(pixels, Device).permute(0, 3, 1, 2).to(ScalarType.Float32);
        return ((x / _whole - _mean) / _std).contiguous().MoveToOuterDisposeScope();
    }

    /// <summary>What a frozen encoder made of pictures, in the computer's memory: the first ones, as many as there is room for.</summary>
    private sealed class FeatureStore(long memory) : IDisposable
    {
        private readonly Dictionary<(PictureStore, int), Tensor> _features = [];
        private readonly Lock _lock = new();
        private long _used;

        // Asked by the thread that prepares batches; what is here stays.
        public bool Has(MicroBatch batch)
        {
            lock (_lock) return Array.TrueForAll(batch.PictureIndices, p => _features.ContainsKey((batch.Pictures, p)));
        }

        // (k, n, width), for the device; the caller owns it.
        public Tensor Get(MicroBatch batch, Device device)
        {
            Tensor[] kept;
            lock (_lock) kept = Array.ConvertAll(batch.PictureIndices, p => _features[(batch.Pictures, p)]);
            var all = HostTensor.Empty([kept.Length, .. kept[0].shape], kept[0].dtype, device);
            for (var i = 0; i < kept.Length; i++)
            {
                using var one = all[i];
                kept[i].bytes.CopyTo(one.bytes);
            }
            return all;
        }

        public void Add(MicroBatch batch, Tensor patches)
        {
            var bytes = patches.numel() / patches.shape[0] * patches.element_size();
            using var scope = NewDisposeScope();
            Tensor? host = null;
            lock (_lock)
                for (var i = 0; i < patches.shape[0]; i++)
                {
                    if (_used + bytes > memory) return;
                    if (_features.ContainsKey((batch.Pictures, batch.PictureIndices[i]))) continue;
                    host ??= patches.cpu();
                    _features.Add((batch.Pictures, batch.PictureIndices[i]), host[i].clone().DetachFromDisposeScope());
                    _used += bytes;
                }
        }

        public void Dispose()
        {
            foreach (var t in _features.Values) t.Dispose();
        }
    }
}
