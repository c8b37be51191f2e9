using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Scan;

/// <summary>
/// The recurrence at the heart of Mamba (arXiv 2312.00752, algorithm 2), for each row and channel:
/// <code>
/// step = softplus(delta + deltaBias)
/// h[t] = exp(step[t] A) h[t-1] + step[t] B[t] u[t]
/// out[t] = (C[t] · h[t] + D u[t]) silu(z[t])
/// </code>
/// Which implementation runs is <see cref="ScanBackend"/>'s choice.
/// </summary>
public static class SelectiveScan
{
    /// <summary>
    /// Walks the recurrence over the whole of l. Autograd sees one operation; every tensor argument and the state
    /// given back take part. Under <c>no_grad</c> and <c>inference_mode</c> nothing is kept for a backward pass.
    /// A long input may run in pieces: the state of one piece is the initial state of the next.
    /// Inputs may be float32 or bfloat16, on a GPU float16 too (computed in float32), or all float64; strides are free.
    /// </summary>
    /// <param name="u">The input [b, d, l]: float32, bfloat16 or float64, on a GPU also float16.</param>
    /// <param name="delta">The step sizes before bias and softplus [b, d, l]; float32 or bfloat16 (on a GPU also float16; float64 where u is).</param>
    /// <param name="A">The state matrix, diagonal per channel [d, n], n from 1 to 256, negative where the state decays; float32.</param>
    /// <param name="B">What enters the state [b, n, l]; float32 or bfloat16.</param>
    /// <param name="C">What is read from the state [b, n, l]; float32 or bfloat16.</param>
    /// <param name="D">The weight of u in the output [d], or null; float32.</param>
    /// <param name="z">The gate [b, d, l], or null; float32 or bfloat16.</param>
    /// <param name="deltaBias">Added to delta [d], or null; float32.</param>
    /// <param name="deltaSoftplus">Whether the step sizes go through softplus (linear above 20, as PyTorch's).</param>
    /// <param name="initialState">The state before the first step [b, d, n], or null for zeros; float32.</param>
    /// <returns>The output [b, d, l] in u's type, and the state after the last step [b, d, n] in float32 (float64
    /// for float64 input). Both are new tensors that the caller owns.</returns>
    /// <exception cref="ArgumentNullException">A required tensor is null.</exception>
    /// <exception cref="ArgumentException">A tensor has another rank, shape, type or device than the above.</exception>
    /// <exception cref="InvalidOperationException">MAMBAVL_SCAN has an unknown value, or names a backend that does
    /// not run these tensors.</exception>
    public static (Tensor output, Tensor lastState) Run(
        Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D = null, Tensor? z = null,
        Tensor? deltaBias = null, bool deltaSoftplus = true, Tensor? initialState = null)
    {
        var arguments = new ScanArguments(u, delta, A, B, C, D, z, deltaBias, deltaSoftplus, initialState).Checked();
        return ScanBackend.For(u.device_type, u.dtype, u.device_index).Run(arguments);
    }
}
