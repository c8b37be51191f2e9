using MambaVL.Checkpoints;
using MambaVL.Models;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;
using F = TorchSharp.torch.nn.functional;

namespace MambaVL.Tests.Models;

/// <summary>What a GPU needs of weights is tensor code, and tested on the CPU.</summary>
public class PackedMatrixTests
{
    [Theory]
    [InlineData(1, 64), InlineData(8, 8), InlineData(588, 640), InlineData(768, 768), InlineData(2730, 2752), InlineData(2048, 2048)]
    public void OnlyLengthsWithoutAFastPathArePadded(long length, long padded) => PackedMatrix.Padded(length).Should().Be(padded);

    [Fact]
    public void ParametersLieInTheMatrixWithZerosAround()
    {
        using var scope = NewDisposeScope();
        using var matrix = new PackedMatrix(7, 5);
        var (a, b) = (Frozen(2, 3), Frozen(3, 2, 2));
        var (aBits, bBits) = (a.clone(), b.clone());
        var laid = matrix.Get(a, (a, 1), (b, 4));
        var expected = zeros(7, 5);
        expected[1..3, ..3] = aBits;
        expected[4.., ..4] = bBits.reshape(3, 4);
        laid.ShouldEqualBits(expected, "the matrix");
        a.ShouldEqualBits(aBits, "a parameter");
        b.ShouldEqualBits(bBits, "one of three axes");
        matrix.Get(a, (a, 1), (b, 4)).Should().BeSameAs(laid);

        b.fill_(9);
        laid[4.., ..4].eq(9).all().item<bool>().Should().BeTrue("what is written to a parameter is in the matrix");
        laid[.., 4].eq(0).all().item<bool>().Should().BeTrue("and the zeros stay");
    }

    [Fact]
    public void MovedParametersAreLaidOutAgain()
    {
        using var scope = NewDisposeScope();
        using var matrix = new PackedMatrix(4, 0);
        var a = Frozen(3);
        matrix.Get(a, (a, 0));
        a.set_(tensor(new[] { 5f, 6, 7 })); // elsewhere, as a move to another device leaves it
        matrix.Get(a, (a, 0)).data<float>().ToArray().Should().Equal(5, 6, 7, 0);
        using var half = new Parameter(a.to(ScalarType.BFloat16), requires_grad: false);
        matrix.Get(half, (half, 0)).dtype.Should().Be(ScalarType.BFloat16);
    }

    [Fact]
    public void UnpackedParametersHaveMemoryOfTheirOwn()
    {
        using var scope = NewDisposeScope();
        using var matrix = new PackedMatrix(2, 8);
        var a = Frozen(2, 3);
        var bits = a.clone();
        matrix.Get(a, (a, 0));
        a.is_contiguous().Should().BeFalse();
        matrix.Unpack((a, 0));
        a.is_contiguous().Should().BeTrue();
        a.ShouldEqualBits(bits, "unpacked");
        matrix.Unpack((a, 0));
        matrix.Get(a, (a, 0))[.., ..3].ShouldEqualBits(bits, "packed again");
    }

    [Fact]
    public void InferenceModeMakesNoDifference()
    {
        using var scope = NewDisposeScope();
        using var matrix = new PackedMatrix(2, 4);
        Parameter inferred;
        using (inference_mode())
        {
            inferred = Frozen(2, 3);
            matrix.Get(inferred, (inferred, 0));
        }
        using var other = new PackedMatrix(2, 4);
        var a = Frozen(2, 3);
        using (inference_mode()) other.Get(a, (a, 0));
        var x = ones([1, 4], requires_grad: true);
        F.linear(x, other.Get(a, (a, 0))).sum().backward(); // an inference tensor cannot be saved for that
        x.grad!.ShouldEqual(cat([a[0] + a[1], zeros(1)]).unsqueeze(0), "gradient", 1e-6);
        using var matrixOutside = new PackedMatrix(2, 4);
        matrixOutside.Get(inferred, (inferred, 0))[.., ..3].ShouldEqualBits(inferred, "a parameter made in inference mode, packed outside");
    }

    [Fact]
    public void ThreadsShareOneMatrix()
    {
        using var matrix = new PackedMatrix(64, 64);
        using var a = Frozen(64, 33);
        var found = new Tensor[8];
        Parallel.For(0, found.Length, i => found[i] = matrix.Get(a, (a, 0)));
        found.Should().AllSatisfy(m => m.Should().BeSameAs(found[0]));
    }

    private static Parameter Frozen(params long[] shape) => new(randn(shape), requires_grad: false);
}
