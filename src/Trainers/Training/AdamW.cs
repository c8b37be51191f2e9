using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Training;

/// <summary>AdamW (arXiv 1711.05101, algorithm 2) over flat tensors: some ten operations a step, whatever the number of
/// parameters. One method, so that one kernel can take its place.</summary>
/// <param name="count">Elements of the weights.</param>
/// <param name="device">Where they are.</param>
/// <param name="beta1">The memory of gradients.</param>
/// <param name="beta2">The memory of their squares.</param>
/// <param name="epsilon">Added to the root of the squares.</param>
/// <param name="weightDecay">The decay of the segments that decay.</param>
internal sealed class AdamW(long count, Device device, double beta1, double beta2, double epsilon, double weightDecay) : IDisposable
{
    // The update needs as much memory again as it has elements at once.
    private const long MostAtOnce = 1L << 26;

    /// <summary>The mean of the gradients, [N] of float32 (m).</summary>
    public Tensor Mean { get; } = zeros([count], ScalarType.Float32, device).DetachFromDisposeScope();

    /// <summary>The mean of their squares, [N] of float32 (v).</summary>
    public Tensor Square { get; } = zeros([count], ScalarType.Float32, device).DetachFromDisposeScope();

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
    }
}
