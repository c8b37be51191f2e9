using MambaVL.Checkpoints;
using MambaVL.Cuda;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;
using F = TorchSharp.torch.nn.functional;

namespace MambaVL.Models;

// EVA-02 (Fang et al., arXiv 2303.11331), with the field names of timm's models/eva.py.
//
// b           images in the batch
// h, w        pixels; rows, cols: the grid of patches; n = rows * cols
// l           tokens of an image: the class token, then the patches row by row; l = 1 + n
// d           width of a token
// heads, k    attention heads and the width of one; heads * k = d
// m           inner width of the gated MLP (SwiGLU)
// rotary      for each token and pair of channels of a head, a complex number of length 1: the angle that the pair is turned by

/// <summary>The EVA-02 image encoder: a vision transformer with gated MLPs, learned absolute positions, and two-dimensional
/// rotary positions in each attention.</summary>
public sealed class Eva02 : VisionEncoder
{
    private readonly Eva02Config _config;
    private readonly Eva02RotaryTables _rotaryTables;
    private readonly Eva02PatchEmbedding patch_embed;
    private readonly Parameter cls_token; // (1, 1, d)
    private readonly Parameter pos_embed; // (1, l, d)
    private readonly ModuleList<Eva02Block> blocks;
    private readonly Norm? norm;
    private readonly Norm? fc_norm; // where a classifier pools the patches; the features do not pass through it

    /// <summary>Builds the encoder from the parameters of <paramref name="p"/>.</summary>
    /// <exception cref="ArgumentException">The configuration contradicts itself, or holds an impossible size.</exception>
    public Eva02(Eva02Config config, ParameterScope p) : base(nameof(Eva02))
    {
        ArgumentNullException.ThrowIfNull(config);
        config.ThrowIfImpossible();
        _config = config;
        _rotaryTables = new(config.Width / config.Heads, config.ReferenceGrid);
        var grid = config.ImageSize / config.PatchSize;
        patch_embed = new(p[nameof(patch_embed)], config);
        cls_token = p.Take(nameof(cls_token), [1, 1, config.Width], Initial.Normal(0.02));
        pos_embed = p.Take(nameof(pos_embed), [1, 1 + (long)grid * grid, config.Width], Eva02Initial.Positions(grid));
        blocks = new([.. Enumerable.Range(0, config.Depth).Select(i => new Eva02Block(p[nameof(blocks)][i], config))]);
        if (config.FinalNorm) norm = new(p[nameof(norm)], config.Width, Eva02Config.NormEps, NormKind.LayerNorm);
        else fc_norm = new(p[nameof(fc_norm)], config.Width, Eva02Config.NormEps, NormKind.LayerNorm);
        RegisterComponents();
    }

    /// <inheritdoc/>
    public override long Width => _config.Width;

    /// <inheritdoc/>
    public override int PatchSize => _config.PatchSize;

    /// <inheritdoc/>
    public override int ImageSize => _config.ImageSize;

    private protected override Tensor Weight => pos_embed;

    /// <summary>What timm's <c>forward_features</c> gives: [b, 3, h, w] -> [b, 1 + patches, width], the class token first.
    /// The caller owns the result.</summary>
    /// <inheritdoc cref="VisionEncoder.Encode"/>
    public Tensor ForwardFeatures(Tensor pixelValues) => ImageByImage(pixelValues, Features);

    /// <summary>The absolute positions of the class token and of a grid of patches, [1, 1 + rows * cols, width]: the
    /// checkpoint's own where the grid is its own, else resampled. The caller owns the result.</summary>
    /// <exception cref="ArgumentOutOfRangeException">Less than one row or column.</exception>
    public Tensor PositionEmbedding(int rows, int cols)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(rows, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(cols, 1);
        var side = ImageSize / PatchSize;
        if (rows == side && cols == side) return pos_embed.alias();
        using var scope = NewDisposeScope();
        var grid = pos_embed[0, 1..].to(ScalarType.Float32);                                  // (side * side, d)
        grid = BicubicWeights(side, rows).matmul(grid.reshape(side, -1));                     // (rows, side * d)
        grid = BicubicWeights(side, cols).matmul(grid.reshape(rows, side, -1));               // (rows, cols, d)
        grid = grid.reshape(1, rows * cols, -1).to(pos_embed.dtype);
        return cat([pos_embed[.., ..1], grid], 1).MoveToOuterDisposeScope();                  // (1, l, d)

        Tensor BicubicWeights(int from, int to)
            => tensor(AntialiasedBicubic.Weights(from, to), [to, from], device: pos_embed.device);
    }

    private protected override Tensor EncodeImages(Tensor images)
    {
        using var features = Features(images);
        return features[.., 1..].contiguous(); // (b, n, d)
    }

    private Tensor Features(Tensor images)
    {
        using var scope = NewDisposeScope();
        var rows = (int)(images.shape[2] / PatchSize);
        var cols = (int)(images.shape[3] / PatchSize);
        var rotary = _rotaryTables.Get(rows, cols, images.device);                            // (l, 1, k / 2)
        var x = patch_embed.forward(images);                                                  // (b, n, d)
        x = cat([cls_token.expand(x.shape[0], -1, -1), x], 1) + PositionEmbedding(rows, cols); // (b, l, d)
        if (FusedChoice.For(x) is { } gpu) return OnGpu(gpu, x, rotary).MoveToOuterDisposeScope();
        foreach (var block in blocks)
        {
            using var before = x;
            x = block.forward(before, rotary);
        }
        if (norm is not null) x = norm.forward(x);
        return x.MoveToOuterDisposeScope();
    }

    // The same in few launches, and all tokens in one matrix: (b, l, d) -> (b, l, d).
    private Tensor OnGpu(CudaGpu gpu, Tensor images, Tensor rotary)
    {
        var (b, l) = (images.size(0), images.size(1));
        var x = images.view(b * l, Width);
        if (RowSpread.Takes(Width) && !is_grad_enabled()) return Infer(gpu, x, b, rotary).view(b, l, Width);
        foreach (var block in blocks)
        {
            using var before = x;
            x = block.Fused(gpu, before, b, rotary);
        }
        if (norm is not null) x = norm.forward(x);
        return x.view(b, l, Width);
    }

    // The blocks without gradients, by which x is changed: each addition to it is one with the norm that comes next.
    private Tensor Infer(CudaGpu gpu, Tensor x, long b, Tensor rotary)
    {
        var normed = blocks[0].norm1.forward(x);
        for (var i = 0; i < blocks.Count; i++)
            blocks[i].Infer(gpu, x, normed, b, rotary, i + 1 < blocks.Count ? blocks[i + 1].norm1 : norm);
        return norm is null ? x : normed;
    }

    /// <inheritdoc/>
    protected override void Dispose(bool disposing)
    {
        if (disposing) _rotaryTables.Dispose();
        base.Dispose(disposing);
    }
}

/// <summary>Cuts the image into patches and projects each of them.</summary>
internal sealed class Eva02PatchEmbedding : nn.Module<Tensor, Tensor>
{
    private readonly PatchProjection proj;

    public Eva02PatchEmbedding(ParameterScope p, Eva02Config config) : base(nameof(Eva02PatchEmbedding))
    {
        proj = new(p[nameof(proj)], config.PatchSize, config.Width, hasBias: true);
        RegisterComponents();
    }

    public override Tensor forward(Tensor images) => proj.forward(images);
}

/// <summary>Attention and a gated MLP, each on a normalised copy of the stream that it adds to.</summary>
internal sealed class Eva02Block : nn.Module<Tensor, Tensor, Tensor>
{
    public readonly Norm norm1;
    private readonly Norm norm2;
    private readonly Eva02Attention attn;
    private readonly Eva02Mlp mlp;

    public Eva02Block(ParameterScope p, Eva02Config config) : base(nameof(Eva02Block))
    {
        norm1 = new(p[nameof(norm1)], config.Width, Eva02Config.NormEps, NormKind.LayerNorm);
        attn = new(p[nameof(attn)], config);
        norm2 = new(p[nameof(norm2)], config.Width, Eva02Config.NormEps, NormKind.LayerNorm);
        mlp = new(p[nameof(mlp)], config);
        RegisterComponents();
    }

    public override Tensor forward(Tensor x, Tensor rotary)
    {
        using var scope = NewDisposeScope();
        x = x + attn.forward(norm1.forward(x), rotary);
        return (x + mlp.forward(norm2.forward(x))).MoveToOuterDisposeScope(); // (b, l, d)
    }

    /// <summary>The same without gradients, in fewer launches still and in place.</summary>
    /// <param name="gpu">Of the tensors.</param>
    /// <param name="x">(b l, d), the stream; becomes the block's output.</param>
    /// <param name="normed">(b l, d), its first norm; becomes the norm that comes after the block.</param>
    /// <param name="b">Images.</param>
    /// <param name="rotary">The angles.</param>
    /// <param name="next">The norm that comes after the block; null: none.</param>
    public void Infer(CudaGpu gpu, Tensor x, Tensor normed, long b, Tensor rotary, Norm? next)
    {
        using var scope = NewDisposeScope();
        AddNormsKernel.AddTo(gpu, x, attn.Fused(gpu, normed, b, rotary), norm2, normed);
        var y = mlp.Fused(gpu, normed);
        if (next is not null) AddNormsKernel.AddTo(gpu, x, y, next, normed);
        else x.add_(y);
    }

    /// <summary>The same in few launches: (b l, d) -> (b l, d).</summary>
    public Tensor Fused(CudaGpu gpu, Tensor x, long b, Tensor rotary)
    {
        using var scope = NewDisposeScope();
        x = x + attn.Fused(gpu, norm1.forward(x), b, rotary);
        return (x + mlp.Fused(gpu, norm2.forward(x))).MoveToOuterDisposeScope();
    }
}

/// <summary>Multi-head attention of every token to every token; queries and keys are turned by their positions.</summary>
internal sealed class Eva02Attention : nn.Module<Tensor, Tensor, Tensor>
{
    private readonly long _heads;
    private readonly RotaryShape _shape;
    private readonly PackedMatrix _weights, _biases, _zeros;
    private readonly Linear? q_proj, k_proj, v_proj;
    private readonly Linear? qkv;               // the small sizes keep the three in one matrix, their biases beside it
    private readonly Parameter? q_bias, v_bias; // (d)
    private readonly Norm? norm;
    private readonly Linear proj;

    public Eva02Attention(ParameterScope p, Eva02Config config) : base(nameof(Eva02Attention))
    {
        _heads = config.Heads;
        var d = config.Width;
        var k = d / config.Heads;
        _shape = new(config.Heads, k, Turned: k, Halves: false, ByHead: false);
        (_weights, _biases, _zeros) = (new(3 * d, d), new(3 * d, 0), new(d, 0));
        if (config.FusedQkv)
        {
            qkv = new(p[nameof(qkv)], d, 3 * d, hasBias: false);
            q_bias = p.Take(nameof(q_bias), [d], Initial.Zeros);
            v_bias = p.Take(nameof(v_bias), [d], Initial.Zeros);
        }
        else
        {
            // A bias of the keys would move all scores of a query alike, which softmax does not see: there is none.
            q_proj = new(p[nameof(q_proj)], d, d);
            k_proj = new(p[nameof(k_proj)], d, d, hasBias: false);
            v_proj = new(p[nameof(v_proj)], d, d);
        }
        if (config.AttentionNorm) norm = new(p[nameof(norm)], d, Eva02Config.NormEps, NormKind.LayerNorm);
        proj = new(p[nameof(proj)], d, d);
        RegisterComponents();
    }

    public override Tensor forward(Tensor x, Tensor rotary)
    {
        using var scope = NewDisposeScope();
        var (q, k, v) = Project(x);                                         // (b, l, d) each
        q = Turn(q, rotary).transpose(1, 2);                                // (b, heads, l, k)
        k = Turn(k, rotary).transpose(1, 2);
        v = v.reshape(v.shape[0], v.shape[1], _heads, -1).transpose(1, 2);
        var y = F.scaled_dot_product_attention(q, k, v);                    // (b, heads, l, k)
        y = y.transpose(1, 2).reshape(x.shape);                             // (b, l, d)
        if (norm is not null) y = norm.forward(y);
        return proj.forward(y).MoveToOuterDisposeScope();
    }

    /// <summary>The same in few launches, of all tokens in one matrix: (b l, d) -> (b l, d).</summary>
    public Tensor Fused(CudaGpu gpu, Tensor x, long b, Tensor rotary)
    {
        using var scope = NewDisposeScope();
        var packed = F.linear(x, Weights(), Biases()).view(b, -1, _shape.Packed); // (b, l, 3 d)
        var (q, k, v) = RotaryKernel.Split(gpu, _shape, packed, rotary);          // (b, heads, l, k) each
        var y = F.scaled_dot_product_attention(q, k, v);                          // (b, heads, l, k)
        y = y.transpose(1, 2).reshape(-1, x.size(1));                             // (b l, d)
        // Attention's own memory, or a copy of it: nobody else's.
        if (norm is not null && !is_grad_enabled() && RowSpread.Takes(x.size(1))) AddNormsKernel.Normalise(gpu, y, norm);
        else if (norm is not null) y = norm.forward(y);
        return proj.forward(y).MoveToOuterDisposeScope();
    }

    /// <summary>The matrices of queries, keys and values one below the other, (3 d, d). Where they are frozen, the matrix that
    /// they lie in; else a copy that gradients go through, the caller's scope's.</summary>
    internal Tensor Weights()
    {
        if (qkv is not null) return qkv.weight;
        Tensor q = q_proj!.weight, k = k_proj!.weight, v = v_proj!.weight;
        var d = q.shape[0];
        if (!q.requires_grad && !k.requires_grad && !v.requires_grad) return _weights.Get(q, (q, 0), (k, d), (v, 2 * d));
        _weights.Unpack((q, 0), (k, d), (v, 2 * d));
        return cat([q, k, v]);
    }

    /// <summary>Their biases, (3 d); the keys have none.</summary>
    internal Tensor Biases()
    {
        Tensor q = (q_bias ?? q_proj!.bias)!, v = (v_bias ?? v_proj!.bias)!;
        var d = q.shape[0];
        if (!q.requires_grad && !v.requires_grad) return _biases.Get(q, (q, 0), (v, 2 * d));
        _biases.Unpack((q, 0), (v, 2 * d));
        return cat([q, _zeros.Get(q), v]);
    }

    private (Tensor Q, Tensor K, Tensor V) Project(Tensor x)
    {
        if (qkv is null) return (q_proj!.forward(x), k_proj!.forward(x), v_proj!.forward(x));
        var parts = qkv.forward(x).chunk(3, -1);
        return (parts[0] + q_bias!, parts[1], parts[2] + v_bias!);
    }

    // Channels 2i and 2i+1 of a head are one complex number; turning it is one multiplication. In float32, as timm does it.
    private Tensor Turn(Tensor x, Tensor rotary)
    {
        using var scope = NewDisposeScope();
        var pairs = x.to(ScalarType.Float32).reshape(x.shape[0], x.shape[1], _heads, -1, 2).view_as_complex(); // (b, l, heads, k / 2)
        var turned = (pairs * rotary).view_as_real();                                                         // (b, l, heads, k / 2, 2)
        return turned.flatten(-2).to(x.dtype).MoveToOuterDisposeScope();                                      // (b, l, heads, k)
    }

    protected override void Dispose(bool disposing)
    {
        if (disposing) foreach (var matrix in (PackedMatrix[])[_weights, _biases, _zeros]) matrix.Dispose();
        base.Dispose(disposing);
    }
}

/// <summary>SwiGLU: one projection, gated by the SiLU of another, and projected back.</summary>
internal sealed class Eva02Mlp : nn.Module<Tensor, Tensor>
{
    private readonly long _width, _padded; // m, and to how much it is padded for a GPU
    private readonly PackedMatrix _fc1, _fc1Bias, _fc2, _normWeight, _normBias;
    private readonly Linear? fc1_g, fc1_x;
    private readonly Norm? norm;
    private readonly Linear? fc1; // the small sizes: gate and value in one matrix, and no norm
    private readonly Linear fc2;

    public Eva02Mlp(ParameterScope p, Eva02Config config) : base(nameof(Eva02Mlp))
    {
        var (d, m) = (config.Width, config.MlpWidth);
        // One matrix of gate and value has no place for zeros between them.
        (_width, _padded) = (m, config.PackedMlp ? m : PackedMatrix.Padded(m));
        (_fc1, _fc1Bias, _fc2) = (new(2 * _padded, d), new(2 * _padded, 0), new(d, _padded));
        (_normWeight, _normBias) = (new(_padded, 0), new(_padded, 0));
        if (config.PackedMlp) fc1 = new(p[nameof(fc1)], d, 2 * m);
        else
        {
            fc1_g = new(p[nameof(fc1_g)], d, m);
            fc1_x = new(p[nameof(fc1_x)], d, m);
            norm = new(p[nameof(norm)], m, Eva02Config.NormEps, NormKind.LayerNorm);
        }
        fc2 = new(p[nameof(fc2)], m, d);
        RegisterComponents();
    }

    public override Tensor forward(Tensor x)
    {
        using var scope = NewDisposeScope();
        if (fc1 is not null)
        {
            var halves = fc1.forward(x).chunk(2, -1);
            return fc2.forward(F.silu(halves[0]) * halves[1]).MoveToOuterDisposeScope();
        }
        var y = F.silu(fc1_g!.forward(x)) * fc1_x!.forward(x);         // (b, l, m)
        return fc2.forward(norm!.forward(y)).MoveToOuterDisposeScope(); // (b, l, d)
    }

    /// <summary>The same in three launches, where nothing is to be learned: (b l, d) -> (b l, d).</summary>
    public Tensor Fused(CudaGpu gpu, Tensor x)
    {
        var frozen = IsFrozen();
        if (is_grad_enabled() && (!frozen || x.requires_grad)) return forward(x);
        if ((!frozen && fc1 is null) || !RowSpread.Takes(_padded)) return forward(x); // not to be packed
        using var scope = NewDisposeScope();
        var (first, firstBias, second, weight, bias) = Padded();
        var y = F.linear(x, first, firstBias);                                      // (b l, 2 m), both halves padded
        y = SwiGluKernel.Run(gpu, y, _width, weight, bias, Eva02Config.NormEps);    // (b l, m), padded
        return F.linear(y, second, fc2.bias).MoveToOuterDisposeScope();             // (b l, d)
    }

    /// <summary>The weights as matrices of padded width, in which the parameters lie.</summary>
    internal (Tensor First, Tensor FirstBias, Tensor Second, Tensor? Weight, Tensor? Bias) Padded()
    {
        var second = _padded == _width ? fc2.weight : _fc2.Get(fc2.weight, (fc2.weight, 0));
        if (fc1 is not null) return (fc1.weight, fc1.bias!, second, null, null);
        Linear gate = fc1_g!, value = fc1_x!;
        return (_fc1.Get(gate.weight, (gate.weight, 0), (value.weight, _padded)), _fc1Bias.Get(gate.bias!, (gate.bias!, 0), (value.bias!, _padded)), second,
            _padded == _width ? norm!.weight : _normWeight.Get(norm!.weight, (norm.weight, 0)),
            _padded == _width ? norm!.bias : _normBias.Get(norm!.bias!, (norm.bias!, 0)));
    }

    // Whether no parameter is to be learned. What is gets memory of its own again.
    private bool IsFrozen()
    {
        Tensor?[] all = [fc1?.weight, fc1?.bias, fc1_g?.weight, fc1_g?.bias, fc1_x?.weight, fc1_x?.bias, norm?.weight, norm?.bias, fc2.weight, fc2.bias];
        if (!all.Any(p => p is { requires_grad: true })) return true;
        _fc2.Unpack((fc2.weight, 0));
        if (fc1 is not null) return false;
        _fc1.Unpack((fc1_g!.weight, 0), (fc1_x!.weight, _padded));
        _fc1Bias.Unpack((fc1_g.bias!, 0), (fc1_x.bias!, _padded));
        _normWeight.Unpack((norm!.weight, 0));
        _normBias.Unpack((norm.bias!, 0));
        return false;
    }

    protected override void Dispose(bool disposing)
    {
        if (disposing) foreach (var matrix in (PackedMatrix[])[_fc1, _fc1Bias, _fc2, _normWeight, _normBias]) matrix.Dispose();
        base.Dispose(disposing);
    }
}

/// <summary>The rotary tables of the grids in use; owned by the encoder.</summary>
/// <remarks>
/// Half of a head's pairs of channels turn with a patch's row, half with its column, by angles that fall geometrically from
/// one radian a row: angle(i) = position / 10000^(i / (k / 4)). Positions are stretched so that every grid spans the
/// reference grid, the one of pre-training. The class token is not turned.
/// </remarks>
internal sealed class Eva02RotaryTables(long headWidth, int referenceGrid) : IDisposable
{
    // More sizes than a program uses by turns; a program that goes through very many must not keep a table of each.
    private const int MostTables = 16;

    private readonly Dictionary<(int Rows, int Cols, DeviceType Type, int Index), Tensor> _tables = [];
    private bool _disposed;

    /// <summary>(l, 1, k / 2), complex. The caller owns it; a table that is dropped here lives on in it.</summary>
    public Tensor Get(int rows, int cols, Device device)
    {
        lock (_tables)
        {
            ObjectDisposedException.ThrowIf(_disposed, typeof(Eva02));
            var key = (rows, cols, device.type, device.index);
            if (!_tables.TryGetValue(key, out var table))
            {
                if (_tables.Count == MostTables) Clear();
                _tables[key] = table = Build(rows, cols, device);
            }
            return table.alias();
        }
    }

    private Tensor Build(int rows, int cols, Device device)
    {
        using var ordinary = inference_mode(false); // a table made while inferring may be used again while training
        using var scope = NewDisposeScope();
        var bands = (int)(headWidth / 4);
        var numbers = new float[(1 + rows * cols) * 2 * bands * 2]; // (l, axis and band, real and imaginary)
        for (var i = 0; i < 2 * bands; i++) numbers[2 * i] = 1;
        for (var patch = 0; patch < rows * cols; patch++)
            for (var i = 0; i < 2 * bands; i++)
            {
                var position = i < bands ? (double)(patch / cols) / rows : (double)(patch % cols) / cols;
                var angle = position * referenceGrid / Math.Pow(10000, (double)(i % bands) / bands);
                var at = ((1 + patch) * 2 * bands + i) * 2;
                (numbers[at + 1], numbers[at]) = ((float)Math.Sin(angle), (float)Math.Cos(angle));
            }
        var table = tensor(numbers, [1 + rows * cols, 1, 2 * bands, 2]).to(device).view_as_complex();
        return table.DetachFromDisposeScope();
    }

    private void Clear()
    {
        foreach (var table in _tables.Values) table.Dispose();
        _tables.Clear();
    }

    public void Dispose()
    {
        lock (_tables)
        {
            Clear();
            _disposed = true;
        }
    }
}

/// <summary>PyTorch's <c>interpolate(mode="bicubic", antialias=True)</c> along one axis, as a matrix.</summary>
/// <remarks>libtorch computes it in ATen/native/cpu/UpSampleKernel.cpp; TorchSharp does not offer the option.</remarks>
internal static class AntialiasedBicubic
{
    /// <summary>The weights [to, from], row by row, each row of which sums to 1.</summary>
    public static float[] Weights(int from, int to)
    {
        var scale = (double)from / to;
        var stretch = Math.Max(scale, 1);  // shrinking widens the kernel; growing leaves it as it is
        var support = 2 * stretch;
        var weights = new float[to * from];
        for (var i = 0; i < to; i++)
        {
            var centre = scale * (i + 0.5);
            var first = Math.Max((int)(centre - support + 0.5), 0);
            var end = Math.Min((int)(centre + support + 0.5), from); // samples beyond an edge are left out, not repeated
            var row = new double[end - first];
            for (var j = 0; j < row.Length; j++) row[j] = Kernel((first + j + 0.5 - centre) / stretch);
            var sum = row.Sum();
            for (var j = 0; j < row.Length; j++) weights[i * from + first + j] = (float)(row[j] / sum);
        }
        return weights;
    }

    // Keys' cubic with a = -0.5, which PIL and antialiased PyTorch use; PyTorch without antialiasing has a = -0.75.
    private static double Kernel(double x)
    {
        const double a = -0.5;
        x = Math.Abs(x);
        return x < 1 ? ((a + 2) * x - (a + 3)) * x * x + 1
            : x < 2 ? (((x - 5) * x + 8) * x - 4) * a
            : 0;
    }
}

/// <summary>What training starts from, where timm's values are not it.</summary>
internal static class Eva02Initial
{
    // Wavelengths from 2 pi patches up to this many times as long: beyond that a wave is flat over any grid of use here.
    private const double LongestOverShortest = 100;

    /// <summary>Waves along the rows in one half of the channels, along the columns in the other, for a grid of patches; zeros for
    /// the class token.</summary>
    /// <remarks>timm starts from noise of 0.02, which a pre-training on billions of pictures turns into positions. A model that
    /// starts from random weights on a small data set learns to tell where things are only once positions stand out beside
    /// the patches' content; with waves of the size of the content they do from the first step. They are learnt on from there.</remarks>
    public static ParameterInitializer Positions(int grid) => (t, _) =>
    {
        using var scope = NewDisposeScope();
        var quarter = t.shape[2] / 4;
        t.fill_(0);
        if (quarter == 0) return;
        var frequencies = (arange(quarter, dtype: ScalarType.Float32) * (-Math.Log(LongestOverShortest) / quarter)).exp(); // (d/4)
        var waves = arange(grid, dtype: ScalarType.Float32).unsqueeze(1) * frequencies;                                    // (grid, d/4)
        waves = cat([waves.sin(), waves.cos()], 1);                                                                       // (grid, d/2)
        var rows = waves.unsqueeze(1).expand(grid, grid, 2 * quarter);
        var columns = waves.unsqueeze(0).expand(grid, grid, 2 * quarter);
        t[0, 1.., ..(int)(4 * quarter)].copy_(cat([rows, columns], 2).flatten(0, 1));                                     // (n, d)
    };
}
