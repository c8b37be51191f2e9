using System.Runtime.InteropServices;
using MambaVL.Kernels;
using MambaVL.Models;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Cuda;

/// <summary>Decodes a Mamba on a GPU: four kernels a layer, or five with LayerNorm or in float16 (Kernels/mamba_decode.cu).</summary>
/// <param name="model">Whose weights are read.</param>
internal sealed class MambaCudaDecoder(Mamba model) : CudaDecoder
{
    // Each lane keeps an eighth of a channel's state, and of its row of dt_proj, in registers.
    private const long GreatestState = 256, GreatestRank = 1024, GreatestWindow = 16;

    protected override Tensor Table => model.backbone.embedding.weight;

    protected override void Read(DecoderWeights weights)
    {
        Ends(weights);
        for (var i = 0; i < model.Config.LayerCount; i++) Layer(weights, i);
    }

    protected override DecodeBatch? Create(CudaGpu gpu, DecoderWeights weights)
    {
        var c = model.Config;
        if (c.StateSize > GreatestState || c.TimeStepRank > GreatestRank || c.ConvolutionSize > GreatestWindow
            || !DecoderMemory.Fits(c.InnerSize * 2 * DecodeControl.MostRows, c.VocabularySize * DecodeControl.MostRows)) return null;
        return new Batch(gpu, weights, c, Ends(weights), [.. Enumerable.Range(0, (int)c.LayerCount).Select(i => Layer(weights, i))]);
    }

    private DecoderEnds Ends(DecoderWeights w)
    {
        var (d, v, b) = (model.Config.HiddenSize, model.Config.VocabularySize, model.backbone);
        var table = w.Of(b.embedding.weight, v * d, "The embedding table");
        return new(table, model.lm_head is null ? table : w.Of(model.lm_head.weight, v * d, "The head"),
            new(w.Of(b.norm_f.weight, d, "norm_f"), w.Of(b.norm_f.bias, d, "The bias of norm_f"), (float)model.Config.NormEpsilon));
    }

    private (NormWeights Norm, LayerArguments Arguments) Layer(DecoderWeights w, int i)
    {
        var (c, layer) = (model.Config, model.backbone.layers[i]);
        var (d, e, n, r, mixer) = (c.HiddenSize, c.InnerSize, c.StateSize, c.TimeStepRank, layer.mixer);
        return (new(w.Of(layer.norm.weight, d, Name("norm")), w.Of(layer.norm.bias, d, Name("norm's bias")), (float)c.NormEpsilon), new()
        {
            InProj = w.Of(mixer.in_proj.weight, 2 * e * d, Name("in_proj")), InBias = w.Of(mixer.in_proj.bias, 2 * e, Name("in_proj's bias")),
            Conv = w.Of(mixer.conv1d.weight, e * c.ConvolutionSize, Name("conv1d")), ConvBias = w.Of(mixer.conv1d.bias, e, Name("conv1d's bias")),
            XProj = w.Of(mixer.x_proj.weight, (r + 2 * n) * e, Name("x_proj")),
            DtProj = w.Of(mixer.dt_proj.weight, e * r, Name("dt_proj")), DtBias = w.Wide(mixer.dt_proj.bias!, e, Name("dt_proj's bias")),
            ALog = w.Wide(mixer.A_log, e * n, Name("A_log")), D = w.Wide(mixer.D, e, Name("D")),
            OutProj = w.Of(mixer.out_proj.weight, d * e, Name("out_proj")), OutBias = w.Of(mixer.out_proj.bias, d, Name("out_proj's bias")),
        });

        string Name(string what) => $"Layer {i}'s {what}";
    }

    // Layer of mamba_decode.cu.
    [StructLayout(LayoutKind.Sequential)]
    private record struct LayerArguments
    {
        public nint InProj, InBias, Conv, ConvBias, XProj, DtProj, DtBias, ALog, D, OutProj, OutBias;
        public nint Windows, States, X, Residual, U, Z, Selected, UPacked, YPacked;
        public nint Squares, NextNorm;
        public float Epsilon;
    }

    // Entry of mamba_decode.cu.
    [StructLayout(LayoutKind.Sequential)]
    private record struct EntryArguments
    {
        public nint Table, Norm, Control, Residual, X, Squares;
    }

    private sealed class Batch : DecodeBatch
    {
        // STATE_THREADS of mamba_decode.cu.
        private const int StateThreads = 128;

        private readonly MambaConfig _config;
        private readonly (NormArguments Norm, LayerArguments Layer)[] _layers;
        private readonly EntryArguments _entry;

        public Batch(CudaGpu gpu, DecoderWeights weights, MambaConfig c, DecoderEnds ends, (NormWeights Norm, LayerArguments Arguments)[] layers)
            // Before it is multiplied by its norm's factor an activation may be beyond float16.
            : base(gpu, weights, new((int)c.HiddenSize, (int)c.VocabularySize, (int)c.LayerCount), ends,
                foldNorm: c.Norm == NormKind.RmsNorm && weights.Type != ScalarType.Float16)
        {
            _config = c;
            int e = (int)c.InnerSize, selectedRow = (int)(c.TimeStepRank + 2 * c.StateSize + 3) / 4 * 4; // SELECTED_ROW
            try
            {
                nint u = Floats(e), z = Floats(e), selected = Floats(selectedRow), uPacked = Packed(e), yPacked = Packed(e);
                Spare = (Memory(c.ConvolutionSize), Memory(c.StateSize));
                _layers = [.. layers.Select((layer, i) => (Norm(layer.Norm), layer.Arguments with
                {
                    Windows = Table(i, 0), States = Table(i, 1), X = NormX, Residual = Residual, U = u, Z = z, Selected = selected, UPacked = uPacked, YPacked = yPacked,
                    Squares = Squares, NextNorm = i + 1 < layers.Length ? layers[i + 1].Norm.Weight : ends.Norm.Weight, Epsilon = layer.Norm.Epsilon,
                }))];
                _entry = new() { Table = ends.Table, Norm = layers[0].Norm.Weight, Control = Control, Residual = Residual, X = NormX, Squares = Squares };
            }
            catch
            {
                Dispose();
                throw;
            }

            nint Memory(long values) => CudaTensor.Pointer(Buffer(e * values * sizeof(float)));
        }

        protected override (nint First, nint Second) Spare { get; }

        protected override (nint First, nint Second) State(DecoderState state, int layer)
        {
            var own = (MambaState)state;
            return (Of(own.Convolution[layer]), Of(own.Scan[layer]));

            nint Of(Tensor t) => t.device_type == DeviceType.CUDA && t.device_index == Gpu.Index ? CudaTensor.Pointer(t)
                : throw new ArgumentException($"A state is on {t.device}, and the model on cuda:{Gpu.Index}; make it anew with CreateState.", nameof(state));
        }

        protected override CudaModule Module(int b)
        {
            var c = _config;
            return Module("mamba_decode.cu", b, c.Norm == NormKind.LayerNorm, $"E={c.InnerSize}", $"N={c.StateSize}", $"R={c.TimeStepRank}", $"K={c.ConvolutionSize}", $"STATE={CudaTensor.TypeName(Weights.WideType!.Value)}");
        }

        protected override Action<nint> Embedding(CudaModule module, int b)
        {
            if (!FoldNorm) return base.Embedding(module, b);
            var embed = Of(module, "embed");
            return stream => embed.Run(stream, new Launch(((Shape.Hidden + DecodeGrid.Threads - 1) / DecodeGrid.Threads, b, 1), (DecodeGrid.Threads, 1)), _entry);
        }

        protected override Action<nint> Layers(CudaModule module, int b, bool overlap)
        {
            Spread input = SpreadOf(module, "input"), select = SpreadOf(module, "select"), state = SpreadOf(module, "state"), output = SpreadOf(module, "output");
            var normalise = Of(module, "normalise");
            return stream =>
            {
                foreach (var (norm, layer) in _layers)
                {
                    if (!FoldNorm) Run(normalise, stream, b, overlap, norm);
                    input.Run(stream, overlap, layer);
                    select.Run(stream, overlap, layer);
                    state.Run(stream, overlap, layer, StateThreads);
                    output.Run(stream, overlap, layer);
                }
            };
        }
    }
}
