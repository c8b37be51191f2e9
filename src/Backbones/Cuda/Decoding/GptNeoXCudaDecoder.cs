using System.Runtime.InteropServices;
using MambaVL.Kernels;
using MambaVL.Models;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Cuda;

/// <summary>Decodes a GPT-NeoX on a GPU: four kernels a layer, or seven where its residual is not parallel
/// (Kernels/gptneox_decode.cu).</summary>
/// <param name="model">Whose weights are read.</param>
internal sealed class GptNeoXCudaDecoder(GptNeoX model) : CudaDecoder
{
    // A position's value is weighed by the threads of one block.
    private const long GreatestHead = DecodeGrid.Threads;

    protected override Tensor Table => model.gpt_neox.embed_in.weight;

    protected override void Read(DecoderWeights weights)
    {
        Ends(weights);
        for (var i = 0; i < model.Config.LayerCount; i++) Layer(weights, i);
    }

    protected override DecodeBatch? Create(CudaGpu gpu, DecoderWeights weights)
    {
        var c = model.Config;
        if (c.HeadSize > GreatestHead || !DecoderMemory.Fits(c.HiddenSize * 3 * DecodeControl.MostRows, c.IntermediateSize * DecodeControl.MostRows, c.VocabularySize * DecodeControl.MostRows)) return null;
        return new Batch(gpu, weights, model, Ends(weights), [.. Enumerable.Range(0, (int)c.LayerCount).Select(i => Layer(weights, i))]);
    }

    private DecoderEnds Ends(DecoderWeights w)
    {
        var (d, v, body) = (model.Config.HiddenSize, model.Config.VocabularySize, model.gpt_neox);
        var table = w.Of(body.embed_in.weight, v * d, "The embedding table");
        return new(table, model.embed_out is null ? table : w.Of(model.embed_out.weight, v * d, "The head"),
            new(w.Of(body.final_layer_norm.weight, d, "final_layer_norm"), w.Of(body.final_layer_norm.bias, d, "The bias of final_layer_norm"), (float)model.Config.NormEpsilon));
    }

    private (NormWeights Attention, NormWeights Mlp, LayerArguments Arguments) Layer(DecoderWeights w, int i)
    {
        var (c, layer) = (model.Config, model.gpt_neox.layers[i]);
        var (d, m) = (c.HiddenSize, c.IntermediateSize);
        var epsilon = (float)c.NormEpsilon;
        return (new(w.Of(layer.input_layernorm.weight, d, Name("input_layernorm")), w.Of(layer.input_layernorm.bias, d, Name("input_layernorm's bias")), epsilon),
            new(w.Of(layer.post_attention_layernorm.weight, d, Name("post_attention_layernorm")), w.Of(layer.post_attention_layernorm.bias, d, Name("post_attention_layernorm's bias")), epsilon), new()
        {
            Qkv = w.Of(layer.attention.query_key_value.weight, 3 * d * d, Name("query_key_value")), QkvBias = w.Of(layer.attention.query_key_value.bias, 3 * d, Name("query_key_value's bias")),
            Dense = w.Of(layer.attention.dense.weight, d * d, Name("dense")), DenseBias = w.Of(layer.attention.dense.bias, d, Name("dense's bias")),
            Up = w.Of(layer.mlp.dense_h_to_4h.weight, m * d, Name("dense_h_to_4h")), UpBias = w.Of(layer.mlp.dense_h_to_4h.bias, m, Name("dense_h_to_4h's bias")),
            Down = w.Of(layer.mlp.dense_4h_to_h.weight, d * m, Name("dense_4h_to_h")), DownBias = w.Of(layer.mlp.dense_4h_to_h.bias, d, Name("dense_4h_to_h's bias")),
        });

        string Name(string what) => $"Layer {i}'s {what}";
    }

    // Layer of gptneox_decode.cu.
    [StructLayout(LayoutKind.Sequential)]
    private record struct LayerArguments
    {
        public nint Qkv, QkvBias, Dense, DenseBias, Up, UpBias, Down, DownBias;
        public nint Keys, Values, Cosines, Sines, Control, X, X2, Residual, Projected, Parts, Arrived, Attended, Wide;
    }

    private sealed class Batch : DecodeBatch
    {
        // Parts of a head's positions (MOST_PARTS).
        private const int MostParts = 16;

        // Positions that rotary tables are made for at first, and at least.
        private const int LeastPositions = 2048;

        private readonly GptNeoX _model;
        private readonly GptNeoXConfig _config;
        private readonly (NormArguments Norm, NormArguments MlpNorm, LayerArguments Layer)[] _layers;
        private Tensor? _rotary; // (2, positions, r / 2), float32
        private int _positions;

        public Batch(CudaGpu gpu, DecoderWeights weights, GptNeoX model, DecoderEnds ends, (NormWeights Attention, NormWeights Mlp, LayerArguments Arguments)[] layers)
            : base(gpu, weights, new((int)model.HiddenSize, (int)model.VocabularySize, (int)model.Config.LayerCount), ends)
        {
            (_model, _config) = (model, model.Config);
            try
            {
                int d = Shape.Hidden, m = (int)_config.IntermediateSize;
                int heads = (int)_config.HeadCount, k = (int)_config.HeadSize;
                nint projected = Floats(3 * d), parts = Floats(heads * MostParts * (2 + k)), arrived = Floats(heads), attended = Packed(d), wide = Packed(m);
                Spare = (CudaTensor.Pointer(Buffer(d * sizeof(float))), CudaTensor.Pointer(Buffer(d * sizeof(float))));
                _layers = [.. layers.Select((layer, i) => (_config.ParallelResidual ? Norm(layer.Attention, layer.Mlp) : Norm(layer.Attention), Norm(layer.Mlp), layer.Arguments with
                {
                    Keys = Table(i, 0), Values = Table(i, 1), Control = Control, X = NormX, X2 = NormX2, Residual = Residual, Projected = projected, Parts = parts, Arrived = arrived, Attended = attended, Wide = wide,
                }))];
            }
            catch
            {
                Dispose();
                throw;
            }
        }

        protected override (nint First, nint Second) Spare { get; }

        protected override (nint First, nint Second) State(DecoderState state, int layer)
        {
            var own = (GptNeoXState)state;
            return (Of(own.Keys[layer]), Of(own.Values[layer]));

            nint Of(Tensor t) => t.device_type == DeviceType.CUDA && t.device_index == Gpu.Index && t.dtype == Weights.Type ? CudaTensor.Pointer(t)
                : throw new ArgumentException($"A state is {t.dtype} on {t.device}, and the model {Weights.Type} on cuda:{Gpu.Index}; make it anew with CreateState.", nameof(state));
        }

        protected override void Prepare(IReadOnlyList<DecoderState> states)
        {
            var needed = states.Max(s => s.MaxLength);
            if (needed <= _positions) return;
            using (inference_mode(false))
            using (no_grad())
            using (NewDisposeScope())
            {
                var positions = Math.Max(LeastPositions, needed);
                var (cos, sin) = _model.gpt_neox.RotaryTables(0, positions); // (positions, 1, 1, r / 2)
                var rotary = stack([cos, sin]).to(ScalarType.Float32).contiguous().DetachFromDisposeScope();
                _rotary?.Dispose();
                (_rotary, _positions) = (rotary, positions);
            }
            var at = CudaTensor.Pointer(_rotary);
            for (var i = 0; i < _layers.Length; i++)
                _layers[i].Layer = _layers[i].Layer with { Cosines = at, Sines = at + (nint)(_positions * _config.RotarySize / 2 * sizeof(float)) };
            Forget();
        }

        protected override CudaModule Module(int b)
        {
            var c = _config;
            return Module("gptneox_decode.cu", b, true, $"H={c.HeadCount}", $"K={c.HeadSize}", $"R={c.RotarySize}", $"M={c.IntermediateSize}", $"TANH_GELU={(c.TanhGelu ? "true" : "false")}");
        }

        protected override Action<nint> Layers(CudaModule module, int b, bool overlap)
        {
            var normalise = Of(module, "normalise");
            Spread qkv = Get("qkv"), attend = Get("attend"), denseDown = Get("dense_down"), attendAlone = Get("attend_alone"), dense = Get("dense"), up = Get("up"), down = Get("down");
            return stream =>
            {
                foreach (var (norm, mlpNorm, layer) in _layers)
                {
                    Run(normalise, stream, b, overlap, norm);
                    qkv.Run(stream, overlap, layer);
                    if (_config.ParallelResidual)
                    {
                        attend.Run(stream, overlap, layer);
                        denseDown.Run(stream, overlap, layer);
                        continue;
                    }
                    attendAlone.Run(stream, overlap, layer);
                    dense.Run(stream, overlap, layer);
                    Run(normalise, stream, b, overlap, mlpNorm);
                    up.Run(stream, overlap, layer);
                    down.Run(stream, overlap, layer);
                }
            };

            Spread Get(string entry) => SpreadOf(module, entry);
        }

        protected override void Dispose(bool disposing)
        {
            base.Dispose(disposing);
            if (disposing) _rotary?.Dispose();
        }
    }
}
