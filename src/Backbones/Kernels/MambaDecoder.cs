using MambaVL.Models;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Kernels;

/// <summary>One token of b rows through a Mamba on the CPU, without a tensor operation on the way.</summary>
/// <remarks>
/// Activations and the residual stream are float32 whatever the weights are. Each sum runs in an order that depends on the
/// model's sizes only, so that a row's logits are the same whichever rows stand beside it, and on any number of threads.
/// </remarks>
/// <param name="model">Whose weights are read, anew in every call.</param>
/// <param name="team">Who computes; null: <see cref="CpuTeam.Shared"/>.</param>
internal sealed unsafe class MambaDecoder(Mamba model, CpuTeam? team = null)
{
    // What the kernels keep on a thread's stack grows with the state; no Mamba comes near.
    private const long GreatestState = 1024;

    /// <summary>The logits [b, vocabulary], float32, and the states moved on; null, and nothing done, where a tensor is
    /// not one that the kernels take.</summary>
    /// <param name="ids">[b], int64, each a row of the embedding table.</param>
    /// <param name="states">This model's, one a row, none twice.</param>
    public Tensor? Decode(Tensor ids, IReadOnlyList<DecoderState> states)
    {
        var config = model.Config;
        if (config.StateSize > GreatestState || !DecoderMemory.Fits(config.InnerSize * 2, config.VocabularySize)) return null;
        int b = states.Count, layers = (int)config.LayerCount, d = (int)config.HiddenSize, e = (int)config.InnerSize;
        int n = (int)config.StateSize, r = (int)config.TimeStepRank;
        int dStride = DecoderMemory.Stride(d), eStride = DecoderMemory.Stride(e);
        int selectedStride = DecoderMemory.Stride(r + 2 * n), nStride = DecoderMemory.Stride(n);

        var arena = Arena.OfThread(Arena.Size<MambaWeights>(layers) + 2 * Arena.Size<nint>((long)layers * b)
            + 2 * Arena.Size<float>((long)b * dStride) + 4 * Arena.Size<float>((long)b * eStride)
            + Arena.Size<float>((long)b * selectedStride) + Arena.Size<float>((long)b * 2 * nStride));
        var weights = arena.Take<MambaWeights>(layers);
        float** convolution = (float**)arena.Take<nint>((long)layers * b), scan = (float**)arena.Take<nint>((long)layers * b);
        for (var i = 0; i < layers; i++)
        {
            if (!TryWeights(model.backbone.layers[i], out weights[i])) return null;
            for (var row = 0; row < b; row++)
            {
                var state = (MambaState)states[row];
                if (!TensorMemory.TryFloats(state.Convolution[i], e * config.ConvolutionSize, out convolution[i * b + row])) return null;
                if (!TensorMemory.TryFloats(state.Scan[i], (long)e * n, out scan[i * b + row])) return null;
            }
        }
        if (!TensorMemory.TryMatrix(model.backbone.embedding.weight, config.VocabularySize, d, out var table)) return null;
        var head = table;
        if (model.lm_head is not null && !TensorMemory.TryMatrix(model.lm_head.weight, config.VocabularySize, d, out head)) return null;
        if (!TryNorm(model.backbone.norm_f, d, out var norm, out var normBias)) return null;

        var (workers, threads) = (team ?? CpuTeam.Shared, team?.Threads ?? get_num_threads());
        var step = new MambaStep
        {
            B = b, E = e, N = n, R = r, K = (int)config.ConvolutionSize,
            Residual = arena.Take<float>((long)b * dStride), Normed = arena.Take<float>((long)b * dStride), DStride = dStride,
            U = arena.Take<float>((long)b * eStride), Z = arena.Take<float>((long)b * eStride),
            Delta = arena.Take<float>((long)b * eStride), Y = arena.Take<float>((long)b * eStride), EStride = eStride,
            Selected = arena.Take<float>((long)b * selectedStride), SelectedStride = selectedStride,
            BC = arena.Take<float>((long)b * 2 * nStride), NStride = nStride,
        };
        DecoderMemory.Embed(ids, table, step.Residual, dStride);
        for (var i = 0; i < layers; i++)
        {
            step.Weights = weights[i];
            step.Convolution = convolution + i * b;
            step.Scan = scan + i * b;
            for (var row = 0; row < b; row++)
                Norms.Row(step.Residual + (nint)row * dStride, d, weights[i].Norm, weights[i].NormBias, (float)config.NormEpsilon,
                    step.Normed + (nint)row * dStride);
            MambaStep.Run(workers, threads, &step);
        }
        for (var row = 0; row < b; row++)
        {
            Norms.Row(step.Residual + (nint)row * dStride, d, norm, normBias, (float)config.NormEpsilon, step.Normed + (nint)row * dStride);
            states[row].Length++;
        }
        var logits = DecoderMemory.Logits(workers, threads, head, step.Normed, dStride, b);
        GC.KeepAlive(states);
        GC.KeepAlive(this);
        return logits;
    }

    private bool TryWeights(MambaLayer layer, out MambaWeights w)
    {
        var (config, mixer) = (model.Config, layer.mixer);
        var (d, e, n, r) = (config.HiddenSize, config.InnerSize, config.StateSize, config.TimeStepRank);
        w = default;
        return TryNorm(layer.norm, d, out w.Norm, out w.NormBias)
            && TensorMemory.TryMatrix(mixer.in_proj.weight, 2 * e, d, out w.InProj)
            && TensorMemory.TryValues(mixer.in_proj.bias, 2 * e, out w.InProjBias)
            && TensorMemory.TryValues(mixer.conv1d.weight, e * config.ConvolutionSize, out w.Conv)
            && TensorMemory.TryValues(mixer.conv1d.bias, e, out w.ConvBias)
            && TensorMemory.TryMatrix(mixer.x_proj.weight, r + 2 * n, e, out w.XProj)
            && TensorMemory.TryMatrix(mixer.dt_proj.weight, e, r, out w.DtProj)
            && TensorMemory.TryValues(mixer.dt_proj.bias, e, out w.DtBias)
            && TensorMemory.TryValues(mixer.A_log, e * n, out w.ALog)
            && TensorMemory.TryValues(mixer.D, e, out w.D)
            && TensorMemory.TryMatrix(mixer.out_proj.weight, d, e, out w.OutProj)
            && TensorMemory.TryValues(mixer.out_proj.bias, d, out w.OutProjBias);
    }

    private static bool TryNorm(Norm norm, long count, out Values weight, out Values bias)
    {
        bias = default;
        return TensorMemory.TryValues(norm.weight, count, out weight) && TensorMemory.TryValues(norm.bias, count, out bias);
    }
}
