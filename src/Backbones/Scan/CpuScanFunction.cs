using Microsoft.Extensions.Logging;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Scan;

/// <summary>CpuScan as one operation of autograd.</summary>
internal sealed class CpuScanFunction : autograd.MultiTensorFunction<CpuScanFunction>
{
    private const string Softplus = "softplus", Bits = "bits", Wanted = "wanted";

    // Autograd takes over what backward returns, but TorchSharp leaves the handles to the garbage collector, which does
    // not see their size. So each backward of a thread releases the handles of the one before; a dispose scope around
    // the step releases them too.
    [ThreadStatic]
    private static List<Tensor?>? _returned;

    /// <inheritdoc/>
    public override string Name => nameof(SelectiveScan);

    public static (Tensor output, Tensor lastState) Record(ScanArguments x, int bits)
    {
        var results = apply([.. x.Tensors, x.deltaSoftplus, bits]);
        return (results[0], results[1]);
    }

    public override List<Tensor> forward(autograd.AutogradContext ctx, params object[] vars)
    {
        var bits = (int)vars[10];
        var x = new ScanArguments((Tensor)vars[0], (Tensor)vars[1], (Tensor)vars[2], (Tensor)vars[3], (Tensor)vars[4],
            (Tensor?)vars[5], (Tensor?)vars[6], (Tensor?)vars[7], (bool)vars[9], (Tensor?)vars[8]);
        var (output, lastState, checkpoints) = CpuScan.Forward(x, bits, keepCheckpoints: true);
        ctx.set_materialize_grads(false);
        ctx.save_data(Softplus, x.deltaSoftplus);
        ctx.save_data(Bits, bits);
        ctx.save_data(Wanted, x.Tensors.Select(t => t is { requires_grad: true }).ToArray());
        ctx.save_for_backward([.. x.Tensors!, checkpoints!]);
        return [output, lastState];
    }

    public override List<Tensor> backward(autograd.AutogradContext ctx, List<Tensor> grad_outputs)
    {
        _returned?.ForEach(t => t?.Dispose());
        using var scope = NewDisposeScope();
        var wanted = (bool[])ctx.get_data(Wanted);
        Tensor?[] gradients;
        try
        {
            if (is_grad_enabled()) throw new NotSupportedException(
                "The CPU kernel of the selective scan has no second derivative (create_graph). Set MAMBAVL_SCAN=reference for one.");
            var saved = ctx.get_saved_variables();
            var x = new ScanArguments(saved[0], saved[1], saved[2], saved[3], saved[4],
                saved[5], saved[6], saved[7], (bool)ctx.get_data(Softplus), saved[8]);
            gradients = CpuScan.Backward(x, saved[9], Given(grad_outputs[0]), Given(grad_outputs[1]), (int)ctx.get_data(Bits));
        }
        catch (Exception e)
        {
            // An exception must not cross libtorch's frames: the process would end. Gradients that cannot fit make
            // autograd throw to the caller of backward instead.
            ScanBackend.Logger.LogError(e, "The backward pass of the selective scan failed; autograd will report an invalid gradient.");
            gradients = wanted.Select(_ => (Tensor?)zeros(0)).ToArray();
        }
        foreach (var t in grad_outputs) t.Dispose();
        _returned = [.. gradients.Select((t, i) => wanted[i] ? t?.MoveToOuterDisposeScope() : null), null, null];
        return _returned!;
    }

    private static Tensor? Given(Tensor t) => t.IsInvalid ? null : t;
}
