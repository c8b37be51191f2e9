using MambaVL.Cuda;
using Microsoft.Extensions.Logging;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Models;

/// <summary>How badly logits predict tokens: the cross-entropy in nats, in float32 whatever the logits are.</summary>
/// <remarks>
/// On a GPU a kernel reads the logits as they are. As tensor operations they stand there in float32 three times over, which for
/// 5,120 positions of a vocabulary of 50,280 is 3 GB: more than all weights.
/// </remarks>
internal static class TokenLoss
{
    /// <summary>The sum over positions of weight times loss: a scalar of float32, in the caller's dispose scope.</summary>
    /// <param name="logits">[p, vocabulary].</param>
    /// <param name="targets">[p], int64: the tokens.</param>
    /// <param name="weights">[p], float32; null: each position weighs 1 / p, which gives the mean.</param>
    /// <param name="overwrites">Whether the backward pass may write the gradient over the logits, which then are of no further
    /// use to anybody, and cannot be gone through twice.</param>
    public static Tensor Of(Tensor logits, Tensor targets, Tensor? weights = null, bool overwrites = false)
    {
        ArgumentNullException.ThrowIfNull(logits);
        ArgumentNullException.ThrowIfNull(targets);
        using var scope = NewDisposeScope();
        if (logits.numel() > 0 && FusedChoice.For(logits) is { } gpu)
        {
            var x = logits.contiguous();
            return (is_grad_enabled() && x.requires_grad ? TokenLossFunction.Record(gpu, x, targets, weights, overwrites) : CrossEntropyKernel.Forward(gpu, x, targets, weights).Loss).MoveToOuterDisposeScope();
        }
        var losses = nn.functional.cross_entropy(logits.to(ScalarType.Float32), targets, reduction: nn.Reduction.None); // (p)
        return (weights is null ? losses.mean() : losses.dot(weights)).MoveToOuterDisposeScope();
    }
}

/// <summary>The kernel as one operation of autograd.</summary>
internal sealed class TokenLossFunction : autograd.MultiTensorFunction<TokenLossFunction>
{
    private const string Gpu = "gpu", Fate = "fate";

    // See ScanFunction: each backward of a thread releases the handles of the one before.
    [ThreadStatic]
    private static List<Tensor?>? _returned;

    /// <inheritdoc/>
    public override string Name => nameof(TokenLoss);

    public static Tensor Record(CudaGpu gpu, Tensor logits, Tensor targets, Tensor? weights, bool overwrites)
        => apply(logits, targets, weights!, gpu, new LogitsFate { Overwritten = overwrites })[0];

    public override List<Tensor> forward(autograd.AutogradContext ctx, params object[] vars)
    {
        var (logits, targets, weights, gpu) = ((Tensor)vars[0], (Tensor)vars[1], (Tensor?)vars[2], (CudaGpu)vars[3]);
        var (loss, lse) = CrossEntropyKernel.Forward(gpu, logits, targets, weights);
        ctx.set_materialize_grads(false);
        ctx.save_data(Gpu, gpu);
        ctx.save_data(Fate, vars[4]);
        ctx.save_for_backward([logits, targets, weights!, lse]);
        return [loss];
    }

    public override List<Tensor> backward(autograd.AutogradContext ctx, List<Tensor> grad_outputs)
    {
        _returned?.ForEach(t => t?.Dispose());
        using var scope = NewDisposeScope();
        Tensor? gradient = null;
        try
        {
            if (is_grad_enabled()) throw new NotSupportedException($"The loss on a GPU has no second derivative (create_graph). Set {FusedChoice.Variable}=reference for one.");
            if (!grad_outputs[0].IsInvalid)
            {
                var (saved, fate) = (ctx.get_saved_variables(), (LogitsFate)ctx.get_data(Fate));
                if (fate.AreGone) throw new InvalidOperationException("The logits were overwritten by the first backward pass; there cannot be a second.");
                fate.AreGone = fate.Overwritten;
                var logits = saved[0].detach();
                gradient = fate.Overwritten ? logits : empty_like(logits);
                CrossEntropyKernel.Backward((CudaGpu)ctx.get_data(Gpu), logits, saved[1], saved[2], saved[3], grad_outputs[0], gradient);
            }
        }
        catch (Exception e)
        {
            // An exception must not cross libtorch's frames: a gradient that cannot fit makes autograd throw to the caller of
            // backward instead.
            BackwardErrors.Keep(e);
            CudaGpu.Logger.LogError(e, "The backward pass of the loss failed; autograd will report an invalid gradient.");
            gradient = zeros(0);
        }
        foreach (var t in grad_outputs) t.Dispose();
        _returned = [gradient?.MoveToOuterDisposeScope(), null, null, null, null];
        return _returned!;
    }

    private sealed class LogitsFate
    {
        public bool Overwritten { get; init; }

        public bool AreGone { get; set; }
    }
}
