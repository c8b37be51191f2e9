using System.Globalization;
using System.Text.Json;
using MambaVL.Checkpoints;

namespace MambaVL.Models;

/// <summary>Works out a <see cref="VisionConfig"/> from names and shapes first, and from config.json where they do not say.</summary>
/// <remarks>
/// Three kinds of config.json: timm's arguments (an EVA-02 alone), transformers' CLIPVisionConfig (a CLIP alone), and
/// vl_mamba's, whose root describes the language model, so that of the encoder it tells only <c>vision_encoder_name</c>,
/// <c>image_size</c> and <c>select_layer</c>. In the last, an object <c>vision_config</c> may hold the encoder's own
/// settings, in the first or second dialect; this project writes one.
/// </remarks>
internal sealed class VisionConfigResolver
{
    internal const string Eva02Type = "eva02", ClipType = "clip_vision_model", PixelType = "pixels", QuickGelu = "quick_gelu", Gelu = "gelu";

    // The published encoders have heads 64 wide (EVA-02 Ti, S, B and L: widths 192, 384, 768, 1024; CLIP B and L: 768, 1024).
    // Below the narrowest of them stand only models made for tests, whose heads are 16 wide.
    private const int HeadWidth = 64, SmallHeadWidth = 16, NarrowestPublished = 192;

    // What the authors' code assumes for the pixel-based variant when it is not told (modeling_vlmamba.py).
    private const int PixelImageSize = 224;

    private readonly JsonElement _root;
    private readonly JsonElement _own; // the encoder's own settings
    private readonly IReadOnlyDictionary<string, TensorEntry> _tensors;
    private readonly string _prefix;
    private readonly List<string> _problems = [];

    public VisionConfigResolver(JsonElement root, IReadOnlyDictionary<string, TensorEntry> tensors, string prefix)
    {
        (_root, _tensors, _prefix) = (root, tensors, prefix);
        if (root.ValueKind != JsonValueKind.Object)
            throw new InvalidDataException($"config.json is {root.ValueKind}; an object is expected.");
        if (root.TryGetProperty("vision_config", out _own))
        {
            if (_own.ValueKind != JsonValueKind.Object)
                throw new InvalidDataException($"vision_config in config.json is {_own.ValueKind}; an object is expected.");
        }
        else if (prefix.Length == 0) _own = root;
    }

    public VisionConfig Resolve()
    {
        const string clip = "embeddings.patch_embedding.weight", oldClip = "vision_model." + clip, eva = "patch_embed.proj.weight";
        const string connector = "vision_embed_tokens.0.weight";
        string[] found = [.. new[] { eva, clip, oldClip }.Where(name => _tensors.ContainsKey(_prefix + name))];
        if (found.Length > 1)
            throw new InvalidDataException($"The checkpoint holds both '{_prefix + found[0]}' and '{_prefix + found[1]}'; a model has one image encoder.");

        VisionConfig? config;
        switch (found.FirstOrDefault())
        {
            case eva:
                ExpectKind(Eva02Type);
                config = Eva02();
                break;
            case clip or oldClip:
                ExpectKind(ClipType);
                config = Clip(found[0] == oldClip);
                break;
            case null when _prefix.Length > 0 && _tensors.ContainsKey(connector) && !_tensors.Keys.Any(name => name.StartsWith(_prefix, StringComparison.Ordinal)):
                ExpectKind(PixelType);
                config = Pixels(connector);
                break;
            default:
                throw new InvalidDataException($"The checkpoint holds no image encoder: '{_prefix + eva}' (EVA-02) or '{_prefix + clip}' (CLIP) is expected"
                    + (_prefix.Length > 0 ? $", or '{connector}' and nothing under '{_prefix}' (pixel-based)." : "."));
        }
        if (Text(_root, "select_feature") is { } feature && feature != "patch")
            _problems.Add($"select_feature is '{feature}'; only 'patch' is supported, one vector for each placeholder of the sequence.");
        if (config is not null) _problems.AddRange(config.Problems());
        if (_problems.Count > 0)
            throw new InvalidDataException("The image encoder's tensors and config.json do not make a model: " + string.Join(" ", _problems));
        return config!;
    }

    private Eva02Config? Eva02()
    {
        var depth = Layers("blocks.");
        var projection = Shape("patch_embed.proj.weight", 4);
        var positions = Shape("pos_embed", 3);
        var down = Shape("blocks.0.mlp.fc2.weight", 2);
        if (_problems.Count > 0) return null;

        var (width, patch) = Projection(projection!);
        var mlpWidth = Size(down![1], "the inner width of blocks.0.mlp.fc2.weight");
        var packed = Has("blocks.0.mlp.fc1.weight");
        if (packed && Shape("blocks.0.mlp.fc1.weight", 2)?[0] == mlpWidth)
            _problems.Add($"'{_prefix}blocks.0.mlp' is a plain MLP, as EVA-01 and EVA-02-E have it; of the EVA family the gated EVA-02 Ti, S, B and L are supported.");
        if (ReadFlag("use_rot_pos_emb") == false) _problems.Add("use_rot_pos_emb is false; EVA-02 has rotary positions.");

        var config = new Eva02Config
        {
            PatchSize = patch,
            ImageSize = ImageSize(positions![1], patch, "img_size"),
            Depth = depth,
            Width = width,
            Heads = Whole("num_heads") ?? Heads(width, "num_heads"),
            MlpWidth = mlpWidth,
            FusedQkv = Has("blocks.0.attn.qkv.weight"),
            PackedMlp = packed,
            AttentionNorm = Has("blocks.0.attn.norm.weight"),
            FinalNorm = Has("norm.weight"),
            ReferenceGrid = ReferenceGrid(),
        };
        Agree("embed_dim", config.Width);
        Agree("depth", config.Depth);
        Agree("patch_size", config.PatchSize);
        Agree("qkv_fused", config.FusedQkv);
        Agree("scale_mlp", !config.PackedMlp);
        Agree("scale_attn_inner", config.AttentionNorm);
        if (Number("mlp_ratio") is { } ratio && Math.Truncate(width * ratio) != mlpWidth)
            _problems.Add($"mlp_ratio is {ratio}, but the MLP is {mlpWidth} wide and a token {width}.");
        return config;
    }

    private ClipVisionConfig? Clip(bool oldNames)
    {
        var inner = oldNames ? "vision_model." : "";
        var depth = Layers($"{inner}encoder.layers.");
        var projection = Shape($"{inner}embeddings.patch_embedding.weight", 4);
        var positions = Shape($"{inner}embeddings.position_embedding.weight", 2);
        var up = Shape($"{inner}encoder.layers.0.mlp.fc1.weight", 2);
        if (_problems.Count > 0) return null;

        var (width, patch) = Projection(projection!);
        var config = new ClipVisionConfig
        {
            PatchSize = patch,
            ImageSize = ImageSize(positions![0], patch, "image_size"),
            Depth = depth,
            Width = width,
            Heads = Whole("num_attention_heads") ?? Heads(width, "num_attention_heads"),
            MlpWidth = Size(up![0], "the inner width of the MLP"),
            Activation = Activation(),
            NormEps = Number("layer_norm_eps") ?? 1e-5,
            SelectLayer = Whole("select_layer") ?? Whole(_root, "select_layer") ?? -2,
            OldNames = oldNames,
        };
        Agree("hidden_size", config.Width);
        Agree("num_hidden_layers", config.Depth);
        Agree("intermediate_size", config.MlpWidth);
        Agree("patch_size", config.PatchSize);
        return config;
    }

    private PixelConfig? Pixels(string connector)
    {
        var shape = _tensors[connector].Shape;
        if (shape.Count != 2)
        {
            _problems.Add($"'{connector}' has the shape [{string.Join(", ", shape)}]; two dimensions are expected.");
            return null;
        }
        var patch = (int)Math.Sqrt(Math.Clamp(shape[1] / 3, 0, int.MaxValue));
        if (3L * patch * patch != shape[1])
            _problems.Add($"'{connector}' takes {shape[1]} numbers; the pixel-based variant takes 3 for each pixel of a square patch.");
        foreach (var settings in new[] { _own, _root })
        {
            if (Whole(settings, "patch_size") is { } told && told != patch)
                _problems.Add($"patch_size is {told}, but '{connector}' takes patches of {patch} pixels.");
            if (Whole(settings, "num_channels") is { } channels && channels != 3)
                _problems.Add($"num_channels is {channels}; 3 are supported.");
        }
        return new() { PatchSize = patch, ImageSize = Whole("image_size") ?? Whole(_root, "image_size") ?? PixelImageSize };
    }

    // The authors' code chooses by the name: "eva" in it means EVA-02, else "clip" in it means CLIP (vision_encoder.py).
    private void ExpectKind(string kind)
    {
        if (Text(_root, "vision_encoder_name") is { } name)
        {
            var named = name.Contains("eva", StringComparison.OrdinalIgnoreCase) ? Eva02Type
                : name.Contains("clip", StringComparison.OrdinalIgnoreCase) ? ClipType
                : kind;
            if (named != kind) _problems.Add($"vision_encoder_name is '{name}', but the tensors are of the kind '{kind}'.");
        }
        if (_own.ValueKind == JsonValueKind.Object && !IsRoot && Text(_own, "model_type") is { } type && type != kind)
            _problems.Add($"vision_config.model_type is '{type}', but the tensors are of the kind '{kind}'.");
    }

    private bool IsRoot => _prefix.Length == 0 && !_root.TryGetProperty("vision_config", out _);

    private int Heads(int width, string key)
    {
        var headWidth = width >= NarrowestPublished ? HeadWidth : SmallHeadWidth;
        if (width % headWidth == 0) return width / headWidth;
        _problems.Add($"The number of attention heads is unknown: config.json does not say it, and the width {width} is no multiple of {headWidth}. "
            + $"Put {key} into vision_config of config.json.");
        return 1;
    }

    private int ImageSize(long tokens, int patch, string key)
    {
        var grid = (int)Math.Sqrt(Math.Clamp(tokens - 1, 0, int.MaxValue));
        if (grid < 1 || 1L + (long)grid * grid != tokens)
        {
            _problems.Add($"There are positions for {tokens} tokens; a class token and a square grid of patches are expected.");
            return patch;
        }
        var size = Size((long)grid * patch, "the image size");
        // At the root of vl_mamba's file stands the size that the encoder was built with. Where the encoder's own settings tell
        // that, as this project writes it, the root's is the size that images are brought to, which may be another.
        var name = Whole(key) is null ? "image_size" : key;
        if ((Whole(key) ?? Whole(_root, "image_size")) is { } told && told != size)
            _problems.Add($"{name} is {told}, but the positions are those of {grid}x{grid} patches of {patch} pixels: {size}. "
                + "Leave the configuration at the checkpoint's size, and encode images of the size you want.");
        return size;
    }

    private int ReferenceGrid()
    {
        if (!TryGet(_own, "ref_feat_shape", out var value)) return 16;
        if (value.ValueKind == JsonValueKind.Array && value.GetArrayLength() == 2
            && value[0].TryInt(out var rows) && value[1].TryInt(out var cols) && rows == cols) return rows;
        _problems.Add($"ref_feat_shape is {Shown(value)}; two equal whole numbers are expected.");
        return 16;
    }

    private ClipActivation Activation()
    {
        switch (Text(_own, "hidden_act"))
        {
            case null or QuickGelu: return ClipActivation.QuickGelu;
            case Gelu: return ClipActivation.Gelu;
            case var other:
                _problems.Add($"hidden_act is '{other}'; '{QuickGelu}' or '{Gelu}' is expected.");
                return default;
        }
    }

    private (int Width, int Patch) Projection(IReadOnlyList<long> shape)
    {
        if (shape[1] != 3 || shape[2] != shape[3])
            _problems.Add($"The patch projection has the shape [{string.Join(", ", shape)}]; [width, 3, patch, patch] is expected.");
        return (Size(shape[0], "the width"), Size(shape[2], "the patch size"));
    }

    // Layers are counted, never believed: names from 0 on without a gap.
    private int Layers(string list)
    {
        var start = _prefix + list;
        var seen = new HashSet<int>();
        foreach (var name in _tensors.Keys)
            if (name.StartsWith(start, StringComparison.Ordinal) && name.IndexOf('.', start.Length) is > 0 and var dot
                && int.TryParse(name.AsSpan(start.Length, dot - start.Length), NumberStyles.None, CultureInfo.InvariantCulture, out var index))
                seen.Add(index);
        for (var i = 0; i < seen.Count; i++)
            if (!seen.Contains(i))
            {
                _problems.Add($"'{start}{i}' is missing; the checkpoint has {seen.Count} layers under '{start}', up to {seen.Max()}.");
                break;
            }
        return seen.Count;
    }

    private bool Has(string name) => _tensors.ContainsKey(_prefix + name);

    private IReadOnlyList<long>? Shape(string name, int dimensions)
    {
        if (!_tensors.TryGetValue(_prefix + name, out var entry)) _problems.Add($"'{_prefix}{name}' is missing.");
        else if (entry.Shape.Count != dimensions)
            _problems.Add($"'{_prefix}{name}' has the shape [{string.Join(", ", entry.Shape)}]; {dimensions} dimensions are expected.");
        else return entry.Shape;
        return null;
    }

    private int Size(long value, string what)
    {
        if (value is > 0 and <= int.MaxValue) return (int)value;
        _problems.Add($"{char.ToUpperInvariant(what[0])}{what[1..]} is {value}.");
        return 1;
    }

    private void Agree(string name, int actual)
    {
        if (Whole(name) is { } told && told != actual) _problems.Add($"{name} is {told}, but the tensors have {actual}.");
    }

    private void Agree(string name, bool actual)
    {
        if (ReadFlag(name) is { } told && told != actual)
            _problems.Add($"{name} is {(told ? "true" : "false")}, but the tensors are those of {(actual ? "true" : "false")}.");
    }

    private int? Whole(string name) => Whole(_own, name);

    private int? Whole(JsonElement settings, string name)
    {
        if (!TryGet(settings, name, out var value)) return null;
        if (value.TryInt(out var number)) return number;
        _problems.Add($"{name} is {Shown(value)}; a whole number is expected.");
        return null;
    }

    private double? Number(string name)
    {
        if (!TryGet(_own, name, out var value)) return null;
        if (value.ValueKind == JsonValueKind.Number && value.TryGetDouble(out var number) && double.IsFinite(number)) return number;
        _problems.Add($"{name} is {Shown(value)}; a number is expected.");
        return null;
    }

    private bool? ReadFlag(string name)
    {
        if (!TryGet(_own, name, out var value)) return null;
        if (value.ValueKind is JsonValueKind.True or JsonValueKind.False) return value.GetBoolean();
        _problems.Add($"{name} is {Shown(value)}; true or false is expected.");
        return null;
    }

    private string? Text(JsonElement settings, string name)
    {
        if (!TryGet(settings, name, out var value)) return null;
        if (value.ValueKind == JsonValueKind.String) return value.GetString();
        _problems.Add($"{name} is {Shown(value)}; a text is expected.");
        return null;
    }

    private static bool TryGet(JsonElement settings, string name, out JsonElement value)
    {
        value = default;
        return settings.ValueKind == JsonValueKind.Object && settings.TryGetProperty(name, out value) && value.ValueKind != JsonValueKind.Null;
    }

    private static string Shown(JsonElement value)
    {
        var text = value.GetRawText();
        return text.Length <= 40 ? text : text[..40] + "...";
    }
}

file static class JsonNumbers
{
    public static bool TryInt(this JsonElement value, out int number)
    {
        number = 0;
        return value.ValueKind == JsonValueKind.Number && value.TryGetInt32(out number);
    }
}
