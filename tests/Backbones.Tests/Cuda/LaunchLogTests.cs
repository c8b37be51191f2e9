using System.Runtime.InteropServices;
using MambaVL.Cuda;

namespace MambaVL.Tests.Cuda;

/// <summary>What is known of a fault's launches, without a GPU: CudaFaultTests provokes faults on one.</summary>
public class LaunchLogTests
{
    private const int Every = LaunchLog.MarkEvery;

    [Theory]
    [InlineData(3, 0), InlineData(Every, 0), InlineData(5 * Every + 1, 2), InlineData(5 * Every + 1, 5), InlineData(2 * Every, 2), InlineData(1000, 62)]
    public void TheSuspectsAreTheLaunchesBetweenTheLastMarkReachedAndTheNext(int launches, int marksReached)
    {
        var asked = new List<uint>();
        var log = new LaunchLog(number =>
        {
            if (number is { } n) asked.Add(n);
            return (uint)(marksReached * Every);
        });
        for (var i = 0; i < launches; i++) log.Add($"kernel {i}");
        asked.Should().Equal(Enumerable.Range(1, launches / Every).Select(i => (uint)(i * Every)));
        var (names, areAll) = log.Suspects();
        names.Should().Equal(Enumerable.Range(marksReached * Every, Math.Min(Every, launches - marksReached * Every)).Select(i => $"kernel {i}"));
        areAll.Should().BeTrue();
    }

    [Fact]
    public void WhereNothingCanBeMarkedTheLastLaunchesAreNamed()
    {
        var asked = 0;
        var log = new LaunchLog(_ =>
        {
            asked++;
            return null;
        });
        for (var i = 0; i < 5 * Every; i++) log.Add($"kernel {i}");
        asked.Should().Be(1, "it is not tried again");
        var (names, areAll) = log.Suspects();
        names.Should().Equal(Enumerable.Range(4 * Every, Every).Select(i => $"kernel {i}"));
        areAll.Should().BeFalse();
    }

    [Fact]
    public void AMessageSaysHowSureItIs()
    {
        CudaFaults.Describe([], true).Should().Be("All kernels of this project had ended: it was one of libtorch's.");
        CudaFaults.Describe(["a", "a"], true).Should().Be("It was a, or one of libtorch's at that place.");
        CudaFaults.Describe(["b", "a", "b"], true).Should().Be("It was one of b, a (the oldest first), or one of libtorch's at that place. Run once more with MAMBAVL_CUDA_SYNC=1: the error then names the one.");
        CudaFaults.Describe(["a"], false).Should().Be("It was a, one launched before, or one of libtorch's at that place. Run once more with MAMBAVL_CUDA_SYNC=1: the error then names the one.");
    }

    [Fact]
    public void AnErrorThatIsNoFaultOfAGpuStaysWhatItIs()
    {
        CudaFaults.Behind(new ExternalException("CUDA error: what libtorch says of many things")).Should().BeNull();
        CudaFaults.Behind(new InvalidOperationException()).Should().BeNull();
    }
}
