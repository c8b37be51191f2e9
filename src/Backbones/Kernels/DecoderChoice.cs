namespace MambaVL.Kernels;

/// <summary>The one place where the way of decoding is chosen: the kernels wherever they take the tensors, unless the
/// environment variable <c>MAMBAVL_DECODE</c>, which is read at every call, asks for tensor operations.</summary>
internal static class DecoderChoice
{
    /// <summary>The environment variable: <c>cpu</c> or <c>reference</c>.</summary>
    public const string Variable = "MAMBAVL_DECODE";

    /// <exception cref="InvalidOperationException">The variable has another value.</exception>
    public static bool UseKernels => Environment.GetEnvironmentVariable(Variable) switch
    {
        null or "" or "cpu" => true,
        "reference" => false,
        var other => throw new InvalidOperationException($"{Variable} is '{other}'; expected cpu or reference, or not set."),
    };
}
