using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace MambaVL.Cuda;

/// <summary>What a decode step reads and moves on by itself: Control of decode.cuh. The host writes it when a batch changes.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct DecodeControl
{
    /// <summary>The most rows of a batch.</summary>
    public const int MostRows = 16;

    /// <summary>The last token of each row.</summary>
    public Rows<int> Ids;

    /// <summary>Tokens before it.</summary>
    public Rows<int> Positions;

    /// <summary>Tokens that there is room for.</summary>
    public Rows<int> Room;

    /// <summary>Steps so far: the number under which the host finds the next.</summary>
    public Rows<uint> Steps;

    /// <summary>The state of each row's generator.</summary>
    public Rows<ulong> Random;

    /// <summary>Each row's greatest logit, with its id, while a step is under way; else 0.</summary>
    public Rows<ulong> Greatest;

    /// <summary>Share of the probability that is kept.</summary>
    public double TopP;

    /// <summary>1 / temperature; 0: greedy.</summary>
    public float InverseTemperature;

    /// <summary>The repetition penalty.</summary>
    public float Penalty;

    /// <summary>Tokens that are kept; 0: all.</summary>
    public int TopK;

    /// <summary>How many rows are there; the kernels compute others for nothing.</summary>
    public int Count;

    /// <summary>One value for each row.</summary>
    [InlineArray(MostRows)]
    public struct Rows<T> where T : unmanaged
    {
        private T _first;
    }
}
