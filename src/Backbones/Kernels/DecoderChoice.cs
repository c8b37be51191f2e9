namespace MambaVL.Kernels;

/// <summary>The one place where the way of decoding is chosen: the kernels wherever they take the tensors, unless the
/// environment variable <c>MAMBAVL_DECODE</c>, which is read at every call, asks for one way.</summary>
internal static class DecoderChoice
{
    /// <summary>The environment variable: <c>cpu</c>, <c>cuda</c> or <c>reference</c>.</summary>
    public const string Variable = "MAMBAVL_DECODE";

    /// <summary>Whether the CPU's kernels may decode.</summary>
    /// <exception cref="InvalidOperationException">The variable has another value.</exception>
    public static bool UseKernels => Asked is null or "cpu";

    /// <summary>Whether the CUDA kernels may decode.</summary>
    /// <inheritdoc cref="UseKernels" path="/exception"/>
    public static bool UseCuda => Asked is null or "cuda";

    /// <summary>Whether it is an error where the CUDA kernels cannot decode.</summary>
    /// <inheritdoc cref="UseKernels" path="/exception"/>
    public static bool MustUseCuda => Asked is "cuda";

    private static string? Asked => Environment.GetEnvironmentVariable(Variable) switch
    {
        null or "" => null,
        ("cpu" or "cuda" or "reference") and var way => way,
        var other => throw new InvalidOperationException($"{Variable} is '{other}'; expected cpu, cuda or reference, or not set."),
    };
}
