using MambaVL.Cuda;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Training;

/// <summary>AdamW (arXiv 1711.05101, algorithm 2) over flat tensors: some ten operations a step, whatever the number of
/// parameters, or one kernel.</summary>
/// <param name="count">Elements of the weights.</param>
/// <param name="device">Where they are.</param>
/// <param name="beta1">The memory of gradients.</param>
/// <param name="beta2">The memory of their squares.</param>
/// <param name="epsilon">Added to the root of the squares.</param>
/// <param name="weightDecay">The decay of the segments that decay.</param>
/// <param name="kernels">What updates the weights on a GPU; belongs to this. Null: tensor operations.</param>
internal sealed class AdamW(long count, Device device, double beta1, double beta2, double epsilon, double weightDecay, CudaAdamW? kernels = null) : IDisposable
{
    // The update needs as much memory again as it has elements at once.
    private const long MostAtOnce = 1L << 26;

    /// <summary>The mean of the gradients, [N] of float32 (m).</summary>
    public Tensor Mean { get; } = zeros([count], ScalarType.Float32, device).DetachFromDisposeScope();

    /// <summary>The mean of their squares, [N] of float32 (v).</summary>
    public Tensor Square { get; } = zeros([count], ScalarType.Float32, device).DetachFromDisposeScope();

    /// <summary>Ends a step: clips the gradients, updates the weights and what the model computes with, and begins with no
    /// gradients again. The host waits for nothing.</summary>
    /// <param name="parameters">The weights; all micro-batches but the last have been gathered.</param>
    /// <param name="clip">The greatest norm of the gradients; null: any.</param>
    /// <param name="step">The steps before this one.</param>
    /// <param name="learningRate">Of this step.</param>
    /// <returns>The norm of the gradients, a scalar on the device, in the caller's dispose scope.</returns>
    public Tensor Step(FlatParameters parameters, double? clip, int step, double learningRate)
    {
        using var noGradients = no_grad();
        if (kernels is not null)
            return parameters.Update(kernels, this, clip, s => new(step, learningRate * s.Share, beta1, beta2, epsilon, s.Decays ? weightDecay : 0));
        parameters.Gather();
        var norm = parameters.Gradients.norm();
        var scale = clip is { } most ? (most / (norm + 1e-6)).clamp_max(1) : null;
        Update(parameters.Master, parameters.Gradients, parameters.Segments, scale, step, learningRate);
        parameters.Clear();
        parameters.Refresh();
        return norm;
    }

    /// <summary>Changes the weights in place.</summary>
    /// <param name="weights">[N], float32.</param>
    /// <param name="gradients">[N], float32; of no use afterwards.</param>
    /// <param name="segments">What lies where.</param>
    /// <param name="scale">What the gradients are multiplied by first, a scalar on the device; null: nothing.</param>
    /// <param name="step">The steps before this one.</param>
    /// <param name="learningRate">Of this step.</param>
    public void Update(Tensor weights, Tensor gradients, IReadOnlyList<ParameterSegment> segments, Tensor? scale, int step, double learningRate)
    {
        using var noGradients = no_grad();
        var (correct1, correct2) = (1 - Math.Pow(beta1, step + 1), 1 - Math.Pow(beta2, step + 1));
        foreach (var segment in segments)
        {
            var rate = learningRate * segment.Share;
            for (long done = 0; done < segment.Count; done += MostAtOnce)
            {
                using var scope = NewDisposeScope();
                var (start, length) = (segment.Start + done, Math.Min(MostAtOnce, segment.Count - done));
                var (w, g) = (weights.narrow(0, start, length), gradients.narrow(0, start, length));
                var (m, v) = (Mean.narrow(0, start, length), Square.narrow(0, start, length));
                if (scale is not null) g.mul_(scale);
                m.mul_(beta1).add_(g, 1 - beta1);
                v.mul_(beta2).addcmul_(g, g, 1 - beta2);
                if (segment.Decays && weightDecay > 0) w.mul_(1 - rate * weightDecay);
                var root = v.sqrt().mul_(1 / Math.Sqrt(correct2)).add_(epsilon);
                w.addcdiv_(m, root, -rate / correct1);
            }
        }
    }

    public void Dispose()
    {
        Mean.Dispose();
        Square.Dispose();
        kernels?.Dispose();
    }
}
