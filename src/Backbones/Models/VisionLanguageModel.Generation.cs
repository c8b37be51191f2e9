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

    /// <summary>Answers one prompt about one picture.</summary>
    /// <inheritdoc cref="Generate(IReadOnlyList{GenerationRequest}, GenerationOptions?, Action{int, string}?, CancellationToken)"/>
    public GenerationResult Generate(GenerationRequest request, GenerationOptions? options = null, CancellationToken cancellationToken = default)
        => Generate([request], options, null, cancellationToken)[0];

    /// <summary>Answers several prompts at once. Each answer is what it would be alone.</summary>
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
            var firsts = _requests.Select(r => FirstPiece(r.InputIds)).ToArray();
            var read = new List<(EncodedImage Image, long[] Ids, DecoderState State)>();
            try
            {
                for (var i = 0; i < _requests.Count; i++)
                {
                    var (image, ids, seed) = _requests[i];
                    var first = firsts[i];
                    var shared = read.FindIndex(r => IsSame(r.Image, r.Ids, i));
                    if (shared < 0)
                    {
                        // Room for the longest of the rows that may share this.
                        var length = _requests.Where(r => ReferenceEquals(r.Image, image)).Max(r => r.InputIds.Count) + _options.MaxNewTokens;
                        read.Add((image, first, _model.Language.CreateState(length)));
                        shared = read.Count - 1;
                        Read(first, image, read[shared].State).Dispose();
                    }

                    // The last row that begins so takes the state itself: a key-value cache may be large.
                    var state = read[shared].State;
                    if (Enumerable.Range(i + 1, _requests.Count - i - 1).Any(later => IsSame(image, first, later))) state = state.Clone();
                    else read.RemoveAt(shared);
                    try
                    {
                        using var logits = Read([.. ids.Skip(first.Length)], null, state);
                        _session.Add(state, logits, new Sampler(_options, seed, ids));
                    }
                    catch
                    {
                        state.Dispose();
                        throw;
                    }
                }
            }
            finally
            {
                foreach (var (_, _, state) in read) state.Dispose();
            }

            bool IsSame(EncodedImage image, long[] first, int row)
                => ReferenceEquals(image, _requests[row].Image) && first.AsSpan().SequenceEqual(firsts[row]);
        }

        // Up to the separator that ends the picture, but never the whole prompt: the last piece gives the logits.
        private static long[] FirstPiece(IReadOnlyList<long> ids)
        {
            var end = ids.Count - 1;
            while (end >= 0 && ids[end] != ImageTokens.Placeholder) end--;
            return [.. ids.Take(Math.Min(end + 2, ids.Count - 1))];
        }

        /// <summary>Reads ids, the picture's patches where their places are; gives the logits after the last.</summary>
        private Tensor Read(long[] ids, EncodedImage? image, DecoderState state)
        {
            using var scope = NewDisposeScope();
            var row = tensor(ids).unsqueeze(0);                                              // (1, l)
            var embeddings = image is null
                ? _model.Language.Embed(row.to(_model.Device))
                : _model.Embed(row, image.Embeddings.unsqueeze(0));                         // (1, l, d)
            Tensor? logits = null;
            for (long at = 0; at < ids.Length; at += LongestPiece)
            {
                _cancellation.ThrowIfCancellationRequested();
                logits = _model.Language.Prefill(embeddings.narrow(1, at, Math.Min(LongestPiece, ids.Length - at)), state);
            }
            return logits!.MoveToOuterDisposeScope();                                       // (1, vocabulary)
        }
    }
}
