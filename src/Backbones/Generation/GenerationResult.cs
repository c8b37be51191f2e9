namespace MambaVL.Generation;

/// <summary>One prompt about one picture.</summary>
/// <param name="Image">The picture; stays the caller's.</param>
/// <param name="InputIds">The whole sequence, from <see cref="VisionLanguageModel.Sequence"/>:
/// <see cref="MambaVL.Prompts.ImageTokens.Placeholder"/> stands where the picture's patches belong.</param>
/// <param name="Seed">Tells the rows of a batch apart when they are sampled: rows of equal seeds draw equal numbers.</param>
public sealed record GenerationRequest(EncodedImage Image, IReadOnlyList<long> InputIds, long Seed = 0);

/// <summary>What a model answered.</summary>
/// <param name="Ids">The tokens, without the end token.</param>
/// <param name="Text">Their text, special tokens left out, as the model wrote it.</param>
/// <param name="FinishReason">Why it ended.</param>
public sealed record GenerationResult(IReadOnlyList<int> Ids, string Text, FinishReason FinishReason);
