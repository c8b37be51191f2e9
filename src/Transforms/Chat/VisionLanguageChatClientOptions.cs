using MambaVL.Generation;
using MambaVL.Images;

namespace MambaVL;

/// <summary>How a <see cref="VisionLanguageChatClient"/> answers.</summary>
public sealed record VisionLanguageChatClientOptions
{
    /// <summary>What the client calls the model in its metadata and in its responses. Null, the default: nothing.</summary>
    public string? ModelId { get; init; }

    /// <summary>What holds where a call's <c>ChatOptions</c> say nothing. Default: greedy, at most 128 tokens, until the end
    /// token or a line break, with which every message of a chat ends.</summary>
    public GenerationOptions Generation { get; init; } = new() { StopSequences = ["\n"] };

    /// <summary>How large a picture may be, and whether it is turned upright. Default:
    /// <see cref="ImageDecoderOptions.Default"/>; an application that takes pictures from strangers sets less.</summary>
    public ImageDecoderOptions Images { get; init; } = ImageDecoderOptions.Default;

    /// <summary>How many encoded pictures are kept for the next call, at least 0. A chat sends its picture again with every
    /// message, and without this it would be encoded anew each time. A picture takes patches x width x 4 bytes in float32:
    /// 576 x 2560 x 4, or 5.9 MB, with the largest of the published models. Default 8.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is negative.</exception>
    public int CachedImages
    {
        get;
        init => field = value >= 0 ? value : throw new ArgumentOutOfRangeException(nameof(value), value, $"Found {value} pictures to keep; expected 0 or more.");
    } = 8;
}
