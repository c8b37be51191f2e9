using MambaVL.Cuda;
using Microsoft.Extensions.Logging;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MambaVL.Models;

/// <summary>FusedMamba as one operation of autograd. The gradients of parameters go to Parameter.grad, past autograd.</summary>
internal sealed class FusedMambaFunction : autograd.MultiTensorFunction<FusedMambaFunction>
{
    private const string Layers = "layers", Wanted = "wanted";

    // See ScanFunction: TorchSharp leaves the handles of what backward returns to the garbage collector, which does not see
    // their size; so each backward of a thread releases those of the one before.
    [ThreadStatic]
    private static List<Tensor?>? _returned;

    /// <inheritdoc/>
    public override string Name => nameof(FusedMamba);

    /// <param name="layers">The layers.</param>
    /// <param name="x">(b, l, d).</param>
    /// <param name="anchor">Any parameter that wants a gradient: what makes autograd record the operation where x does not want one.</param>
    /// <returns>(R, d), in the caller's dispose scope.</returns>
    public static Tensor Record(FusedMamba layers, Tensor x, Parameter? anchor) => apply(x, anchor!, layers)[0];

    public override List<Tensor> forward(autograd.AutogradContext ctx, params object[] vars)
    {
        var (x, layers) = ((Tensor)vars[0], (FusedMamba)vars[2]);
        var kept = new List<Tensor>();
        var sum = layers.Forward(x, (int)x.shape[1], null, null, kept);
        ctx.set_materialize_grads(false);
        ctx.save_data(Layers, layers);
        ctx.save_data(Wanted, (x.requires_grad, vars[1] is not null));
        ctx.save_for_backward([x, .. kept]);
        return [sum];
    }

    public override List<Tensor> backward(autograd.AutogradContext ctx, List<Tensor> grad_outputs)
    {
        _returned?.ForEach(t => t?.Dispose());
        using var scope = NewDisposeScope();
        var (wantsX, hasAnchor) = ((bool, bool))ctx.get_data(Wanted);
        Tensor? gradient = null, failed = null;
        try
        {
            if (is_grad_enabled()) throw new NotSupportedException(
                "The layers of a Mamba on a GPU have no second derivative (create_graph). Set MAMBAVL_SCAN=reference for one.");
            if (!grad_outputs[0].IsInvalid)
            {
                var saved = ctx.get_saved_variables();
                gradient = ((FusedMamba)ctx.get_data(Layers)).Backward(saved[0], saved[1..], grad_outputs[0]);
            }
        }
        catch (Exception e)
        {
            // An exception must not cross libtorch's frames: the process would end. A gradient that cannot fit makes autograd
            // throw to the caller of backward instead.
            BackwardErrors.Keep(e);
            CudaGpu.Logger.LogError(e, "The backward pass of the layers failed; autograd will report an invalid gradient.");
            gradient = failed = zeros(0);
        }
        foreach (var t in grad_outputs) t.Dispose();
        _returned = [wantsX ? gradient?.MoveToOuterDisposeScope() : null, hasAnchor && !wantsX ? failed?.MoveToOuterDisposeScope() : null, null];
        return _returned!;
    }
}
