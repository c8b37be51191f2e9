using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Scan;

/// <summary>The selective scan as a loop of tensor operations over time, on any device and in float64 too. Autograd
/// records every operation. It is what the other implementations are compared with.</summary>
internal static class ReferenceScan
{
    public static (Tensor output, Tensor lastState) Run(ScanArguments x)
    {
        using var scope = NewDisposeScope();
        var type = x.ComputeType;
        var u = x.u.to(type);
        var B = x.B.to(type);
        var C = x.C.to(type);

        var step = x.delta.to(type);                                                      // (b, d, l)
        if (x.deltaBias is not null) step = step + x.deltaBias.unsqueeze(-1);
        if (x.deltaSoftplus) step = nn.functional.softplus(step, beta: 1, threshold: 20);

        // unbind, not an index at each step: the gradient of an index is as large as the whole tensor.
        var (dts, us, Bs, Cs) = (step.unsqueeze(-1).unbind(2), u.unsqueeze(-1).unbind(2), B.unsqueeze(1).unbind(-1), C.unsqueeze(1).unbind(-1));
        var state = x.initialState?.clone()
            ?? zeros([u.shape[0], u.shape[1], x.A.shape[1]], dtype: type, device: u.device); // (b, d, n)
        var outputs = new List<Tensor>(dts.Length);
        for (var t = 0; t < dts.Length; t++)
        {
            using var now = NewDisposeScope();
            var next = exp(dts[t] * x.A) * state + dts[t] * us[t] * Bs[t];                // (b, d, n)
            outputs.Add((next * Cs[t]).sum(-1).MoveToOuterDisposeScope());                // (b, d)
            state.Dispose();
            state = next.MoveToOuterDisposeScope();
        }

        var y = outputs.Count > 0 ? stack(outputs, -1) : zeros_like(u);                   // (b, d, l)
        if (x.D is not null) y = y + x.D.unsqueeze(-1) * u;
        if (x.z is not null) y = y * nn.functional.silu(x.z.to(type));
        return (y.to(x.u.dtype).MoveToOuterDisposeScope(), state.MoveToOuterDisposeScope());
    }
}
