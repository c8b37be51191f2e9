using System.Runtime.InteropServices;
using System.Security.Cryptography;
using MambaVL.Images;
using MambaVL.Prompts;
using MambaVL.Transforms;
using Microsoft.ML;

namespace MambaVL.Training;

/// <summary>Reads a whole data set before training begins, so that whatever is wrong with it shows then and not in the night.</summary>
internal sealed class TrainingReader
{
    private readonly TrainingOptions _options;
    private readonly StepHost _host;
    private readonly SequenceBuilder _sequence;
    private readonly PictureStore _pictures;
    private readonly long[] _imageIds;
    private readonly int _firstPatch; // how many ids of the image's stand before its first patch
    private readonly CancellationToken _cancellation;

    public TrainingReader(TrainingOptions options, VisionLanguageConfig config, StepHost host, CancellationToken cancellation)
    {
        (_options, _host, _cancellation) = (options, host, cancellation);
        var (tokenizer, size, patch) = (options.Model.Tokenizer, config.Images.ImageSize, config.Vision.PatchSize);
        _sequence = new(tokenizer, size, patch) { InstructionFirst = config.InstructionFirst };
        _pictures = new(new ImageProcessor(config.Images), options.Images, options.PixelMemory);
        _imageIds = ImageTokens.Sequence(tokenizer, size, size, patch);
        _firstPatch = Array.IndexOf(_imageIds, ImageTokens.Placeholder);
    }

    /// <summary>The columns of a data set, checked.</summary>
    /// <exception cref="ArgumentOutOfRangeException">One is missing or of another kind (ML.NET's schema mismatch).</exception>
    public static void Check(TrainingOptions options, StepHost host, DataViewSchema schema) => _ = new RowColumns(options, host, schema);

    /// <param name="data">The data.</param>
    /// <param name="keepAsked">Whether texts are kept for a validation that generates.</param>
    /// <param name="what">What the log calls it.</param>
    /// <exception cref="TrainingRowException">A row cannot be used.</exception>
    /// <exception cref="InvalidDataException">No row is left.</exception>
    public TrainingData Read(IDataView data, bool keepAsked, string what)
    {
        var columns = new RowColumns(_options, _host, data.Schema);
        var raw = ReadRows(data, columns);
        using (var channel = new LoadProgress(_host, what)) _pictures.Load(channel.Set, _cancellation);

        var (rows, asked) = (new List<TrainingRow>(raw.Count), new List<AskedRow>());
        var (bad, tooLong) = (0, 0);
        var converted = new (TrainingRow? Row, TrainingRowException? Error)[raw.Count];
        Parallel.For(0, raw.Count, new() { CancellationToken = _cancellation }, i => converted[i] = Convert(raw[i]));
        for (var i = 0; i < raw.Count; i++)
        {
            var (row, error) = converted[i];
            if (error is null && row!.Ids.Length + _imageIds.Length > _options.MaxLength)
            {
                error = Error(raw[i], _options.Columns.Target, $"found {row.Ids.Length + _imageIds.Length} ids; expected at most {_options.MaxLength} (TrainingOptions.MaxLength), for a row that is cut loses its answer.");
                if (_options.OnLongRow == RowTreatment.Fail) throw error;
                if (tooLong++ == 0) _host.Warning($"The first {what} row that is too long: {error.Message}");
                continue;
            }
            if (error is not null)
            {
                if (_options.OnBadRow == RowTreatment.Fail) throw error;
                if (bad++ == 0) _host.Warning($"The first {what} row that cannot be used: {error.Message}");
                continue;
            }
            rows.Add(row!);
            if (keepAsked) asked.Add(raw[i].Asked);
        }
        if (bad + tooLong > 0) _host.Warning($"Of {raw.Count:N0} {what} rows {bad:N0} cannot be used and {tooLong:N0} are longer than {_options.MaxLength} ids; they are left out.");
        if (rows.Count == 0)
            throw new InvalidDataException($"No {what} row is left to learn from: of {raw.Count:N0}, {bad:N0} cannot be used and {tooLong:N0} are longer than {_options.MaxLength} ids.");
        return new([.. rows], [.. asked], _pictures, _imageIds, bad, tooLong, Fingerprint(rows));
    }

    private List<RawRow> ReadRows(IDataView data, RowColumns columns)
    {
        var rows = new List<RawRow>();
        using var cursor = data.GetRowCursor(columns.Needed);
        var read = columns.Bind(cursor, _pictures, _options.Images.MaxPixels);
        while (cursor.MoveNext())
        {
            _cancellation.ThrowIfCancellationRequested();
            rows.Add(read());
        }
        return rows;
    }

    private (TrainingRow?, TrainingRowException?) Convert(RawRow raw)
    {
        var names = _options.Columns;
        if (raw.Error is { } unread) return (null, Error(raw, names.Image, unread.Message, unread));
        if (_pictures.Problem(raw.Picture) is { } problem) return (null, Error(raw, names.Image, problem.Message, problem));
        try
        {
            var task = _options.Task ?? TaskConversation.Parse(raw.TaskName);
            var asked = raw.Asked = raw.Asked with { Task = task };
            var (width, height) = _pictures.Size(raw.Picture);
            var boxes = task is VisionTask.Grounding or VisionTask.DenseCaptioning or VisionTask.GroundedCaptioning
                ? TaskConversation.Shares(asked.Box, width, height) : [];
            return (Row(raw, TaskConversation.Of(task, asked.Question, asked.Choices, boxes, asked.Target)), null);
        }
        catch (RowValueException e)
        {
            return (null, Error(raw, e.Role switch
            {
                RowRole.Task => names.Task, RowRole.Choices => names.Choices, RowRole.Target => names.Target, RowRole.Box => names.Box, _ => names.Question,
            }, e.Message, e));
        }
        catch (ArgumentException e)
        {
            return (null, Error(raw, names.Question, e.Message, e));
        }
    }

    private TrainingRow Row(RawRow raw, Conversation conversation)
    {
        var (ids, labels) = _sequence.Build(conversation);
        var imageAt = Array.IndexOf(ids, ImageTokens.Placeholder) - _firstPatch;
        int[] text = [.. ids.Take(imageAt).Concat(ids.Skip(imageAt + _imageIds.Length)).Select(id => checked((int)id))];
        bool[] isAnswer = [.. labels.Take(imageAt).Concat(labels.Skip(imageAt + _imageIds.Length)).Select(l => l != SequenceBuilder.Ignore)];
        if (Array.FindIndex(text, id => id >= _options.Model.Language.VocabularySize) is >= 0 and var at)
            throw new ArgumentException($"the tokeniser gives the id {text[at]}, and the model has ids 0 to {_options.Model.Language.VocabularySize - 1}; give the tokeniser that the model was made for.");
        return new(raw.Position, raw.Picture, text, isAnswer, imageAt);
    }

    private TrainingRowException Error(RawRow raw, string column, string problem, Exception? inner = null)
        => new(column, raw.Position, raw.Picture >= 0 ? _pictures.Path(raw.Picture) : null, problem, inner);

    private string Fingerprint(List<TrainingRow> rows)
    {
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        foreach (var row in rows)
        {
            hash.AppendData(_pictures.Hash(row.Picture));
            hash.AppendData(BitConverter.GetBytes(row.ImageAt));
            hash.AppendData(BitConverter.GetBytes(row.Ids.Length));
            hash.AppendData(MemoryMarshal.AsBytes(row.Ids.AsSpan()));
            hash.AppendData(MemoryMarshal.AsBytes(row.IsAnswer.AsSpan()));
        }
        return System.Convert.ToHexStringLower(hash.GetHashAndReset());
    }

    /// <summary>How far the pictures are, on the MLContext's progress channel.</summary>
    private sealed class LoadProgress : IDisposable
    {
        private readonly IDisposable _channel;
        private int _done;

        public LoadProgress(StepHost host, string what) => _channel = host.StartProgress($"Reading the pictures of {what} rows", "pictures", () => Volatile.Read(ref _done));

        public void Set(int done) => Volatile.Write(ref _done, Math.Max(done, Volatile.Read(ref _done)));

        public void Dispose() => _channel.Dispose();
    }
}
