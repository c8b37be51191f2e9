using System.Runtime.InteropServices;
using MambaVL.Models;
using static TorchSharp.torch;

namespace MambaVL.Generation;

/// <summary>Why an answer ended.</summary>
public enum FinishReason
{
    /// <summary>The model said that it is done.</summary>
    EndToken,

    /// <summary>The answer reached <see cref="GenerationOptions.MaxNewTokens"/>.</summary>
    MaxNewTokens,

    /// <summary>The model wrote one of <see cref="GenerationOptions.StopSequences"/>.</summary>
    StopSequence,
}

/// <summary>One row that is being generated.</summary>
internal sealed class DecodingRow
{
    /// <summary>The tokens chosen so far, without the end token.</summary>
    public List<int> Ids { get; } = [];

    /// <summary>Null while the row goes on.</summary>
    public FinishReason? Finished { get; internal set; }

    internal required DecoderState State { get; init; }

    internal required Sampler Sampler { get; init; }

    internal int Last { get; set; }
}

/// <summary>Decodes a batch of rows, a token for each row a step; a row that ends leaves the batch.</summary>
/// <remarks>
/// A row's tokens do not depend on the rows beside it: <see cref="LanguageModel.Decode"/> keeps rows apart, and prompts are read
/// one by one on the CPU. (On a GPU those of one length are read together, which may change the last bits.) Owns the rows'
/// states.
/// </remarks>
internal sealed class DecodingSession(LanguageModel model, Device device, GenerationOptions options, int endToken) : IDisposable
{
    private readonly List<DecodingRow> _rows = [];
    private DeviceSteps? _device; // null until the first step, and where steps are not chosen on a GPU
    private bool _stepped;

    public IReadOnlyList<DecodingRow> Rows => _rows;

    /// <summary>Adds a row whose prompt has been read: chooses its first token.</summary>
    /// <param name="state">Taken over by the session.</param>
    /// <param name="logits">After the prompt's last position, [1, vocabulary]; stays the caller's, its values are
    /// used up.</param>
    /// <param name="sampler">The row's own.</param>
    public DecodingRow Add(DecoderState state, Tensor logits, Sampler sampler)
    {
        var row = new DecodingRow { State = state, Sampler = sampler };
        _rows.Add(row);
        Choose([row], logits);
        return row;
    }

    /// <summary>One more token for each row that goes on; false when all have ended.</summary>
    public bool Step()
    {
        var active = _rows.Where(r => r.Finished is null).ToList();
        if (active.Count == 0) return false;

        using var inference = inference_mode();
        if (!_stepped) _device = DeviceSteps.TryCreate(model, options);
        _stepped = true;
        if (_device is not null)
        {
            foreach (var (row, id) in _device.Next(active))
            {
                row.State.Length++;
                row.Sampler.Accept(id);
                Append(row, id);
            }
            return true;
        }
        using var ids = tensor(active.Select(r => (long)r.Last).ToArray(), device: device);
        using var logits = model.Decode(ids, active.ConvertAll(r => r.State));
        Choose(active, logits);
        return true;
    }

    /// <summary>Ends a row whose text holds a stop sequence.</summary>
    public static void Stop(DecodingRow row)
    {
        row.Finished = FinishReason.StopSequence;
        row.State.Dispose();
    }

    private void Choose(List<DecodingRow> rows, Tensor logits)
    {
        using var scope = NewDisposeScope();
        var values = MemoryMarshal.Cast<byte, float>(logits.to(ScalarType.Float32).cpu().contiguous().bytes);
        var vocabulary = checked((int)logits.shape[1]);
        for (var i = 0; i < rows.Count; i++)
            Append(rows[i], rows[i].Sampler.Next(values.Slice(i * vocabulary, vocabulary)));
    }

    private void Append(DecodingRow row, int id)
    {
        if (id == endToken && !options.IgnoreEndToken)
            row.Finished = FinishReason.EndToken;
        else
        {
            row.Ids.Add(id);
            row.Last = id;
            if (row.Ids.Count == options.MaxNewTokens) row.Finished = FinishReason.MaxNewTokens;
        }
        if (row.Finished is not null) row.State.Dispose();
    }

    public void Dispose()
    {
        _device?.Dispose();
        foreach (var row in _rows) row.State.Dispose();
    }
}
