namespace MambaVL.Tests;

public class CudaCheckTests
{
    private static readonly CudaDevice H100 = new(0, "NVIDIA H100", 9, 0, 80L << 30);
    private static readonly CudaDevice P100 = new(0, "Tesla P100", 6, 0, 16L << 30);
    private static readonly CudaDevice K80 = new(0, "Tesla K80", 3, 7, 12L << 30);

    [Fact]
    public void NothingIsWrongWhereItWorks() => Explain(new CudaDriver(null, 13000, [H100])).Should().BeNull();

    [Fact]
    public void ALibtorchWithoutCudaIsNamed() => Explain(new CudaDriver(null, 13000, [H100]), hasCuda: false).Should().Match("*built without it*MAMBAVL_LIBTORCH_DIR*TorchSharp-cuda-linux*");

    [Fact]
    public void NoDriverIsNamed() => Explain(new CudaDriver("libcuda.so.1 is not on the system's library path", 0, [])).Should().Match("*libcuda.so.1*install NVIDIA's driver*--gpus all*");

    [Fact]
    public void AnOldDriverIsNamed() => Explain(new CudaDriver(null, 12020, [H100])).Should().Match("*up to 12.2*built with CUDA 13*update*");

    [Fact]
    public void ADeviceThatIsNotThereIsNamed() => Explain(new CudaDriver(null, 13000, [H100]), device: 1).Should().Match("*cuda:1*sees 1*NVIDIA H100*CUDA_VISIBLE_DEVICES*");

    [Fact]
    public void AnOldDeviceForCuda13IsNamed() => Explain(new CudaDriver(null, 13000, [P100])).Should().Match("*Tesla P100*capability 6.0*too old*7.5*");

    [Fact]
    public void TheSameDeviceServesCuda12() => Explain(new CudaDriver(null, 12080, [P100]), cudaMajor: 12).Should().BeNull();

    [Fact]
    public void AnOldDeviceForCuda12IsNamed() => Explain(new CudaDriver(null, 12080, [K80]), cudaMajor: 12).Should().Match("*Tesla K80*3.7*5.0*");

    [Fact]
    public void ARefusalOfLibtorchItselfIsNamed() => Explain(new CudaDriver(null, 13000, [H100]), available: false).Should().Match("*still cannot use it*nvidia-smi*");

    [Fact]
    public void ANegativeIndexIsAnArgumentError() => FluentActions.Invoking(() => Runtime.EnsureCuda(-1)).Should().Throw<ArgumentOutOfRangeException>();

    [Fact]
    public void TheDriverIsAskedWithoutACrashOnAnyMachine()
    {
        var driver = CudaDriver.Ask();
        (driver.Problem is null).Should().Be(driver.Devices.Count > 0);
    }

    private static string? Explain(CudaDriver driver, bool hasCuda = true, int? cudaMajor = 13, bool available = true, int device = 0) =>
        CudaCheck.Explain(hasCuda, cudaMajor, available, driver, device, ["libtorch_cuda.so"])?.Message;
}
