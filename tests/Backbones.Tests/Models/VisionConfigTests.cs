using System.Text.Json;
using System.Text.Json.Nodes;
using CsCheck;
using MambaVL.Checkpoints;
using MambaVL.Models;
using static TorchSharp.torch;

namespace MambaVL.Tests.Models;

public class VisionConfigTests
{
    private static readonly Gen<VisionConfig> GenConfig = Gen.OneOf<VisionConfig>(
        from size in GenSize
        from depth in Gen.Int[1, 4]
        from heads in Gen.Int[1, 4]
        from headWidth in Gen.Int[1, 5]
        from mlp in Gen.Int[1, 99]
        from flags in Gen.Bool.Array[4]
        from reference in Gen.Int[1, 30]
        select (VisionConfig)new Eva02Config
        {
            PatchSize = size.Patch, ImageSize = size.Image, Depth = depth, Heads = heads, Width = 4 * heads * headWidth, MlpWidth = mlp,
            FusedQkv = flags[0], PackedMlp = flags[1], AttentionNorm = flags[2], FinalNorm = flags[3], ReferenceGrid = reference,
        },
        from size in GenSize
        from depth in Gen.Int[1, 4]
        from heads in Gen.Int[1, 4]
        from headWidth in Gen.Int[1, 20]
        from mlp in Gen.Int[1, 99]
        from flags in Gen.Bool.Array[2]
        from eps in Gen.Double[1e-7, 1e-3]
        from layer in Gen.Int[-2, 1]
        select (VisionConfig)new ClipVisionConfig
        {
            PatchSize = size.Patch, ImageSize = size.Image, Depth = depth, Heads = heads, Width = heads * headWidth, MlpWidth = mlp,
            Activation = flags[0] ? ClipActivation.Gelu : ClipActivation.QuickGelu, OldNames = flags[1], NormEps = eps, SelectLayer = layer,
        },
        from size in GenSize select (VisionConfig)new PixelConfig { PatchSize = size.Patch, ImageSize = size.Image });

    private static Gen<(int Patch, int Image)> GenSize => Gen.Select(Gen.Int[1, 9], Gen.Int[1, 6], (patch, grid) => (patch, patch * grid));

    [Fact]
    public void What_is_written_is_read_again() => GenConfig.Sample(config =>
        Resolve(new JsonObject { ["vision_config"] = config.ToJson() }, TensorsOf(config)) == config, iter: 300);

    [Theory]
    [InlineData(192, 3), InlineData(384, 6), InlineData(768, 12), InlineData(1024, 16)] // the widths and heads of timm's EVA-02
    [InlineData(32, 2), InlineData(64, 4)]
    public void Heads_that_config_json_does_not_tell_follow_from_the_width(int width, int heads)
    {
        var config = VisionTestModels.Eva02 with { Width = width, Heads = heads };
        Resolve(Named("timm/eva02_large_patch14_clip_336"), TensorsOf(config)).Should().Be(config);
    }

    [Fact]
    public void Told_heads_win() => Resolve(new() { ["vision_config"] = new JsonObject { ["num_heads"] = 3 } }, TensorsOf(VisionTestModels.Eva02))
        .Should().Be(VisionTestModels.Eva02 with { Heads = 3 });

    [Fact]
    public void Settings_of_the_language_model_are_not_the_encoders()
    {
        // The root of a Pythia-VL's config.json.
        var root = new JsonObject
        {
            ["hidden_size"] = 2048, ["num_hidden_layers"] = 24, ["num_attention_heads"] = 7, ["intermediate_size"] = 1, ["hidden_act"] = "gelu",
            ["layer_norm_eps"] = 0.5, ["model_type"] = "gpt_neox", ["select_layer"] = -1, ["image_size"] = 64,
            ["vision_encoder_name"] = "openai/clip-vit-large-patch14-336", ["select_feature"] = "patch",
        };
        Resolve(root, TensorsOf(VisionTestModels.Clip)).Should().Be(VisionTestModels.Clip with { SelectLayer = -1 });
    }

    [Fact]
    public void The_root_may_bring_images_to_another_size_than_the_encoders()
    {
        foreach (var config in VisionTestModels.All)
            Resolve(new JsonObject { ["image_size"] = 96, ["vision_config"] = config.ToJson() }, TensorsOf(config)).Should().Be(config);
    }

    [Fact]
    public void An_encoder_alone_is_described_by_the_root()
    {
        var (eva, clip) = (VisionTestModels.Eva02 with { Heads = 3 }, VisionTestModels.Clip with { Heads = 3, NormEps = 1e-6 });
        Resolve(eva.ToJson(), TensorsOf(eva, ""), "").Should().Be(eva);
        Resolve(clip.ToJson(), TensorsOf(clip, ""), "").Should().Be(clip);
    }

    [Fact]
    public void Pixels_take_their_size_from_the_root()
    {
        var root = new JsonObject { ["image_size"] = 96, ["patch_size"] = 8, ["num_channels"] = 3 };
        Resolve(root, TensorsOf(VisionTestModels.Pixels)).Should().Be(VisionTestModels.Pixels with { ImageSize = 96 });
        Resolve([], TensorsOf(VisionTestModels.Pixels)).Should().Be(VisionTestModels.Pixels with { ImageSize = 224 });
    }

    [Theory]
    [InlineData("""{"vision_encoder_name": "openai/clip-vit-large"}""", "*vision_encoder_name is 'openai/clip-vit-large'*'eva02'*")]
    [InlineData("""{"vision_config": {"model_type": "pixels"}}""", "*model_type is 'pixels'*'eva02'*")]
    [InlineData("""{"image_size": 336}""", "*image_size is 336*8x8 patches of 8 pixels: 64*")]
    [InlineData("""{"vision_config": {"img_size": 72}}""", "*img_size is 72*64*")]
    [InlineData("""{"vision_config": {"depth": 24}}""", "*depth is 24*the tensors have 2*")]
    [InlineData("""{"vision_config": {"embed_dim": 1024}}""", "*embed_dim is 1024*96*")]
    [InlineData("""{"vision_config": {"patch_size": 14}}""", "*patch_size is 14*8*")]
    [InlineData("""{"vision_config": {"num_heads": 5}}""", "*5 attention heads*96*")]
    [InlineData("""{"vision_config": {"num_heads": 0}}""", "*0 attention heads*")]
    [InlineData("""{"vision_config": {"num_heads": -2147483648}}""", "*-2147483648 attention heads*")]
    [InlineData("""{"vision_config": {"num_heads": 99999999999}}""", "*num_heads is 99999999999*whole number*")]
    [InlineData("""{"vision_config": {"num_heads": "16"}}""", "*num_heads is \"16\"*whole number*")]
    [InlineData("""{"vision_config": {"num_heads": 1.5}}""", "*num_heads is 1.5*whole number*")]
    [InlineData("""{"vision_config": {"mlp_ratio": 4}}""", "*mlp_ratio is 4*250*")]
    [InlineData("""{"vision_config": {"mlp_ratio": 1e999}}""", "*mlp_ratio is 1e999*")]
    [InlineData("""{"vision_config": {"qkv_fused": true}}""", "*qkv_fused is true*")]
    [InlineData("""{"vision_config": {"qkv_fused": 0}}""", "*qkv_fused is 0*true or false*")]
    [InlineData("""{"vision_config": {"use_rot_pos_emb": false}}""", "*use_rot_pos_emb*")]
    [InlineData("""{"vision_config": {"ref_feat_shape": [16, 17]}}""", "*ref_feat_shape is [16, 17]*")]
    [InlineData("""{"vision_config": {"ref_feat_shape": [0, 0]}}""", "*reference grid is 0*")]
    [InlineData("""{"vision_config": []}""", "*vision_config*Array*object*")]
    [InlineData("""[]""", "*config.json is Array*")]
    [InlineData("""{"select_feature": "cls_patch"}""", "*cls_patch*")]
    [InlineData("""{"vision_encoder_name": 3}""", "*vision_encoder_name is 3*text*")]
    public void Contradictions_of_eva02_are_named(string config, string message)
        => Resolving(config, TensorsOf(VisionTestModels.Eva02)).Should().Throw<InvalidDataException>().WithMessage(message);

    [Theory]
    [InlineData("""{"vision_encoder_name": "timm/eva02_large_patch14_clip_336"}""", "*eva02_large*'clip_vision_model'*")]
    [InlineData("""{"vision_config": {"hidden_act": "relu"}}""", "*hidden_act is 'relu'*quick_gelu*")]
    [InlineData("""{"select_layer": 4}""", "*Hidden state 4*-4 to 3*")]
    [InlineData("""{"select_layer": -2147483648}""", "*-4 to 3*")]
    [InlineData("""{"vision_config": {"layer_norm_eps": -1}}""", "*epsilon*-1*")]
    [InlineData("""{"vision_config": {"num_hidden_layers": 12}}""", "*num_hidden_layers is 12*3*")]
    [InlineData("""{"vision_config": {"intermediate_size": 12}}""", "*intermediate_size is 12*256*")]
    [InlineData("""{"vision_config": {"hidden_size": 12}}""", "*hidden_size is 12*96*")]
    [InlineData("""{"image_size": 63}""", "*image_size is 63*64*")]
    public void Contradictions_of_clip_are_named(string config, string message)
        => Resolving(config, TensorsOf(VisionTestModels.Clip)).Should().Throw<InvalidDataException>().WithMessage(message);

    [Theory]
    [InlineData("""{"patch_size": 16}""", "*patch_size is 16*8 pixels*")]
    [InlineData("""{"num_channels": 1}""", "*num_channels is 1*")]
    [InlineData("""{"image_size": 65}""", "*65 pixels*multiple of the patch size 8*")]
    [InlineData("""{"image_size": 2147483647}""", "*2147483647*at most*")]
    [InlineData("""{"image_size": 0}""", "*0 pixels*")]
    [InlineData("""{"vision_encoder_name": "timm/eva02_large_patch14_clip_336"}""", "*eva02_large*'pixels'*")]
    public void Contradictions_of_pixels_are_named(string config, string message)
        => Resolving(config, TensorsOf(VisionTestModels.Pixels)).Should().Throw<InvalidDataException>().WithMessage(message);

    [Fact]
    public void All_contradictions_stand_in_one_message()
        => Resolving("""{"vision_config": {"depth": 24, "embed_dim": 1024, "num_heads": 5}}""", TensorsOf(VisionTestModels.Eva02))
            .Should().Throw<InvalidDataException>().WithMessage("*embed_dim*depth*5 attention heads*");

    [Fact]
    public void Tensors_that_make_no_encoder_are_refused()
    {
        var eva = TensorsOf(VisionTestModels.Eva02);
        Resolving("{}", []).Should().Throw<InvalidDataException>().WithMessage("*no image encoder*'vision_encoder.patch_embed.proj.weight'*");
        Resolving("{}", [.. eva, .. TensorsOf(VisionTestModels.Clip)]).Should().Throw<InvalidDataException>().WithMessage("*holds both*");
        Resolving("{}", Without("blocks.0.mlp.fc2.weight")).Should().Throw<InvalidDataException>().WithMessage("*'vision_encoder.blocks.0.mlp.fc2.weight' is missing*");
        Resolving("{}", Without("pos_embed")).Should().Throw<InvalidDataException>().WithMessage("*'vision_encoder.pos_embed' is missing*");
        Resolving("{}", [.. eva, Entry("vision_encoder.blocks.7.norm1.weight", 96)]).Should().Throw<InvalidDataException>().WithMessage("*'vision_encoder.blocks.2' is missing*up to 7*");
        Resolving("{}", With("pos_embed", 1, 64, 96)).Should().Throw<InvalidDataException>().WithMessage("*64 tokens*square grid*");
        Resolving("{}", With("pos_embed", 1, long.MaxValue, 96)).Should().Throw<InvalidDataException>().WithMessage("*square grid*");
        Resolving("{}", With("pos_embed", 65, 96)).Should().Throw<InvalidDataException>().WithMessage("*[65, 96]*3 dimensions*");
        Resolving("{}", With("patch_embed.proj.weight", 96, 1, 8, 8)).Should().Throw<InvalidDataException>().WithMessage("*[96, 1, 8, 8]*");
        Resolving("{}", With("patch_embed.proj.weight", 1L << 40, 3, 8, 8)).Should().Throw<InvalidDataException>().WithMessage("*width is 1099511627776*");
        Resolving("{}", With("patch_embed.proj.weight", 1L << 30, 3, 8, 8)).Should().Throw<InvalidDataException>().WithMessage("*width is 1073741824*");
        Resolving("{}", With("patch_embed.proj.weight", 96, 3, 0, 0)).Should().Throw<InvalidDataException>().WithMessage("*patch size is 0*");
        Resolving("{}", With("patch_embed.proj.weight", 100, 3, 8, 8)).Should().Throw<InvalidDataException>().WithMessage("*heads is unknown*width 100*num_heads*");
        Resolving("{}", [.. Without("blocks.0.mlp.fc1_g.weight"), Entry("vision_encoder.blocks.0.mlp.fc1.weight", 250, 96)])
            .Should().Throw<InvalidDataException>().WithMessage("*plain MLP*");

        TensorEntry[] Without(string name) => [.. eva.Where(t => t.Name != "vision_encoder." + name)];
        TensorEntry[] With(string name, params long[] shape) => [.. Without(name), Entry("vision_encoder." + name, shape)];
    }

    // Whatever stands in config.json, the answer is a model that could be built, or InvalidDataException.
    [Fact]
    public void Any_settings_are_read_or_refused()
    {
        string[] values = ["0", "-1", "1", "2", "64", "2147483647", "-2147483648", "1e99", "0.5", "null", "true", "false", "\"x\"", "\"clip\"", "[]", "[16,16]", "{}"];
        string[] keys = ["image_size", "img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_fused", "scale_mlp", "scale_attn_inner",
            "use_rot_pos_emb", "ref_feat_shape", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
            "layer_norm_eps", "select_layer", "select_feature", "vision_encoder_name", "model_type", "num_channels"];
        var genObject = Gen.Select(Gen.OneOfConst(keys), Gen.OneOfConst(values)).Array[0, 4]
            .Select(pairs => "{" + string.Join(",", pairs.DistinctBy(p => p.Item1).Select(p => $"\"{p.Item1}\":{p.Item2}")) + "}");
        Gen.Select(Gen.OneOfConst(VisionTestModels.All), genObject, genObject).Sample((config, root, own) =>
        {
            try
            {
                Resolving(root[..^1] + (root.Length > 2 ? "," : "") + $"\"vision_config\":{own}}}", TensorsOf(config))();
                return true;
            }
            catch (InvalidDataException)
            {
                return true;
            }
        }, iter: 3000);
    }

    [Fact]
    public void Leftovers_of_the_reference_libraries_are_known()
    {
        VisionConfig.IsIgnored("vision_encoder.embeddings.position_ids").Should().BeTrue();
        VisionConfig.IsIgnored("vision_encoder.vision_model.embeddings.position_ids").Should().BeTrue();
        VisionConfig.IsIgnored("head.weight", "").Should().BeTrue();
        VisionConfig.IsIgnored("embeddings.position_ids").Should().BeFalse("it is not the encoder's");
        foreach (var config in VisionTestModels.All)
            TensorsOf(config).Should().NotContain(t => VisionConfig.IsIgnored(t.Name, "vision_encoder."));
    }

    private static JsonObject Named(string name) => new() { ["vision_encoder_name"] = name };

    private static VisionConfig Resolve(JsonObject config, TensorEntry[] tensors, string prefix = "vision_encoder.")
        => VisionConfig.Resolve(JsonSerializer.SerializeToElement(config), tensors.ToDictionary(t => t.Name), prefix);

    private static Action Resolving(string config, TensorEntry[] tensors)
        => () => VisionConfig.Resolve(JsonDocument.Parse(config).RootElement, tensors.ToDictionary(t => t.Name));

    private static TensorEntry[] TensorsOf(VisionConfig config, string prefix = "vision_encoder.")
    {
        if (config is PixelConfig) return [Entry("vision_embed_tokens.0.weight", 32, config.FeatureWidth)];
        var recorder = new ShapeRecorder();
        using var model = config.Create(recorder.Root);
        return [.. recorder.Shapes.Select(s => Entry(prefix + s.Key, s.Value))];
    }

    private static TensorEntry Entry(string name, params long[] shape) => new(name, ScalarType.Float32, shape);
}
