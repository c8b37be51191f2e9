using MambaVL.Checkpoints;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;
using F = TorchSharp.torch.nn.functional;

namespace MambaVL.Models;

// CLIP's vision transformer (Radford et al., arXiv 2103.00020), with the field names of transformers' CLIPVisionModel, the
// misspelt pre_layrnorm among them.
//
// b      images in the batch
// n, l   patches of an image, row by row; tokens: the class token, then the patches; l = 1 + n
// d      width of a token
// heads  attention heads, each d / heads wide
// m      inner width of the MLP

/// <summary>The CLIP image encoder, of which a vision-language model takes the patches of an earlier layer.</summary>
public sealed class ClipVision : VisionEncoder
{
    private readonly ClipVisionConfig _config;
    private readonly ClipEmbeddings embeddings;
    private readonly Norm pre_layrnorm;
    private readonly ClipEncoder encoder;
    private readonly Norm post_layernorm; // of the pooled class token; the hidden states do not pass through it

    /// <summary>Builds the encoder from the parameters of <paramref name="p"/>.</summary>
    /// <remarks>The names of the module's own parameters have no <c>vision_model.</c> before them, whatever the checkpoint's do.</remarks>
    /// <exception cref="ArgumentException">The configuration contradicts itself, or holds an impossible size.</exception>
    public ClipVision(ClipVisionConfig config, ParameterScope p) : base(nameof(ClipVision))
    {
        ArgumentNullException.ThrowIfNull(config);
        config.ThrowIfImpossible();
        _config = config;
        if (config.OldNames) p = p["vision_model"];
        embeddings = new(p[nameof(embeddings)], config);
        pre_layrnorm = new(p[nameof(pre_layrnorm)], config.Width, config.NormEps, NormKind.LayerNorm);
        encoder = new(p[nameof(encoder)], config);
        post_layernorm = new(p[nameof(post_layernorm)], config.Width, config.NormEps, NormKind.LayerNorm);
        RegisterComponents();
    }

    /// <inheritdoc/>
    public override long Width => _config.Width;

    /// <inheritdoc/>
    public override int PatchSize => _config.PatchSize;

    /// <inheritdoc/>
    public override int ImageSize => _config.ImageSize;

    private protected override Tensor Weight => embeddings.class_embedding;

    /// <summary>What transformers calls <c>hidden_states[index]</c>: [b, 3, h, w] -> [b, 1 + patches, width], the class token
    /// first; -1 is its <c>last_hidden_state</c>. Layers after it are not computed. The caller owns the result.</summary>
    /// <param name="pixelValues">As for <see cref="VisionEncoder.Encode"/>.</param>
    /// <param name="index">0 is what enters the first layer, -1 what leaves the last.</param>
    /// <exception cref="ArgumentOutOfRangeException">There is no such hidden state.</exception>
    public Tensor HiddenState(Tensor pixelValues, int index)
    {
        var layers = LayersBefore(index);
        if (layers < 0 || layers > _config.Depth)
            throw new ArgumentOutOfRangeException(nameof(index), index, $"Hidden states {-_config.Depth - 1} to {_config.Depth} exist.");
        return ImageByImage(pixelValues, images => Run(images, layers));
    }

    private protected override Tensor EncodeImages(Tensor images)
    {
        using var hidden = Run(images, LayersBefore(_config.SelectLayer));
        return hidden[.., 1..].contiguous(); // (b, n, d)
    }

    private int LayersBefore(int index) => index < 0 ? _config.Depth + 1 + index : index;

    private Tensor Run(Tensor images, int layers)
    {
        using var scope = NewDisposeScope();
        var x = pre_layrnorm.forward(embeddings.forward(images)); // (b, l, d)
        return encoder.Forward(x, layers).MoveToOuterDisposeScope();
    }
}

/// <summary>Projected patches behind the class token, each with its learned position.</summary>
internal sealed class ClipEmbeddings : nn.Module<Tensor, Tensor>
{
    private readonly int _patchSize;
    private readonly int _side;
    private readonly PatchProjection patch_embedding;
    private readonly Embedding position_embedding;

    public readonly Parameter class_embedding; // (d)

    public ClipEmbeddings(ParameterScope p, ClipVisionConfig config) : base(nameof(ClipEmbeddings))
    {
        _patchSize = config.PatchSize;
        _side = config.ImageSize / config.PatchSize;
        class_embedding = p.Take(nameof(class_embedding), [config.Width], Initial.Normal(0.02));
        patch_embedding = new(p[nameof(patch_embedding)], config.PatchSize, config.Width, hasBias: false);
        position_embedding = new(p[nameof(position_embedding)], 1 + (long)_side * _side, config.Width);
        RegisterComponents();
    }

    public override Tensor forward(Tensor images)
    {
        using var scope = NewDisposeScope();
        var patches = patch_embedding.forward(images);                                     // (b, n, d)
        var tokens = cat([class_embedding.expand(patches.shape[0], 1, -1), patches], 1);   // (b, l, d)
        return (tokens + Positions(images.shape[2] / _patchSize, images.shape[3] / _patchSize)).MoveToOuterDisposeScope();
    }

    // Another grid than the checkpoint's: as transformers' interpolate_pos_encoding does it, bicubic without antialiasing.
    internal Tensor Positions(long rows, long cols)
    {
        var own = position_embedding.weight;                                               // (1 + side * side, d)
        if (rows == _side && cols == _side) return own;
        var grid = own[1..].to(ScalarType.Float32).reshape(1, _side, _side, -1).permute(0, 3, 1, 2);
        grid = F.interpolate(grid, [rows, cols], mode: InterpolationMode.Bicubic, align_corners: false);
        return cat([own[..1], grid.flatten(2)[0].transpose(0, 1).to(own.dtype)]);          // (l, d)
    }
}

/// <summary>The layers.</summary>
internal sealed class ClipEncoder : nn.Module
{
    private readonly ModuleList<ClipLayer> layers;

    public ClipEncoder(ParameterScope p, ClipVisionConfig config) : base(nameof(ClipEncoder))
    {
        layers = new([.. Enumerable.Range(0, config.Depth).Select(i => new ClipLayer(p[nameof(layers)][i], config))]);
        RegisterComponents();
    }

    /// <summary>The first <paramref name="count"/> layers.</summary>
    public Tensor Forward(Tensor x, int count)
    {
        for (var i = 0; i < count; i++)
        {
            using var before = x;
            x = layers[i].forward(before);
        }
        return x;
    }
}

/// <summary>Attention and an MLP, each on a normalised copy of the stream that it adds to.</summary>
internal sealed class ClipLayer : nn.Module<Tensor, Tensor>
{
    private readonly Norm layer_norm1, layer_norm2;
    private readonly ClipAttention self_attn;
    private readonly ClipMlp mlp;

    public ClipLayer(ParameterScope p, ClipVisionConfig config) : base(nameof(ClipLayer))
    {
        layer_norm1 = new(p[nameof(layer_norm1)], config.Width, config.NormEps, NormKind.LayerNorm);
        self_attn = new(p[nameof(self_attn)], config);
        layer_norm2 = new(p[nameof(layer_norm2)], config.Width, config.NormEps, NormKind.LayerNorm);
        mlp = new(p[nameof(mlp)], config);
        RegisterComponents();
    }

    public override Tensor forward(Tensor x)
    {
        using var scope = NewDisposeScope();
        x = x + self_attn.forward(layer_norm1.forward(x));
        return (x + mlp.forward(layer_norm2.forward(x))).MoveToOuterDisposeScope(); // (b, l, d)
    }
}

/// <summary>Multi-head attention of every token to every token.</summary>
internal sealed class ClipAttention : nn.Module<Tensor, Tensor>
{
    private readonly long _heads;
    private readonly Linear q_proj, k_proj, v_proj, out_proj;

    public ClipAttention(ParameterScope p, ClipVisionConfig config) : base(nameof(ClipAttention))
    {
        _heads = config.Heads;
        q_proj = new(p[nameof(q_proj)], config.Width, config.Width);
        k_proj = new(p[nameof(k_proj)], config.Width, config.Width);
        v_proj = new(p[nameof(v_proj)], config.Width, config.Width);
        out_proj = new(p[nameof(out_proj)], config.Width, config.Width);
        RegisterComponents();
    }

    public override Tensor forward(Tensor x)
    {
        using var scope = NewDisposeScope();
        var y = F.scaled_dot_product_attention(Heads(q_proj.forward(x)), Heads(k_proj.forward(x)), Heads(v_proj.forward(x)));
        y = y.transpose(1, 2).reshape(x.shape);               // (b, l, d)
        return out_proj.forward(y).MoveToOuterDisposeScope();

        Tensor Heads(Tensor t) => t.reshape(t.shape[0], t.shape[1], _heads, -1).transpose(1, 2); // (b, heads, l, d / heads)
    }
}

/// <summary>Two projections with an activation between them.</summary>
internal sealed class ClipMlp : nn.Module<Tensor, Tensor>
{
    private readonly ClipActivation _activation;
    private readonly Linear fc1, fc2;

    public ClipMlp(ParameterScope p, ClipVisionConfig config) : base(nameof(ClipMlp))
    {
        _activation = config.Activation;
        fc1 = new(p[nameof(fc1)], config.Width, config.MlpWidth);
        fc2 = new(p[nameof(fc2)], config.MlpWidth, config.Width);
        RegisterComponents();
    }

    public override Tensor forward(Tensor x)
    {
        using var scope = NewDisposeScope();
        x = fc1.forward(x);                                                              // (b, l, m)
        x = _activation == ClipActivation.Gelu ? F.gelu(x) : x * (x * 1.702).sigmoid();
        return fc2.forward(x).MoveToOuterDisposeScope();                                 // (b, l, d)
    }
}
