using MambaVL.Checkpoints;
using MambaVL.Models;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MambaVL.Tests.Models;

/// <summary>Stands in for the checkpoint source.</summary>
internal sealed class TestLoading(Checkpoint file, ScalarType dtype) : ParameterSource
{
    private static readonly string[][] Aliases =
        [["backbone.embedding.weight", "backbone.embeddings.weight", "lm_head.weight"], ["embed_out.weight", "lm_head.weight"]];

    public override Parameter Take(string name, long[] shape, Action<Tensor> initial, bool keepFloat32)
    {
        var found = file.Tensors.ContainsKey(name) ? name
            : Aliases.Where(a => a.Contains(name)).SelectMany(a => a).First(file.Tensors.ContainsKey);
        var t = file.Read(found, keepFloat32 ? ScalarType.Float32 : dtype);
        if (!t.shape.SequenceEqual(shape)) throw new InvalidDataException(name);
        return new Parameter(t, requires_grad: false);
    }
}
