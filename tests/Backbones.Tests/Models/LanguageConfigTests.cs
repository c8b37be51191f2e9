using System.Text.Json;
using System.Text.Json.Nodes;
using CsCheck;
using MambaVL.Checkpoints;
using MambaVL.Models;
using static TorchSharp.torch;

namespace MambaVL.Tests.Models;

public class LanguageConfigTests
{
    // d 32, n 4, k 3, e 64, r 2, 2 layers, 512 rows
    private const string StateSpaces = """
        {"d_model": 32, "n_layer": 2, "vocab_size": 507, "ssm_cfg": {"d_state": 4, "d_conv": 3}, "rms_norm": true, "residual_in_fp32": true,
         "fused_add_norm": true, "pad_vocab_size_multiple": 8, "d_intermediate": 0, "attn_layer_idx": [], "tie_embeddings": true}
        """;

    private const string TransformersMamba = """
        {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 512, "state_size": 4, "conv_kernel": 3, "expand": 2,
         "time_step_rank": 2, "intermediate_size": 64, "layer_norm_epsilon": 1e-6, "residual_in_fp32": false, "use_bias": false,
         "use_conv_bias": true, "hidden_act": "silu", "tie_word_embeddings": true}
        """;

    private const string VlMamba = """
        {"model_type": "", "d_model": 32, "hidden_size": 32, "n_layer": 2, "vocab_size": 512, "ssm_cfg": {"d_state": 4, "d_conv": 3}, "rms_norm": true,
         "vision_encoder_name": "timm/eva02_large_patch14_clip_336", "image_size": 336, "select_layer": -2, "select_feature": "patch"}
        """;

    private const string OldPythia = """
        {"model_type": "gpt_neox", "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 192, "vocab_size": 500,
         "hidden_act": "gelu", "layer_norm_eps": 1e-6, "rotary_pct": 0.5, "rotary_emb_base": 20000, "use_parallel_residual": false,
         "tie_word_embeddings": false, "torch_dtype": "float16"}
        """;

    private const string NewPythia = """
        {"model_type": "gpt_neox", "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 192, "vocab_size": 500,
         "hidden_act": "gelu", "layer_norm_eps": 1e-6, "use_parallel_residual": false, "rope_scaling": null,
         "rope_parameters": {"rope_type": "default", "rope_theta": 20000.0, "partial_rotary_factor": 0.5}}
        """;

    private static readonly MambaConfig Mamba = new()
    {
        HiddenSize = 32, LayerCount = 2, VocabularySize = 512, StateSize = 4, ConvolutionSize = 3, TimeStepRank = 2,
    };

    private static readonly GptNeoXConfig NeoX = new()
    {
        HiddenSize = 48, LayerCount = 2, VocabularySize = 512, HeadCount = 3, IntermediateSize = 192, NormEpsilon = 1e-6, RotaryFraction = 0.5,
        RotaryBase = 20000, ParallelResidual = false,
    };

    [Fact]
    public void EachDialectIsRead()
    {
        Resolve(StateSpaces, Tensors(Mamba)).Should().Be(Mamba);
        Resolve(TransformersMamba, Tensors(Mamba)).Should().Be(Mamba with { NormEpsilon = 1e-6, ResidualInFloat32 = false });
        Resolve(VlMamba, Tensors(Mamba)).Should().Be(Mamba);
        Resolve(OldPythia, Tensors(NeoX)).Should().Be(NeoX);
        Resolve(NewPythia, Tensors(NeoX)).Should().Be(NeoX);
    }

    [Fact]
    public void TheTensorsDecideTheNormAndTheBiases()
    {
        var layerNorm = Mamba with { Norm = NormKind.LayerNorm };
        Resolve(StateSpaces, Tensors(layerNorm)).Should().Be(layerNorm, "though rms_norm is true");
        var biases = Mamba with { ProjectionBias = true, ConvolutionBias = false };
        Resolve(StateSpaces, Tensors(biases)).Should().Be(biases);
    }

    [Fact]
    public void TheTypeMayBeLeftToTheTensors()
    {
        Resolve(Without(TransformersMamba, "model_type"), Tensors(Mamba)).Should().BeOfType<MambaConfig>();
        Resolve(Without(NewPythia, "model_type"), Tensors(NeoX)).Should().BeOfType<GptNeoXConfig>();
    }

    [Theory]
    [InlineData("backbone.embedding.weight")]
    [InlineData("backbone.embeddings.weight")]
    [InlineData("lm_head.weight")]
    public void ATiedTableGoesByAnyOfItsNames(string name)
    {
        var tensors = Tensors(Mamba);
        tensors.Remove("backbone.embedding.weight");
        Put(tensors, name, 512, 32);
        Resolve(StateSpaces, tensors).Should().Be(Mamba);
    }

    [Fact]
    public void AHeadOfItsOwn()
    {
        var own = Mamba with { TieEmbeddings = false };
        Resolve(With(StateSpaces, "tie_embeddings", false), Tensors(own)).Should().Be(own);
        var tied = NeoX with { TieEmbeddings = true };
        Resolve(With(NewPythia, "tie_word_embeddings", true), Tensors(tied)).Should().Be(tied);
        tied.Names.SameParameter.Should().ContainSingle().Which.Should().Contain(["gpt_neox.embed_in.weight", "embed_out.weight"]);
        Fails(StateSpaces, "tie_embeddings", false, Tensors(Mamba), "*'tie_embeddings' is false*no 'lm_head.weight'*");
    }

    [Fact]
    public void WhatIsWrittenIsReadAgain()
    {
        LanguageConfig[] configs =
        [
            Mamba, NeoX, NeoX with { TieEmbeddings = true, TanhGelu = true, AttentionBias = false, ParallelResidual = true, InitializerRange = 0.1 },
            Mamba with
            {
                TieEmbeddings = false, ProjectionBias = true, ConvolutionBias = false, ResidualInFloat32 = false, Expand = 3, NormEpsilon = 1e-4,
                Norm = NormKind.LayerNorm, TimeStepRank = 7,
            },
        ];
        foreach (var config in configs) Resolve(config.ToJson().ToJsonString(), Tensors(config)).Should().Be(config);
    }

    [Theory]
    [InlineData("d_model", "33", "*'d_model' asks for 33*'backbone.embedding.weight' has 32*")]
    [InlineData("hidden_size", "64", "*'hidden_size' asks for 64*has 32*")]
    [InlineData("d_model", "null", "*'hidden_size' is missing*")]
    [InlineData("d_model", "\"32\"", "*'d_model' is \"32\"; expected a whole number from 1 to *")]
    [InlineData("d_model", "-32", "*'d_model' is -32; expected*")]
    [InlineData("d_model", "32.5", "*'d_model' is 32.5; expected*")]
    [InlineData("d_model", "1e400", "*'d_model' is 1e400; expected*")]
    [InlineData("d_model", "9223372036854775807", "*'d_model' is 9223372036854775807; expected*")]
    [InlineData("n_layer", "3", "*'n_layer' asks for 3*'backbone.layers.*' has 2*")]
    [InlineData("n_layer", "65537", "*'n_layer' is 65537*")]
    [InlineData("vocab_size", "513", "*'vocab_size' asks for 513*512 rows*")]
    [InlineData("ssm_cfg", "[]", "*'ssm_cfg' is []; expected an object*")]
    [InlineData("ssm_cfg", "{\"d_state\": 16}", "*'ssm_cfg.d_state' asks for 16*A_log' has 4*")]
    [InlineData("ssm_cfg", "{\"d_conv\": 4}", "*'ssm_cfg.d_conv' asks for 4*conv1d.weight' has 3*")]
    [InlineData("ssm_cfg", "{\"expand\": 4}", "*'ssm_cfg.expand' asks for 128*has 64*")]
    [InlineData("ssm_cfg", "{\"dt_rank\": 5}", "*'ssm_cfg.dt_rank' asks for 5*dt_proj.weight' has 2*")]
    [InlineData("ssm_cfg", "{\"bias\": true}", "*'ssm_cfg.bias' is true*no 'backbone.layers.0.mixer.in_proj.bias'*")]
    [InlineData("ssm_cfg", "{\"conv_bias\": false}", "*'ssm_cfg.conv_bias' is false*a 'backbone.layers.0.mixer.conv1d.bias'*")]
    [InlineData("ssm_cfg", "{\"layer\": \"Mamba2\"}", "*'ssm_cfg.layer' is \"Mamba2\"; expected*")]
    [InlineData("d_intermediate", "64", "*'d_intermediate' is 64; expected 0*")]
    [InlineData("attn_layer_idx", "[1]", "*'attn_layer_idx' is [1]; expected an empty list*")]
    [InlineData("residual_in_fp32", "1", "*'residual_in_fp32' is 1; expected true or false*")]
    [InlineData("norm_epsilon", "0", "*'norm_epsilon' is 0; expected a number above 0*")]
    [InlineData("model_type", "\"mamba2\"", "*'model_type' is \"mamba2\"; expected*")]
    [InlineData("model_type", "\"gpt_neox\"", "*'model_type' is 'gpt_neox'*has 'backbone.*'*")]
    [InlineData("model_type", "7", "*'model_type' is 7; expected a text*")]
    public void AWrongMambaIsNamed(string key, string value, string message)
        => Fails(StateSpaces, key, JsonNode.Parse(value), Tensors(Mamba), message);

    [Theory]
    [InlineData("num_attention_heads", "null", "*'num_attention_heads' is missing*")]
    [InlineData("num_attention_heads", "5", "*'num_attention_heads' is 5; expected a divisor of the hidden size 48*")]
    [InlineData("intermediate_size", "100", "*'intermediate_size' asks for 100*has 192*")]
    [InlineData("hidden_act", "\"relu\"", "*'hidden_act' is \"relu\"; expected \"gelu\"*")]
    [InlineData("rotary_pct", "0.25", "*'rope_parameters.partial_rotary_factor' is 0.5, but 'rotary_pct' is 0.25*")]
    [InlineData("rotary_pct", "1.5", "*'rotary_pct' is 1.5; expected a number above 0, at most 1*")]
    [InlineData("rope_parameters", "{\"partial_rotary_factor\": 0.2}", "*0.2 of a head of 16 is 3 values*even*")]
    [InlineData("rope_parameters", "{\"rope_type\": \"yarn\"}", "*'rope_parameters.rope_type' is \"yarn\"*")]
    [InlineData("rope_scaling", "{\"type\": \"linear\", \"factor\": 2}", "*'rope_scaling' is {*")]
    [InlineData("attention_bias", "false", "*'attention_bias' is false*")]
    [InlineData("model_type", "\"mamba\"", "*'model_type' is 'mamba'*'gpt_neox.*'*")]
    public void AWrongNeoXIsNamed(string key, string value, string message)
        => Fails(NewPythia, key, JsonNode.Parse(value), Tensors(NeoX), message);

    [Fact]
    public void TensorsOfNeitherKindOfBothOrOfOddShapesAreNamed()
    {
        Fails(VlMamba, [], "*no 'backbone.*' and no 'gpt_neox.*'*");
        var both = Tensors(Mamba);
        Put(both, "gpt_neox.embed_in.weight", 1, 1);
        Fails(VlMamba, both, "*has 'backbone.*' and 'gpt_neox.*'*");
        var flat = Tensors(Mamba);
        Put(flat, "backbone.embedding.weight", 512 * 32);
        Fails(VlMamba, flat, "*'backbone.embedding.weight' is [16384]; expected 2 sizes*");
        var none = Tensors(Mamba);
        none.Remove("backbone.layers.0.mixer.A_log");
        Fails(VlMamba, none, "*no 'backbone.layers.0.mixer.A_log'*");
        var empty = Tensors(Mamba);
        Put(empty, "backbone.layers.0.mixer.A_log", 64, 0);
        Fails(VlMamba, empty, "*A_log' is [64, 0]*");
        var other = Tensors(Mamba);
        Put(other, "lm_head.weight", 500, 32);
        Fails(VlMamba, other, "*'lm_head.weight' is [500, 32]*[512, 32]*");
    }

    [Fact]
    public void WhatIsNoConfigurationIsNamed()
    {
        var path = Path.GetTempFileName();
        try
        {
            foreach (var (text, message) in new[] { ("{", "*is not JSON*"), ("[]", "*holds []; expected an object*"), (new string('[', 9999), "*is not JSON*"),
                ("{\"model_type\": \"\\ud800\"}", "*not Unicode*") })
            {
                File.WriteAllText(path, text);
                path.Invoking(p => LanguageConfig.Load(p, Tensors(Mamba))).Should().Throw<InvalidDataException>().WithMessage(message).WithMessage($"*{Path.GetFileName(path)}*");
            }
            using (var file = File.OpenWrite(path)) file.SetLength(17 << 20);
            path.Invoking(p => LanguageConfig.Load(p, Tensors(Mamba))).Should().Throw<InvalidDataException>().WithMessage("*17825792 bytes*");
        }
        finally
        {
            File.Delete(path);
        }
    }

    /// <summary>Whatever stands at whichever key, the answer is a configuration that the tensors bear out, or the error.</summary>
    [Fact]
    public void AnyValueAtAnyKeyIsReadOrRefused()
    {
        var (mamba, neoX) = (Tensors(Mamba), Tensors(NeoX));
        (string, LanguageConfig, Dictionary<string, TensorEntry>)[] texts =
        [
            (StateSpaces, Mamba, mamba), (TransformersMamba, Mamba, mamba), (VlMamba, Mamba, mamba), (OldPythia, NeoX, neoX), (NewPythia, NeoX, neoX),
        ];
        var values = Gen.OneOf(
            Gen.OneOfConst("null", "true", "{}", "[]", "\"\"", "\"auto\"", "1e999", "-0.0", "{\"d_state\": 0}", "{\"rope_theta\": []}"),
            Gen.Long.Select(n => n.ToString(System.Globalization.CultureInfo.InvariantCulture)),
            Gen.Double.Where(double.IsFinite).Select(n => JsonSerializer.Serialize(n)), Gen.String.Select(s => JsonSerializer.Serialize(s)));
        Gen.Select(Gen.Int[0, texts.Length - 1], Gen.Int[0, 100], values).Sample((which, key, value) =>
        {
            var (text, expected, tensors) = texts[which];
            var root = JsonNode.Parse(text)!.AsObject();
            var name = root.ElementAt(key % root.Count).Key;
            root[name] = JsonNode.Parse(value);
            try
            {
                var read = Resolve(root.ToJsonString(), tensors);
                return read.HiddenSize == expected.HiddenSize && read.LayerCount == expected.LayerCount && read.VocabularySize == expected.VocabularySize;
            }
            catch (InvalidDataException)
            {
                return true;
            }
        }, iter: 3000);
    }

    private static LanguageConfig Resolve(string json, IReadOnlyDictionary<string, TensorEntry> tensors)
    {
        using var document = JsonDocument.Parse(json);
        return LanguageConfig.Resolve(document.RootElement, tensors);
    }

    private static void Fails(string json, Dictionary<string, TensorEntry> tensors, string message)
        => json.Invoking(j => Resolve(j, tensors)).Should().Throw<InvalidDataException>().WithMessage("config.json: " + message);

    private static void Fails(string json, string key, JsonNode? value, Dictionary<string, TensorEntry> tensors, string message)
        => Fails(With(json, key, value), tensors, message);

    private static string With(string json, string key, JsonNode? value)
    {
        var root = JsonNode.Parse(json)!;
        root[key] = value;
        return root.ToJsonString();
    }

    private static string Without(string json, string key)
    {
        var root = JsonNode.Parse(json)!.AsObject();
        root.Remove(key);
        return root.ToJsonString();
    }

    private static Dictionary<string, TensorEntry> Tensors(LanguageConfig config)
    {
        var recorder = new ShapeRecorder();
        config.Create(recorder.Root).Dispose();
        return recorder.Shapes.ToDictionary(s => s.Key, s => new TensorEntry(s.Key, ScalarType.Float32, s.Value));
    }

    private static void Put(Dictionary<string, TensorEntry> tensors, string name, params long[] shape)
        => tensors[name] = new(name, ScalarType.Float32, shape);
}
