namespace MambaVL.Models;

/// <summary>x</summary>
public sealed record Eva02Config
{
    internal const double NormEps = 1e-6;
    /// <summary>x</summary>
    public required int Depth { get; init; }
    /// <summary>x</summary>
    public required int Width { get; init; }
    /// <summary>x</summary>
    public required int Heads { get; init; }
    /// <summary>x</summary>
    public required int MlpWidth { get; init; }
    /// <summary>x</summary>
    public required int PatchSize { get; init; }
    /// <summary>x</summary>
    public required int ImageSize { get; init; }
    /// <summary>x</summary>
    public bool FusedQkv { get; init; }
    /// <summary>x</summary>
    public bool PackedMlp { get; init; }
    /// <summary>x</summary>
    public bool AttentionNorm { get; init; } = true;
    /// <summary>x</summary>
    public bool FinalNorm { get; init; } = true;
    /// <summary>x</summary>
    public int ReferenceGrid { get; init; } = 16;
    internal void Validate() { }
}
