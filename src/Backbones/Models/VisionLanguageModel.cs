// A picture and a text in, a text out:
//
//   picture -> pixels -> vision encoder -> connector -> ┐
//                                                       ├ language model -> logits -> the next token
//   text -> ids -> embedding table --------------------> ┘
//
//   patches    [b, n, width]   one feature for each square of the picture (n = rows x columns)
//   embeddings [b, n, d]       the same, as wide as the language model is
//   ids        [b, l]          the sequence; ImageTokens.Placeholder stands where a patch's embedding goes
//   labels     [b, l]          what each position should be, SequenceBuilder.Ignore where nothing is asked
//
// The figure is figure 1 of arXiv 2409.05395; the sequence is described in docs/prompts.md.

using MambaVL.Generation;
using MambaVL.Images;
using MambaVL.Models;
using MambaVL.Prompts;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL;

/// <summary>A Mamba-VL or Pythia-VL model: sees a picture, reads a prompt and writes an answer.</summary>
/// <remarks>
/// Any number of threads may use one model at once; they share one copy of the weights. Tensors that a method returns
/// belong to the caller. Methods that generate or encode record no gradients; <see cref="Forward"/> does where they are
/// enabled.
/// </remarks>
public sealed partial class VisionLanguageModel : IDisposable
{
    // Prompts are read in pieces of at most this many positions: bounds the memory, and lets cancellation in between.
    private const int LongestPiece = 1024;

    internal VisionLanguageModel(VisionLanguageConfig config, VisionEncoder vision, Connector connector, LanguageModel language, Tokenizer tokenizer)
    {
        (Config, Vision, Connector, Language, Tokenizer) = (config, vision, connector, language, tokenizer);
        ImageProcessor = new(config.Images);
        Sequence = new(tokenizer, config.Images.ImageSize, config.Vision.PatchSize) { InstructionFirst = config.InstructionFirst };
    }

    /// <summary>The sizes of the three parts.</summary>
    public VisionLanguageConfig Config { get; }

    /// <summary>From pixels to patch features.</summary>
    public VisionEncoder Vision { get; }

    /// <summary>From patch features to the language model's embeddings.</summary>
    public Connector Connector { get; }

    /// <summary>From embeddings to logits.</summary>
    public LanguageModel Language { get; }

    /// <summary>From text to ids and back.</summary>
    public Tokenizer Tokenizer { get; }

    /// <summary>From a picture to pixels.</summary>
    public ImageProcessor ImageProcessor { get; }

    /// <summary>From a prompt to the ids of the whole sequence, the picture's places included.</summary>
    public SequenceBuilder Sequence { get; }

    /// <summary>Where the weights are.</summary>
    public Device Device => Language.parameters().First().device;

    /// <summary>Every parameter by its key in a checkpoint. They stay the model's.</summary>
    public IEnumerable<(string Name, TorchSharp.Modules.Parameter Parameter)> NamedParameters()
        => Language.named_parameters().Select(p => (p.name, p.parameter))
            .Concat(Connector.named_parameters().Select(p => (ConnectorPrefix + p.name, p.parameter)))
            .Concat(Vision.named_parameters().Select(p => (VisionPrefix + p.name, p.parameter)));

    /// <summary>The patch features of pictures: [b, 3, h, w] -> [b, patches, width].</summary>
    /// <param name="pixelValues">From <see cref="ImageProcessor"/>.</param>
    /// <exception cref="ArgumentException">The pixel values have another shape.</exception>
    public Tensor EncodePatches(Tensor pixelValues)
    {
        using var noGradients = inference_mode();
        return Vision.Encode(pixelValues);
    }

    /// <summary>What the language model reads of patch features: [b, patches, width] -> [b, patches, d].</summary>
    /// <exception cref="ArgumentException">The features have another shape.</exception>
    public Tensor Connect(Tensor patchFeatures)
    {
        using var noGradients = inference_mode();
        return Connector.forward(patchFeatures);
    }

    /// <summary>Reads a picture with the encoder and the connector. The caller owns the result.</summary>
    /// <param name="image">The picture; stays the caller's, and is not needed any more afterwards.</param>
    public EncodedImage EncodeImage(DecodedImage image)
    {
        ArgumentNullException.ThrowIfNull(image);
        using var pixels = ImageProcessor.ProcessBatch([image]);
        using var patches = EncodePatches(pixels);
        using var embeddings = Connect(patches); // (1, n, d)
        return new(embeddings.squeeze(0), image.Width, image.Height);
    }

    /// <summary>Reads a picture from a file with the encoder and the connector. The caller owns the result.</summary>
    /// <exception cref="ImageException">The file is no picture that can be read.</exception>
    /// <exception cref="IOException">The file is absent or cannot be read.</exception>
    public EncodedImage EncodeImage(string path, ImageDecoderOptions? options = null)
    {
        using var image = DecodedImage.Decode(path, options);
        return EncodeImage(image);
    }

    /// <summary>The logits at every position, for training and for scoring texts: [b, l, vocabulary].</summary>
    /// <param name="inputIds">[b, l], int64. Rows that are shorter are padded on the right with the end token; each row
    /// has the same number of places for patches.</param>
    /// <param name="patchEmbeddings">[b, patches, d], from the <see cref="Connector"/>.</param>
    /// <param name="attentionMask">[b, l], 1 for a token and 0 for padding; null where there is no padding. With padding
    /// on the right it changes no logits but those at the padding.</param>
    /// <exception cref="ArgumentException">A shape is another, or a row's places are not as many as its patches.</exception>
    public Tensor Forward(Tensor inputIds, Tensor patchEmbeddings, Tensor? attentionMask = null)
    {
        using var scope = NewDisposeScope();
        return Language.Forward(Embed(inputIds, patchEmbeddings), attentionMask).MoveToOuterDisposeScope();
    }

    /// <summary>How badly logits predict the labels: cross-entropy in nats, the mean over each row's labelled tokens, and of
    /// these the mean over the rows that have any (a scalar, float32).</summary>
    /// <remarks>Each token is predicted by the logits of the position before it. The mean over rows, not over all tokens:
    /// a long answer weighs no more than a short one (the reference's training loop).</remarks>
    /// <param name="logits">[b, l, vocabulary].</param>
    /// <param name="labels">[b, l], int64; <see cref="SequenceBuilder.Ignore"/> where nothing is asked.</param>
    /// <exception cref="ArgumentException">The shapes do not fit each other, or no row has a label.</exception>
    public static Tensor AnswerLoss(Tensor logits, Tensor labels)
    {
        ArgumentNullException.ThrowIfNull(logits);
        ArgumentNullException.ThrowIfNull(labels);
        if (logits.dim() != 3 || labels.dim() != 2 || labels.shape[0] != logits.shape[0] || labels.shape[1] != logits.shape[1] || labels.shape[1] < 2)
            throw new ArgumentException($"The labels are [{string.Join(", ", labels.shape)}] for logits [{string.Join(", ", logits.shape)}]; expected [b, l] for [b, l, vocabulary], l at least 2.", nameof(labels));

        using var scope = NewDisposeScope();
        var targets = labels[.., 1..].to(logits.device);                            // (b, l-1)
        var asked = targets.ne(SequenceBuilder.Ignore).to(ScalarType.Float32);                // (b, l-1)
        var count = asked.sum(1);                                                   // (b)
        var rows = count.gt(0).sum().ToInt64();
        if (rows == 0)
            throw new ArgumentException($"No row has a label after its first position; expected at least one that is not {SequenceBuilder.Ignore}.", nameof(labels));
        var losses = nn.functional.cross_entropy(
            logits[.., ..^1].to(ScalarType.Float32).transpose(1, 2), targets,
            ignore_index: SequenceBuilder.Ignore, reduction: nn.Reduction.None);              // (b, l-1), 0 where not asked
        return ((losses.sum(1) / count.clamp_min(1)).sum() / rows).MoveToOuterDisposeScope();
    }

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

    /// <summary>Frees the weights. Results that were given out stay valid.</summary>
    public void Dispose()
    {
        Language.Dispose();
        Connector.Dispose();
        Vision.Dispose();
    }

    private Tensor Embed(Tensor inputIds, Tensor patchEmbeddings)
    {
        ArgumentNullException.ThrowIfNull(inputIds);
        ArgumentNullException.ThrowIfNull(patchEmbeddings);
        if (inputIds.dim() != 2 || inputIds.dtype != ScalarType.Int64 || patchEmbeddings.dim() != 3
            || patchEmbeddings.shape[0] != inputIds.shape[0] || patchEmbeddings.shape[2] != Language.HiddenSize)
            throw new ArgumentException($"The ids are [{string.Join(", ", inputIds.shape)}] of {inputIds.dtype} and the patch embeddings [{string.Join(", ", patchEmbeddings.shape)}]; expected [b, l] of Int64 and [b, patches, {Language.HiddenSize}].");

        using var scope = NewDisposeScope();
        var ids = inputIds.to(Device);
        var places = ids.eq(ImageTokens.Placeholder);                                             // (b, l)
        var patches = patchEmbeddings.shape[1];
        if (places.sum(1).ne(patches).any().ToBoolean())
            throw new ArgumentException($"The rows have {string.Join(", ", places.sum(1).data<long>())} places for patches; expected {patches} in each, one for each of the picture's patches.");
        var text = Language.Embed(ids.masked_fill(places, 0));                                    // (b, l, d)
        var positions = places.flatten().nonzero().flatten();                                     // (b * patches)
        return text.flatten(0, 1).index_copy(0, positions, patchEmbeddings.to(text.device).to(text.dtype).flatten(0, 1))
            .view(text.shape).MoveToOuterDisposeScope();                                          // (b, l, d)
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
            if (_started)
            {
                if (!_session.Step()) return false;
            }
            else
            {
                Start();
                _started = true;
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
            var read = new List<(EncodedImage Image, long[] Ids, DecoderState State)>();
            try
            {
                foreach (var (image, ids, seed) in _requests)
                {
                    var first = FirstPiece(ids);
                    var shared = read.FindIndex(r => ReferenceEquals(r.Image, image) && r.Ids.AsSpan().SequenceEqual(first));
                    if (shared < 0)
                    {
                        // Room for the longest of the rows that may share this.
                        var length = _requests.Where(r => ReferenceEquals(r.Image, image)).Max(r => r.InputIds.Count) + _options.MaxNewTokens;
                        read.Add((image, first, _model.Language.CreateState(length)));
                        shared = read.Count - 1;
                        Read(first, image, read[shared].State).Dispose();
                    }

                    var state = read[shared].State.Clone();
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
