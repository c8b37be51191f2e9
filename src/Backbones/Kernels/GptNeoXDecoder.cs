using MambaVL.Models;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Kernels;

/// <summary>One token of b rows through a GPT-NeoX on the CPU, without a tensor operation on the way.</summary>
/// <inheritdoc cref="MambaDecoder" path="/remarks"/>
internal sealed unsafe class GptNeoXDecoder
{
    private readonly GptNeoX _model;
    private readonly CpuTeam? _team;
    private float[]? _frequencies; // (r / 2)

    /// <param name="model">Whose weights are read, anew in every call.</param>
    /// <param name="team">Who computes; null: <see cref="CpuTeam.Shared"/>.</param>
    public GptNeoXDecoder(GptNeoX model, CpuTeam? team = null) => (_model, _team) = (model, team);

    /// <inheritdoc cref="MambaDecoder.Decode"/>
    public Tensor? Decode(Tensor ids, IReadOnlyList<DecoderState> states)
    {
        var config = _model.Config;
        if (!DecoderMemory.Fits(config.HiddenSize * 3, config.IntermediateSize, config.VocabularySize)) return null;
        int b = states.Count, layers = (int)config.LayerCount, d = (int)config.HiddenSize, m = (int)config.IntermediateSize;
        int heads = (int)config.HeadCount, half = (int)config.RotarySize / 2;
        int dStride = DecoderMemory.Stride(d), qkvStride = DecoderMemory.Stride(3 * d), mStride = DecoderMemory.Stride(m);
        var longest = 0;
        for (var row = 0; row < b; row++) longest = Math.Max(longest, states[row].Length + 1);
        var scoreStride = DecoderMemory.Stride(longest);
        if (!TensorMemory.TryType(_model.gpt_neox.embed_in.weight.dtype, out var type)) return null;

        var arena = Arena.OfThread(Arena.Size<GptNeoXWeights>(layers) + Arena.Size<KeyValueCache>((long)layers * b)
            + 2 * Arena.Size<nint>(b) + 2 * Arena.Size<float>((long)b * half) + 4 * Arena.Size<float>((long)b * dStride)
            + Arena.Size<float>((long)b * qkvStride) + Arena.Size<float>((long)b * mStride)
            + Arena.Size<float>((long)b * heads * scoreStride));
        var weights = arena.Take<GptNeoXWeights>(layers);
        var caches = arena.Take<KeyValueCache>((long)layers * b);
        for (var i = 0; i < layers; i++)
        {
            if (!TryWeights(_model.gpt_neox.layers[i], out weights[i])) return null;
            for (var row = 0; row < b; row++)
            {
                var state = (GptNeoXState)states[row];
                if (!TensorMemory.TryMatrix(state.Keys[i], heads, d / heads * (long)state.MaxLength, out var keys)) return null;
                if (!TensorMemory.TryMatrix(state.Values[i], heads, d / heads * (long)state.MaxLength, out var values)) return null;
                caches[i * b + row] = new(new(keys.Data, keys.Type), new(values.Data, values.Type), state.MaxLength, state.Length);
            }
        }
        if (!TensorMemory.TryMatrix(_model.gpt_neox.embed_in.weight, config.VocabularySize, d, out var table)) return null;
        var head = table;
        if (_model.embed_out is not null && !TensorMemory.TryMatrix(_model.embed_out.weight, config.VocabularySize, d, out head)) return null;
        var final = _model.gpt_neox.final_layer_norm;
        if (!TensorMemory.TryValues(final.weight, d, out var norm) || !TensorMemory.TryValues(final.bias, d, out var normBias)) return null;

        var (team, threads) = (_team ?? CpuTeam.Shared, _team?.Threads ?? get_num_threads());
        var step = new GptNeoXStep
        {
            B = b, D = d, H = heads, K = d / heads, R = 2 * half, M = m,
            NormEpsilon = (float)config.NormEpsilon, Parallel = config.ParallelResidual, TanhGelu = config.TanhGelu,
            Cos = (float**)arena.Take<nint>(b), Sin = (float**)arena.Take<nint>(b),
            Residual = arena.Take<float>((long)b * dStride), Normed = arena.Take<float>((long)b * dStride),
            MlpNormed = arena.Take<float>((long)b * dStride), Attended = arena.Take<float>((long)b * dStride), DStride = dStride,
            Qkv = arena.Take<float>((long)b * qkvStride), QkvStride = qkvStride,
            Wide = arena.Take<float>((long)b * mStride), MStride = mStride,
            Scores = arena.Take<float>((long)b * heads * scoreStride), ScoreStride = scoreStride,
        };
        float* cos = arena.Take<float>((long)b * half), sin = arena.Take<float>((long)b * half);
        for (var row = 0; row < b; row++)
        {
            float* c = cos + (nint)row * half, s = sin + (nint)row * half;
            Rotary(states[row].Length, type, c, s);
            step.Cos[row] = c;
            step.Sin[row] = s;
        }
        DecoderMemory.Embed(ids, table, step.Residual, dStride);
        for (var i = 0; i < layers; i++)
        {
            step.Weights = weights[i];
            step.Caches = caches + i * b;
            GptNeoXStep.Run(team, threads, &step);
        }
        for (var row = 0; row < b; row++)
        {
            Norms.Row(step.Residual + (nint)row * dStride, d, norm, normBias, step.NormEpsilon, step.Normed + (nint)row * dStride);
            states[row].Length++;
        }
        var logits = DecoderMemory.Logits(team, threads, head, step.Normed, dStride, b);
        GC.KeepAlive(states);
        GC.KeepAlive(this);
        return logits;
    }

    // As the model's tables are, for a key that one way stored the other reads: the same frequencies, angles in float32,
    // their cosines in the precision of the weights.
    private void Rotary(int position, WeightType type, float* cos, float* sin)
    {
        var frequencies = _frequencies ??= Frequencies();
        for (var i = 0; i < frequencies.Length; i++)
        {
            var (s, c) = Math.SinCos(position * frequencies[i]);
            cos[i] = Values.Round((float)c, type);
            sin[i] = Values.Round((float)s, type);
        }
    }

    private float[] Frequencies()
    {
        using var noGrad = no_grad();
        using var frequencies = _model.Config.RotaryFrequencies(CPU);
        return frequencies.data<float>().ToArray();
    }

    private bool TryWeights(GptNeoXLayer layer, out GptNeoXWeights w)
    {
        var (d, m) = (_model.Config.HiddenSize, _model.Config.IntermediateSize);
        w = default;
        return TensorMemory.TryValues(layer.input_layernorm.weight, d, out w.InputNorm)
            && TensorMemory.TryValues(layer.input_layernorm.bias, d, out w.InputNormBias)
            && TensorMemory.TryValues(layer.post_attention_layernorm.weight, d, out w.MlpNorm)
            && TensorMemory.TryValues(layer.post_attention_layernorm.bias, d, out w.MlpNormBias)
            && TensorMemory.TryMatrix(layer.attention.query_key_value.weight, 3 * d, d, out w.Qkv)
            && TensorMemory.TryValues(layer.attention.query_key_value.bias, 3 * d, out w.QkvBias)
            && TensorMemory.TryMatrix(layer.attention.dense.weight, d, d, out w.Dense)
            && TensorMemory.TryValues(layer.attention.dense.bias, d, out w.DenseBias)
            && TensorMemory.TryMatrix(layer.mlp.dense_h_to_4h.weight, m, d, out w.Up)
            && TensorMemory.TryValues(layer.mlp.dense_h_to_4h.bias, m, out w.UpBias)
            && TensorMemory.TryMatrix(layer.mlp.dense_4h_to_h.weight, d, m, out w.Down)
            && TensorMemory.TryValues(layer.mlp.dense_4h_to_h.bias, d, out w.DownBias);
    }
}
