using MambaVL.Models;
using Microsoft.Extensions.Logging;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Scan;

/// <summary>A scan that has a backward pass of its own. Results live in the caller's dispose scope.</summary>
/// <param name="Name">What messages call it.</param>
/// <param name="Forward">Output, last state, and the states that the backward pass starts from.</param>
/// <param name="Backward">The gradients of all nine tensors, in the order of <see cref="ScanArguments.Tensors"/>, from the
/// arguments, those states, and the gradients of output and last state, either of which may be null.</param>
internal sealed record ScanKernel(
    string Name,
    Func<ScanArguments, (Tensor output, Tensor lastState, Tensor checkpoints)> Forward,
    Func<ScanArguments, Tensor, Tensor?, Tensor?, Tensor?[]> Backward);

/// <summary>A ScanKernel as one operation of autograd.</summary>
internal sealed class ScanFunction : autograd.MultiTensorFunction<ScanFunction>
{
    private const string Softplus = "softplus", Kernel = "kernel", Wanted = "wanted";

    // Autograd takes over what backward returns, but TorchSharp leaves the handles to the garbage collector, which does
    // not see their size. So each backward of a thread releases the handles of the one before; a dispose scope around
    // the step releases them too.
    [ThreadStatic]
    private static List<Tensor?>? _returned;

    /// <inheritdoc/>
    public override string Name => nameof(SelectiveScan);

    public static (Tensor output, Tensor lastState) Record(ScanArguments x, ScanKernel kernel)
    {
        var results = apply([.. x.Tensors, x.deltaSoftplus, kernel]);
        return (results[0], results[1]);
    }

    public override List<Tensor> forward(autograd.AutogradContext ctx, params object[] vars)
    {
        var kernel = (ScanKernel)vars[10];
        var x = new ScanArguments((Tensor)vars[0], (Tensor)vars[1], (Tensor)vars[2], (Tensor)vars[3], (Tensor)vars[4],
            (Tensor?)vars[5], (Tensor?)vars[6], (Tensor?)vars[7], (bool)vars[9], (Tensor?)vars[8]);
        var (output, lastState, checkpoints) = kernel.Forward(x);
        ctx.set_materialize_grads(false);
        ctx.save_data(Softplus, x.deltaSoftplus);
        ctx.save_data(Kernel, kernel);
        ctx.save_data(Wanted, x.Tensors.Select(t => t is { requires_grad: true }).ToArray());
        ctx.save_for_backward([.. x.Tensors!, checkpoints]);
        return [output, lastState];
    }

    public override List<Tensor> backward(autograd.AutogradContext ctx, List<Tensor> grad_outputs)
    {
        _returned?.ForEach(t => t?.Dispose());
        using var scope = NewDisposeScope();
        var wanted = (bool[])ctx.get_data(Wanted);
        var kernel = (ScanKernel)ctx.get_data(Kernel);
        Tensor?[] gradients;
        try
        {
            if (is_grad_enabled()) throw new NotSupportedException(
                $"The {kernel.Name} kernel of the selective scan has no second derivative (create_graph). Set MAMBAVL_SCAN=reference for one.");
            var saved = ctx.get_saved_variables();
            var x = new ScanArguments(saved[0], saved[1], saved[2], saved[3], saved[4],
                saved[5], saved[6], saved[7], (bool)ctx.get_data(Softplus), saved[8]);
            gradients = kernel.Backward(x, saved[9], Given(grad_outputs[0]), Given(grad_outputs[1]));
        }
        catch (Exception e)
        {
            // An exception must not cross libtorch's frames: the process would end. Gradients that cannot fit make
            // autograd throw to the caller of backward instead.
            BackwardErrors.Keep(e);
            ScanBackend.Logger.LogError(e, "The backward pass of the selective scan failed; autograd will report an invalid gradient.");
            gradients = wanted.Select(_ => (Tensor?)zeros(0)).ToArray();
        }
        foreach (var t in grad_outputs) t.Dispose();
        _returned = [.. gradients.Select((t, i) => wanted[i] ? t?.MoveToOuterDisposeScope() : null), null, null];
        return _returned!;
    }

    private static Tensor? Given(Tensor t) => t.IsInvalid ? null : t;
}
