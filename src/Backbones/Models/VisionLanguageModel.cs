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

using MambaVL.Cuda;
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
    /// <exception cref="CudaException">A kernel failed on the GPU.</exception>
    public EncodedImage EncodeImage(DecodedImage image)
    {
        ArgumentNullException.ThrowIfNull(image);
        try
        {
            using var pixels = ImageProcessor.ProcessBatch([image]);
            using var patches = EncodePatches(pixels);
            using var embeddings = Connect(patches); // (1, n, d)
            return new(embeddings.squeeze(0), image.Width, image.Height);
        }
        catch (Exception e) when (CudaFaults.Behind(e) is { } fault)
        {
            throw fault;
        }
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
}
