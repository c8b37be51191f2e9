using MambaVL.Checkpoints;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;
using F = TorchSharp.torch.nn.functional;

namespace MambaVL.Models;

// The leaves that every model here is made of. TorchSharp's own Linear, LayerNorm and Embedding fill themselves with
// random numbers when they are built; these take their parameters from a ParameterScope instead.

/// <summary>First values of parameters.</summary>
internal static class Initial
{
    public static void Zeros(Tensor t, Generator random) => t.fill_(0);

    public static void Ones(Tensor t, Generator random) => t.fill_(1);

    /// <summary>Normal with the given standard deviation.</summary>
    public static ParameterInitializer Normal(double std) => (t, random) => t.normal_(0, std, random);

    /// <summary>Uniform within 1/sqrt(fanIn), what PyTorch gives a Linear.</summary>
    public static ParameterInitializer FanIn(long fanIn) 
        => (t, random) => t.uniform_(-1 / Math.Sqrt(fanIn), 1 / Math.Sqrt(fanIn), random);
}

/// <summary>y = x Wᵀ + b</summary>
internal sealed class Linear : nn.Module<Tensor, Tensor>
{
    public readonly Parameter weight; // (out, in)
    public readonly Parameter? bias;  // (out)

    /// <summary>What is learnt beside the weight; null: nothing. It is no part of the module: no parameter of it is the model's.</summary>
    public LowRank? Adapter { get; set; }

    public Linear(ParameterScope p, long inFeatures, long outFeatures, bool hasBias = true,
        ParameterInitializer? initial = null, ParameterInitializer? initialBias = null, bool biasFloat32 = false) : base(nameof(Linear))
    {
        weight = p.Take(nameof(weight), [outFeatures, inFeatures], initial ?? Initial.FanIn(inFeatures));
        if (hasBias) bias = p.Take(nameof(bias), [outFeatures], initialBias ?? Initial.Zeros, biasFloat32);
        RegisterComponents();
    }

    public override Tensor forward(Tensor x)
    {
        if (Adapter is null) return Product(x, weight, bias);
        using var scope = NewDisposeScope();
        return (Product(x, weight, bias) + Adapter.Rows(x)).MoveToOuterDisposeScope();
    }

    /// <summary>x Wᵀ + b: [..., in] -> [..., out].</summary>
    /// <remarks>libtorch's linear adds the bias to a result of three axes in a pass of its own; of a matrix it adds it within the
    /// product. On a GPU that pass cost a third of EVA-02's time. On the CPU the bits stay as they were.</remarks>
    public static Tensor Product(Tensor x, Tensor weight, Tensor? bias)
    {
        if (bias is null || x.dim() <= 2 || x.device_type != DeviceType.CUDA) return F.linear(x, weight, bias);
        using var scope = NewDisposeScope();
        var y = F.linear(x.reshape(-1, x.size(-1)), weight, bias);                      // (rows, out)
        return y.view([.. x.shape[..^1], weight.size(0)]).MoveToOuterDisposeScope();
    }

    /// <summary>The product with inputs that stand in columns, without the bias: (in, l) -> (out, l), (b, in, l) -> (b, out, l).</summary>
    public Tensor Columns(Tensor x)
    {
        if (Adapter is null) return weight.matmul(x);
        using var scope = NewDisposeScope();
        return (weight.matmul(x) + Adapter.Columns(x)).MoveToOuterDisposeScope();
    }
}

/// <summary>A table of vectors, one for each id.</summary>
internal sealed class Embedding : nn.Module<Tensor, Tensor>
{
    public readonly Parameter weight; // (vocab, d)

    public Embedding(ParameterScope p, long vocabularySize, long width, double std = 0.02) : base(nameof(Embedding))
    {
        weight = p.Take(nameof(weight), [vocabularySize, width], Initial.Normal(std));
        RegisterComponents();
    }

    public override Tensor forward(Tensor ids)
    {
        using var flat = ids.reshape(-1);
        using var rows = weight.index_select(0, flat);
        return rows.reshape([.. ids.shape, weight.shape[1]]); // (...) -> (..., d)
    }
}

/// <summary>LayerNorm, or RMSNorm when it is built without a bias.</summary>
internal sealed class Norm : nn.Module<Tensor, Tensor>
{
    public readonly Parameter weight; // (d)
    public readonly Parameter? bias;  // (d); its absence is what makes an RMSNorm
    public readonly double eps;

    public Norm(ParameterScope p, long width, double eps, NormKind kind) : base(nameof(Norm))
    {
        this.eps = eps;
        weight = p.Take(nameof(weight), [width], Initial.Ones);
        if (kind == NormKind.LayerNorm) bias = p.Take(nameof(bias), [width], Initial.Zeros);
        RegisterComponents();
    }

    // Computed in float32 whatever the input's precision, as mamba_ssm and transformers do; the result has the weight's.
    public override Tensor forward(Tensor x)
    {
        // Of one low precision throughout, libtorch's own layer_norm computes in float32 inside, and saves three copies.
        if (bias is not null && x.dtype == weight.dtype) return F.layer_norm(x, [x.shape[^1]], weight, bias, eps);
        using var scope = NewDisposeScope();
        var wide = x.to(ScalarType.Float32);
        Tensor y;
        if (bias is not null)
            y = F.layer_norm(wide, [wide.shape[^1]], weight.to(ScalarType.Float32), bias.to(ScalarType.Float32), eps);
        else
            y = wide * rsqrt(wide.square().mean([-1], keepdim: true) + eps) * weight.to(ScalarType.Float32);
        return y.to(weight.dtype).MoveToOuterDisposeScope();
    }
}

/// <summary>The two normalisations of the language models.</summary>
public enum NormKind
{
    /// <summary>x / rms(x), scaled.</summary>
    RmsNorm,

    /// <summary>(x - mean) / standard deviation, scaled and shifted.</summary>
    LayerNorm,
}
