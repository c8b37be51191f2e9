using MambaVL.Cuda;
using MambaVL.Models;
using MambaVL.Scan;
using static TorchSharp.torch;

namespace MambaVL.Tests.Models;

/// <summary>The kernels of a Mamba layer as loops over the computer's memory, in float32: what each of them means. With these the
/// order of the layers' steps is tested on any machine.</summary>
internal sealed unsafe class PlainMambaKernels(MambaConfig config) : IMambaKernels
{
    private readonly int _width = (int)config.HiddenSize, _size = (int)config.ConvolutionSize;
    private readonly bool _layerNorm = config.Norm == NormKind.LayerNorm;

    /// <summary>Calls so far.</summary>
    public int Calls { get; private set; }

    /// <summary>Of these, those for A.</summary>
    public int StateMatrices { get; private set; }

    /// <summary>The call that fails; null: none.</summary>
    public int? FailsAt { get; set; }

    public int NormBlocks => 2;

    public void Norm(in CudaNorm.ForwardArguments a)
    {
        Count();
        var v = new float[_width];
        for (var row = 0L; row < a.Rows; row++)
        {
            var at = row * _width;
            for (var i = 0; i < _width; i++)
            {
                v[i] = (a.Residual == 0 ? 0 : F(a.Residual)[at + i]) + (a.X == 0 ? 0 : F(a.X)[at + i]);
                if (a.Sum != 0) F(a.Sum)[at + i] = v[i];
            }
            var (mean, scale) = Moments(v, a.Epsilon);
            for (var i = 0; i < _width; i++)
                F(a.Normed)[at + i] = (v[i] - mean) * scale * F(a.Weight)[i] + (a.Bias == 0 ? 0 : F(a.Bias)[i]);
        }
    }

    public void NormBackward(in CudaNorm.BackwardArguments a, nint gradWeight, nint gradBias, bool add)
    {
        Count();
        for (var i = 0; i < _width && !add; i++)
        {
            if (gradWeight != 0) F(gradWeight)[i] = 0;
            if (gradBias != 0) F(gradBias)[i] = 0;
        }
        var v = new float[_width];
        for (var row = 0L; row < a.Rows; row++)
        {
            var at = row * _width;
            for (var i = 0; i < _width; i++) v[i] = F(a.Sum)[at + i];
            var (mean, scale) = Moments(v, a.Epsilon);
            float meanGradient = 0, along = 0;
            for (var i = 0; i < _width; i++)
            {
                var g = F(a.GradNormed)[at + i] * F(a.Weight)[i];
                meanGradient += _layerNorm ? g / _width : 0;
                along += g * (v[i] - mean) * scale / _width;
            }
            for (var i = 0; i < _width; i++)
            {
                var (g, unit) = (F(a.GradNormed)[at + i], (v[i] - mean) * scale);
                var gradient = (a.GradSum == 0 ? 0 : F(a.GradSum)[at + i]) + scale * (g * F(a.Weight)[i] - meanGradient - unit * along);
                F(a.GradResidual)[at + i] = gradient;
                if (a.GradX != 0) F(a.GradX)[at + i] = gradient;
                if (a.Normed != 0) F(a.Normed)[at + i] = unit * F(a.Weight)[i] + (a.Bias == 0 ? 0 : F(a.Bias)[i]);
                if (gradWeight != 0) F(gradWeight)[i] += g * unit;
                if (gradBias != 0) F(gradBias)[i] += g;
            }
        }
    }

    public void Convolve(in CudaConvolution.ForwardArguments a)
    {
        Count();
        for (var row = 0; row < a.Rows; row++)
            for (var channel = 0; channel < a.Channels; channel++)
            {
                var u = F(a.U) + row * a.URow + channel * a.UChannel;
                var state = a.State == 0 ? null : F(a.State) + row * a.StateRow + channel * _size;
                float Input(int t) => t >= 0 ? u[t] : state == null ? 0 : state[_size + t];
                for (var t = 0; t < a.Length; t++)
                {
                    var pre = a.Bias == 0 ? 0 : F(a.Bias)[channel];
                    for (var j = 0; j < _size; j++) pre += F(a.Weight)[channel * _size + j] * Input(t - (_size - 1) + j);
                    F(a.Y)[row * a.YRow + channel * a.YChannel + t] = pre / (1 + MathF.Exp(-pre));
                }
                if (a.NextState == 0) continue;
                var next = new float[_size];
                for (var j = 0; j < _size; j++) next[j] = Input(a.Length - _size + j);
                for (var j = 0; j < _size; j++) (F(a.NextState) + row * a.StateRow + channel * _size)[j] = next[j];
            }
    }

    public void ConvolveBackward(in CudaConvolution.BackwardArguments a)
    {
        Count();
        for (var channel = 0; channel < a.Channels; channel++)
        {
            var (weights, gradWeights, gradBias) = (new float[_size], new float[_size], 0f);
            for (var j = 0; j < _size; j++) weights[j] = F(a.Weight)[channel * _size + j];
            for (var row = 0; row < a.Rows; row++)
            {
                var u = F(a.U) + row * a.URow + channel * a.UChannel;
                var g = new float[a.Length + _size];
                for (var t = 0; t < a.Length; t++)
                {
                    var pre = a.Bias == 0 ? 0 : F(a.Bias)[channel];
                    for (var j = 0; j < _size; j++) pre += t - (_size - 1) + j < 0 ? 0 : weights[j] * u[t - (_size - 1) + j];
                    var sigmoid = 1 / (1 + MathF.Exp(-pre));
                    var at = row * a.GradYRow + channel * a.GradYChannel + t;
                    g[t] = (F(a.GradY)[at] + (a.GradYMore == 0 ? 0 : F(a.GradYMore)[at])) * sigmoid * (1 + pre * (1 - sigmoid));
                    gradBias += g[t];
                    for (var j = 0; j < _size; j++) gradWeights[j] += t - (_size - 1) + j < 0 ? 0 : g[t] * u[t - (_size - 1) + j];
                }
                for (var t = 0; t < a.Length && a.GradU != 0; t++)
                {
                    var sum = 0f;
                    for (var j = 0; j < _size; j++) sum += weights[j] * g[t + _size - 1 - j];
                    F(a.GradU)[row * a.GradURow + channel * a.GradUChannel + t] = sum;
                }
            }
            for (var j = 0; j < _size && a.GradWeight != 0; j++) Put(F(a.GradWeight) + channel * _size + j, gradWeights[j], a.Add);
            if (a.GradBias != 0) Put(F(a.GradBias) + channel, gradBias, a.Add);
        }
    }

    public void StateMatrix(in CudaMambaKernels.MatrixArguments a)
    {
        Count();
        StateMatrices++;
        for (var i = 0; i < a.Count; i++) F(a.A)[i] = -MathF.Exp(F(a.Log)[i]);
    }

    public void FloatGradients(in CudaMambaKernels.GradientArguments a)
    {
        Count();
        for (var i = 0; i < a.Channels * a.States && a.Log != 0; i++) Put(F(a.Log) + i, F(a.GradA)[i] * F(a.A)[i], a.AddLog);
        for (var i = 0; i < a.Channels && a.D != 0; i++) Put(F(a.D) + i, F(a.GradD)[i], a.AddD);
        for (var i = 0; i < a.Channels && a.Bias != 0; i++) Put(F(a.Bias) + i, F(a.GradBias)[i], a.AddBias);
    }

    public (Tensor output, Tensor lastState, Tensor? checkpoints) Scan(ScanArguments x, bool keepCheckpoints, ScanTargets into)
    {
        Count();
        var result = CpuScan.Forward(x.Checked(), CpuScan.WidestLanes, keepCheckpoints);
        into.u!.copy_(result.output);
        return result;
    }

    public Tensor?[] ScanBackward(ScanArguments x, Tensor checkpoints, Tensor gradOutput, ScanTargets into)
    {
        Count();
        var gradients = CpuScan.Backward(x.Checked(), checkpoints, gradOutput, null, CpuScan.WidestLanes);
        into.u!.copy_(gradients[0]!);
        into.delta!.copy_(gradients[1]!);
        into.B!.copy_(gradients[3]!);
        into.C!.copy_(gradients[4]!);
        into.z!.copy_(gradients[6]!);
        return gradients;
    }

    private void Count()
    {
        if (++Calls == FailsAt) throw new ArithmeticException($"Call {Calls} of the kernels was to fail.");
    }

    private (float Mean, float Scale) Moments(float[] v, float epsilon)
    {
        var mean = _layerNorm ? v.Sum() / _width : 0;
        return (mean, 1 / MathF.Sqrt(v.Sum(x => (x - mean) * (x - mean)) / _width + epsilon));
    }

    private static float* F(nint address) => (float*)address;

    private static void Put(float* p, float value, int add) => *p = add != 0 ? *p + value : value;
}
