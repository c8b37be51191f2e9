using MambaVL.Checkpoints;
using MambaVL.Scan;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Scan;

/// <summary>The cases of fixtures/selective-scan: answers of a float64 recurrence, with softplus on delta.</summary>
[Trait("Category", "Parity")]
public class ScanParityTests
{
    private static readonly string[] Inputs = ["u", "delta", "A", "B", "C", "D", "z", "delta_bias"];

    [SkippableTheory]
    [InlineData("reference", 0)]
    [InlineData("cpu", 512)]
    [InlineData("cpu", 256)]
    [InlineData("cpu", 128)]
    public void ForwardAndGradientsEqualTheFixtures(string backend, int bits)
    {
        Skip.IfNot(bits <= CpuScan.WidestLanes, $"This machine has no vectors of {bits} bits.");
        using var file = Checkpoint.Open(Fixtures.Path("selective-scan", "expected.safetensors"));
        var cases = file.Tensors.Keys.Select(k => k.Split('.')[0]).Distinct().OrderBy(c => c, StringComparer.Ordinal).ToList();
        cases.Should().NotBeEmpty();
        foreach (var name in cases)
        {
            using var scope = NewDisposeScope();
            Tensor? Read(string key) => file.Tensors.ContainsKey($"{name}.{key}") ? file.Read($"{name}.{key}") : null;
            var x = Inputs.ToDictionary(i => i, i => Read(i)?.requires_grad_());

            var arguments = new ScanArguments(x["u"]!, x["delta"]!, x["A"]!, x["B"]!, x["C"]!, x["D"], x["z"], x["delta_bias"], true, null).Checked();
            var (output, lastState) = backend == "cpu" ? CpuScan.Run(arguments, bits) : ReferenceScan.Run(arguments);

            ScanTesting.Close(output, Read("out")!, 1e-5, $"case {name}: out");
            if (Read("last_state") is { } expectedState) ScanTesting.Close(lastState, expectedState, 1e-5, $"case {name}: last_state");
            if (Read("grad.out") is not { } gradOut) continue;
            output.backward([gradOut]);
            foreach (var input in Inputs)
                if (Read($"grad.{input}") is { } expected)
                    ScanTesting.Close(x[input]!.grad!, expected, 1e-4, $"case {name}: grad.{input}");
        }
    }
}
