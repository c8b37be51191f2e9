using MambaVL.Cuda;
using MambaVL.Generation;
using MambaVL.Models;
using MambaVL.Prompts;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL;

public sealed partial class VisionLanguageModel
{
    // Prompts are read in pieces of at most this many positions: bounds the memory, and lets cancellation in between.
    private const int LongestPiece = 1024;

    // Of all rows that a GPU reads at once: enough to fill it, and it bounds the memory.
    private const int MostPositions = 8192;

    // Rows whose texts differ by less than this may reserve caches of one size.
    private const int AboutOneLength = 256;

    /// <summary>Answers one prompt about one picture.</summary>
    /// <inheritdoc cref="Generate(IReadOnlyList{GenerationRequest}, GenerationOptions?, Action{int, string}?, CancellationToken)"/>
    public GenerationResult Generate(GenerationRequest request, GenerationOptions? options = null, CancellationToken cancellationToken = default)
        => Generate([request], options, null, cancellationToken)[0];

    /// <summary>Answers several prompts at once. Each answer is what it would be alone: on the CPU to the bit, while on a GPU prompts
    /// of one length are read together, and their logits may differ in the last bits.</summary>
    /// <remarks>Prompts about one and the same picture that begin alike (the picture first) share the work of reading
    /// it.</remarks>
    /// <param name="requests">The prompts.</param>
    /// <param name="options">How tokens are chosen; greedy when null.</param>
    /// <param name="onText">Called with a row and the next piece of its text as soon as it is there, on the calling
    /// thread. A piece is never a part of a character.</param>
    /// <param name="cancellationToken">Looked at before each prompt and each token.</param>
    /// <returns>The answers, in the order of the prompts.</returns>
    /// <exception cref="ArgumentException">A prompt does not have a place for each of its picture's patches, or holds
    /// an id that the model does not have.</exception>
    /// <exception cref="OperationCanceledException">It was cancelled.</exception>
    /// <exception cref="CudaException">A kernel failed on the GPU.</exception>
    public IReadOnlyList<GenerationResult> Generate(IReadOnlyList<GenerationRequest> requests, GenerationOptions? options = null,
        Action<int, string>? onText = null, CancellationToken cancellationToken = default)
    {
        using var generation = new Answering(this, requests, options, cancellationToken);
        while (generation.MoveNext())
            if (onText is not null)
                foreach (var (row, text) in generation.NewText)
                    if (text.Length > 0) onText(row, text);
        return generation.Results();
    }

    /// <summary>Answers one prompt piece by piece, as its text comes. A piece is never a part of a character.</summary>
    /// <inheritdoc cref="Generate(IReadOnlyList{GenerationRequest}, GenerationOptions?, Action{int, string}?, CancellationToken)"/>
    public IEnumerable<string> Stream(GenerationRequest request, GenerationOptions? options = null, CancellationToken cancellationToken = default)
    {
        ArgumentNullException.ThrowIfNull(request);
        Check([request]);
        return Pieces();

        IEnumerable<string> Pieces()
        {
            using var generation = new Answering(this, [request], options, cancellationToken);
            while (generation.MoveNext())
                foreach (var (_, text) in generation.NewText)
                    if (text.Length > 0) yield return text;
        }
    }

    private void Check(IReadOnlyList<GenerationRequest> requests)
    {
        ArgumentNullException.ThrowIfNull(requests);
        for (var i = 0; i < requests.Count; i++)
        {
            var (image, ids, _) = requests[i] ?? throw new ArgumentException($"Prompt {i} is null.", nameof(requests));
            ArgumentNullException.ThrowIfNull(image);
            ArgumentNullException.ThrowIfNull(ids);
            var patches = image.Embeddings.shape[0];
            var places = ids.Count(id => id == ImageTokens.Placeholder);
            if (places != patches)
                throw new ArgumentException($"Prompt {i} has {places} places for patches (id {ImageTokens.Placeholder}), and its picture {patches} patches; expected as many. Build the ids with VisionLanguageModel.Sequence.", nameof(requests));
            foreach (var id in ids)
                if (id != ImageTokens.Placeholder && (id < 0 || id >= Language.VocabularySize))
                    throw new ArgumentException($"Prompt {i} holds the id {id}; the model has ids 0 to {Language.VocabularySize - 1}.", nameof(requests));
            if (ids.Count == 0 || ids[^1] == ImageTokens.Placeholder)
                throw new ArgumentException($"Prompt {i} ends within the picture or is empty; expected a separator or text after the last patch.", nameof(requests));
            if (image.Embeddings.shape[1] != Language.HiddenSize)
                throw new ArgumentException($"Picture {i} was encoded {image.Embeddings.shape[1]} wide, and the model reads {Language.HiddenSize}; encode it with this model.", nameof(requests));
        }
    }

    /// <summary>The answers to a batch of prompts on their way: the prompts are read, then one token a row comes at a time.</summary>
    private sealed class Answering : IDisposable
    {
        private readonly VisionLanguageModel _model;
        private readonly IReadOnlyList<GenerationRequest> _requests;
        private readonly GenerationOptions _options;
        private readonly CancellationToken _cancellation;
        private readonly DecodingSession _session;
        private readonly List<(int Row, string Text)> _newText = [];
        private readonly StreamingDecoder[] _decoders;
        private readonly StopFilter[] _stops;
        private readonly int[] _decoded;
        private bool _started;

        public Answering(VisionLanguageModel model, IReadOnlyList<GenerationRequest> requests, GenerationOptions? options, CancellationToken cancellation)
        {
            model.Check(requests);
            (_model, _requests, _cancellation) = (model, requests, cancellation);
            _options = (options ?? new()).Checked();
            _session = new(model.Language, model.Device, _options, model.Tokenizer.EndOfTextId);
            _decoders = [.. requests.Select(_ => new StreamingDecoder(model.Tokenizer))];
            _stops = [.. requests.Select(_ => new StopFilter(_options.StopSequences))];
            _decoded = new int[requests.Count];
        }

        /// <summary>What the last step added, by row.</summary>
        public IReadOnlyList<(int Row, string Text)> NewText => _newText;

        public bool MoveNext()
        {
            _cancellation.ThrowIfCancellationRequested();
            try
            {
                if (_started)
                {
                    if (!_session.Step()) return false;
                }
                else
                {
                    Start();
                    _started = true;
                }
            }
            catch (Exception e) when (CudaFaults.Behind(e) is { } fault)
            {
                throw fault;
            }

            _newText.Clear();
            for (var i = 0; i < _session.Rows.Count; i++)
            {
                var row = _session.Rows[i];
                var text = "";
                while (_decoded[i] < row.Ids.Count) text += _decoders[i].Append(row.Ids[_decoded[i]++]);
                if (row.Finished is not null) text += _decoders[i].Flush(); // empty when it was flushed before
                text = _stops[i].Append(text);
                if (_stops[i].Reached) DecodingSession.Stop(row);
                else if (row.Finished is not null) text += _stops[i].Flush();
                if (text.Length > 0) _newText.Add((i, text));
            }
            return true;
        }

        public IReadOnlyList<GenerationResult> Results() => [.. _session.Rows.Select(r =>
        {
            var text = _model.Tokenizer.Decode(r.Ids, skipSpecialTokens: true);
            if (r.Finished == FinishReason.StopSequence) text = text[..StopFilter.Find(text, _options.StopSequences)];
            return new GenerationResult(r.Ids, text, r.Finished!.Value);
        })];

        public void Dispose() => _session.Dispose();

        // A prompt is always read in the same two pieces, up to the picture's end and after it. So a first piece that
        // another row has read already can be taken from there: the bits are those of reading it again.
        private void Start()
        {
            using var inference = inference_mode();
            var rows = _requests.Select((r, i) => new Prompt(i, r, FirstPiece(r.InputIds))).ToList();
            foreach (var row in rows) row.Source = _model.Language.CopiesStates ? rows.First(row.BeginsAs) : row;
            var batches = Batches(rows);
            var logits = new Tensor?[rows.Count];
            try
            {
                foreach (var batch in batches)
                {
                    var states = _model.Language.CreateStates(batch.Count, batch.Max(row => row.Request.InputIds.Count) + _options.MaxNewTokens);
                    for (var i = 0; i < batch.Count; i++) batch[i].State = states[i];
                }
                foreach (var batch in batches)
                {
                    var readers = batch.TakeWhile(row => row.Source == row).ToList();
                    if (readers.Count > 0) Read(readers, row => row.First, withPicture: true).Dispose();
                }
                foreach (var row in rows)
                    if (row.Source != row) row.State!.CopyFrom(row.Source.State!);
                foreach (var batch in batches)
                    for (var at = 0; at < batch.Count;)
                    {
                        var run = batch.Skip(at).TakeWhile(row => row.Rest.Length == batch[at].Rest.Length).ToList();
                        using var last = Read(run, row => row.Rest, withPicture: false);            // (b, vocabulary)
                        for (var i = 0; i < run.Count; i++) logits[run[i].Index] = last.narrow(0, i, 1);
                        at += run.Count;
                    }
                foreach (var row in rows)
                {
                    var (_, ids, seed) = row.Request;
                    var sampler = new Sampler(_options, seed, ids);
                    _session.Add(row.TakeState(), logits[row.Index]!, sampler);
                }
            }
            finally
            {
                foreach (var row in rows) row.State?.Dispose();
                foreach (var last in logits) last?.Dispose();
            }
        }

        // Rows whose states lie side by side, for a GPU to read them at once: equally long up to the picture's end, and of about one
        // length in all, as caches are reserved for the longest. Those stand first that read the first piece and do not take it
        // from another row, and those with a rest of one length side by side. On the CPU each row stands by itself: more at once
        // are no faster there.
        private List<List<Prompt>> Batches(List<Prompt> rows)
        {
            var together = _model.Language.ReadsTogether || _model.Device.type == DeviceType.CUDA;
            return [.. rows.GroupBy(row => (row.First.Length, row.Rest.Length / AboutOneLength, row.Request.Image.Embeddings.shape[0], row.Request.Image.Embeddings.dtype))
                .SelectMany(group => group.OrderBy(row => row.Source != row).ThenBy(row => row.Rest.Length).Chunk(Size([.. group])))
                .Select(chunk => chunk.ToList())];

            // As many as there are positions for, in batches of about one size.
            int Size(List<Prompt> group)
            {
                var most = together ? Math.Max(1, MostPositions / Math.Min(LongestPiece, group.Max(row => row.Request.InputIds.Count))) : 1;
                var batches = (group.Count + most - 1) / most;
                return (group.Count + batches - 1) / batches;
            }
        }

        // Up to the separator that ends the picture, but never the whole prompt: the last piece gives the logits.
        private static long[] FirstPiece(IReadOnlyList<long> ids)
        {
            var end = ids.Count - 1;
            while (end >= 0 && ids[end] != ImageTokens.Placeholder) end--;
            return [.. ids.Take(Math.Min(end + 2, ids.Count - 1))];
        }

        /// <summary>Reads a piece of each row, equally long in all, the picture's patches where their places are; gives the logits
        /// after the last position, [b, vocabulary].</summary>
        private Tensor Read(List<Prompt> rows, Func<Prompt, long[]> piece, bool withPicture)
        {
            using var scope = NewDisposeScope();
            var length = piece(rows[0]).Length;
            var ids = tensor(rows.SelectMany(piece).ToArray()).view(rows.Count, length);     // (b, l)
            var embeddings = withPicture
                ? _model.Embed(ids, stack(rows.Select(row => row.Request.Image.Embeddings.to(_model.Device))))
                : _model.Language.Embed(ids.to(_model.Device));                             // (b, l, d)
            var states = rows.ConvertAll(row => row.State!);
            Tensor? logits = null;
            for (long at = 0; at < length; at += LongestPiece)
            {
                _cancellation.ThrowIfCancellationRequested();
                logits = _model.Language.Prefill(embeddings.narrow(1, at, Math.Min(LongestPiece, length - at)), states);
            }
            return logits!.MoveToOuterDisposeScope();                                       // (b, vocabulary)
        }

        /// <summary>A request on its way into the session.</summary>
        private sealed class Prompt(int index, GenerationRequest request, long[] first)
        {
            public int Index => index;

            public GenerationRequest Request => request;

            /// <summary>The ids up to the picture's end, and those after it.</summary>
            public long[] First => first;

            public long[] Rest { get; } = [.. request.InputIds.Skip(first.Length)];

            /// <summary>The row that reads the first piece: the first of those that begin alike, itself perhaps.</summary>
            public Prompt Source { get; set; } = null!;

            public DecoderState? State { get; set; }

            public bool BeginsAs(Prompt other) => ReferenceEquals(request.Image, other.Request.Image) && first.AsSpan().SequenceEqual(other.First);

            /// <summary>The state, which is the caller's from now on.</summary>
            public DecoderState TakeState()
            {
                var state = State!;
                State = null;
                return state;
            }
        }
    }
}
