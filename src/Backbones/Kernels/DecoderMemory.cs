using static TorchSharp.torch;

namespace MambaVL.Kernels;

/// <summary>What the decoders of both models share at their two ends.</summary>
internal static unsafe class DecoderMemory
{
    // The widest vector: a row of activations ends on a whole number of any.
    private const int Lanes = 16;

    /// <summary>Floats from one row of activations to the next.</summary>
    public static int Stride(int width) => (width + Lanes - 1) / Lanes * Lanes;

    /// <summary>Whether sizes leave room for the arithmetic of int.</summary>
    public static bool Fits(params ReadOnlySpan<long> sizes)
    {
        foreach (var size in sizes)
            if (size > int.MaxValue / 8) return false;
        return true;
    }

    /// <summary>The rows of the table that ids name, widened: [b, stride].</summary>
    public static void Embed(Tensor ids, in Matrix table, float* x, int stride)
    {
        using var near = ids.cpu();
        using var dense = near.contiguous();
        fixed (byte* bytes = dense.bytes)
        {
            var b = (int)dense.numel();
            for (var i = 0; i < b; i++) table.Row(((long*)bytes)[i], x + (nint)i * stride);
        }
    }

    /// <summary>The head's product, written into a tensor that the caller owns: [b, vocabulary].</summary>
    public static Tensor Logits(CpuTeam team, int maxThreads, in Matrix head, float* x, int stride, int b)
    {
        var logits = empty(b, head.Rows, dtype: ScalarType.Float32);
        fixed (byte* y = logits.bytes) MatVec.Run(team, head, x, stride, b, (float*)y, head.Rows, maxThreads);
        return logits;
    }
}
