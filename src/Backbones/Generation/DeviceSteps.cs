using MambaVL.Cuda;
using MambaVL.Models;

namespace MambaVL.Generation;

/// <summary>Steps of a decoding session whose tokens a GPU chooses by itself. It is kept a few steps ahead of the host, so that
/// it never waits while a token becomes text.</summary>
/// <remarks>
/// A row that ends goes on for the steps that are on their way, and these tokens are dropped; then the batch is made anew
/// without it. Its state may be disposed at once: the memory goes to work that comes later in the same stream.
/// </remarks>
internal sealed class DeviceSteps : IDisposable
{
    /// <summary>Steps that the GPU may be ahead: each of 0.5 to 3 ms for the published models.</summary>
    public const int Ahead = 4;

    private readonly CudaDecoder _decoder;
    private readonly GenerationOptions _options;
    private readonly List<(DecodeBatch Batch, List<DecodingRow> Rows)> _parts = [];

    private DeviceSteps(CudaDecoder decoder, GenerationOptions options) => (_decoder, _options) = (decoder, options);

    /// <summary>Null where the model's next tokens are chosen on the host.</summary>
    public static DeviceSteps? TryCreate(LanguageModel model, GenerationOptions options)
    {
        if (model.CudaDecoder?.Rent() is not { } batch) return null;
        var steps = new DeviceSteps(model.CudaDecoder, options);
        steps._parts.Add((batch, []));
        return steps;
    }

    /// <summary>The next token of each row that was there when its step began and still goes on; -1 where its logits were not
    /// finite.</summary>
    /// <param name="active">The rows that go on.</param>
    public IReadOnlyList<(DecodingRow Row, int Id)> Next(IReadOnlyList<DecodingRow> active)
    {
        // Once a row has ended or come, what is on its way is waited for.
        var same = _parts.SelectMany(p => p.Rows).SequenceEqual(active);
        if (!same && _parts.All(p => p.Batch.InFlight == 0))
        {
            Load(active);
            same = true;
        }
        if (same)
            foreach (var (batch, rows) in _parts) Enqueue(batch, rows);

        var tokens = new List<(DecodingRow, int)>();
        Span<int> ids = stackalloc int[DecodeControl.MostRows];
        foreach (var (batch, rows) in _parts)
        {
            if (batch.InFlight == 0) continue;
            batch.Wait(ids);
            for (var i = 0; i < rows.Count; i++)
                if (rows[i].Finished is null) tokens.Add((rows[i], ids[i]));
        }
        return tokens;
    }

    public void Dispose()
    {
        foreach (var (batch, _) in _parts) _decoder.GiveBack(batch);
        _parts.Clear();
    }

    // As even parts as they can be, none larger than a batch.
    private void Load(IReadOnlyList<DecodingRow> active)
    {
        var parts = (active.Count + DecodeControl.MostRows - 1) / DecodeControl.MostRows;
        while (_parts.Count > parts)
        {
            _decoder.GiveBack(_parts[^1].Batch);
            _parts.RemoveAt(_parts.Count - 1);
        }
        while (_parts.Count < parts)
            _parts.Add((_decoder.Rent() ?? throw new InvalidOperationException("The model was moved while it decoded."), []));
        for (var i = 0; i < parts; i++)
        {
            var (batch, rows) = _parts[i];
            rows.Clear();
            rows.AddRange(active.Skip(active.Count * i / parts).Take(active.Count * (i + 1) / parts - active.Count * i / parts));
            batch.Load(rows.ConvertAll(r => r.State), rows.ConvertAll(r => r.Last).ToArray(), _options, rows.ConvertAll(r => r.Sampler));
        }
    }

    // No step for tokens that nobody wants: a row's state has no room for them.
    private void Enqueue(DecodeBatch batch, List<DecodingRow> rows)
    {
        var wanted = Math.Min(Ahead, rows.Min(r => _options.MaxNewTokens - r.Ids.Count));
        while (batch.InFlight < wanted) batch.Enqueue();
    }
}
