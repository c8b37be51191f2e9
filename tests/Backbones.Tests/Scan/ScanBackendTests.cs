using MambaVL.Scan;
using Microsoft.Extensions.Logging;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Scan;

[Collection(Alone.Name)]
public class ScanBackendTests
{
    private const string NoDriver = "NVIDIA's driver is not there";

    [Theory]
    [InlineData(null, DeviceType.CPU, ScalarType.Float32, null, "cpu")]
    [InlineData("", DeviceType.CPU, ScalarType.BFloat16, NoDriver, "cpu")]
    [InlineData(null, DeviceType.CPU, ScalarType.Float64, null, "reference")]
    [InlineData(null, DeviceType.CUDA, ScalarType.Float32, null, "cuda")]
    [InlineData(null, DeviceType.CUDA, ScalarType.Float16, null, "cuda")]
    [InlineData(null, DeviceType.CUDA, ScalarType.Float64, null, "reference")]
    [InlineData(null, DeviceType.CUDA, ScalarType.Float32, NoDriver, "reference")]
    [InlineData("reference", DeviceType.CPU, ScalarType.Float32, null, "reference")]
    [InlineData("reference", DeviceType.CUDA, ScalarType.Float32, null, "reference")]
    [InlineData("cpu", DeviceType.CPU, ScalarType.BFloat16, null, "cpu")]
    [InlineData("cuda", DeviceType.CUDA, ScalarType.BFloat16, null, "cuda")]
    [InlineData("cuda", DeviceType.CUDA, ScalarType.BFloat16, NoDriver, "reference")]
    [InlineData("cuda", DeviceType.CPU, ScalarType.Float32, NoDriver, "reference")]
    public void TheChoiceFollowsDeviceTypeAndVariable(string? forced, DeviceType device, ScalarType type, string? problem, string expected) =>
        ScanBackend.Choose(forced, device, type, () => problem).Backend.Name.Should().Be(expected);

    [Fact]
    public void TheReasonForTheReferenceIsKnown()
    {
        ScanBackend.Choose(null, DeviceType.CUDA, ScalarType.Float32, () => NoDriver).Why.Should().Be(NoDriver);
        ScanBackend.Choose("cuda", DeviceType.CPU, ScalarType.Float32, () => NoDriver).Why.Should().Be(NoDriver);
        ScanBackend.Choose("reference", DeviceType.CUDA, ScalarType.Float32, () => NoDriver).Why.Should().BeNull("it was asked for");
        ScanBackend.Choose(null, DeviceType.CPU, ScalarType.Float32, () => throw new InvalidOperationException("no GPU is looked for")).Why.Should().BeNull();
    }

    [Fact]
    public void AnUnknownNameIsAnError() =>
        FluentActions.Invoking(() => ScanBackend.Choose("fast", DeviceType.CPU, ScalarType.Float32, () => null))
            .Should().Throw<InvalidOperationException>().WithMessage("MAMBAVL_SCAN is 'fast'; expected reference, cpu or cuda, or not set.");

    [Theory]
    [InlineData(DeviceType.CPU, ScalarType.Float32)]
    [InlineData(DeviceType.CUDA, ScalarType.Float64)]
    public void TheCudaKernelDoesNotTakeEverything(DeviceType device, ScalarType type) =>
        FluentActions.Invoking(() => ScanBackend.Choose("cuda", device, type, () => null))
            .Should().Throw<InvalidOperationException>().WithMessage($"MAMBAVL_SCAN=cuda takes*these are {type} on {device}*");

    [Theory]
    [InlineData(DeviceType.CUDA, ScalarType.Float32)]
    [InlineData(DeviceType.CPU, ScalarType.Float64)]
    public void TheCpuKernelDoesNotTakeEverything(DeviceType device, ScalarType type) =>
        FluentActions.Invoking(() => ScanBackend.Choose("cpu", device, type, () => null))
            .Should().Throw<InvalidOperationException>().WithMessage($"MAMBAVL_SCAN=cpu takes*these are {type} on {device}*");

    [Fact]
    public void TheVariableIsReadAndTheChoiceLoggedOnce()
    {
        var before = (Environment.GetEnvironmentVariable(ScanBackend.Variable), ScanBackend.Logger);
        var log = new Recorder();
        try
        {
            ScanBackend.Logger = log;
            Environment.SetEnvironmentVariable(ScanBackend.Variable, "reference");
            // A device that no other test asks about.
            ScanBackend.For(DeviceType.XLA, ScalarType.Float32).Should().BeSameAs(ScanBackend.Reference);
            ScanBackend.For(DeviceType.XLA, ScalarType.Float32);
            log.Lines.Should().Equal("Selective scan on XLA: reference (MAMBAVL_SCAN=reference).");
        }
        finally
        {
            Environment.SetEnvironmentVariable(ScanBackend.Variable, before.Item1);
            ScanBackend.Logger = before.Logger;
        }
    }

    private sealed class Recorder : ILogger
    {
        public List<string> Lines { get; } = [];

        public IDisposable? BeginScope<TState>(TState state) where TState : notnull => null;

        public bool IsEnabled(LogLevel logLevel) => true;

        public void Log<TState>(LogLevel logLevel, EventId eventId, TState state, Exception? exception, Func<TState, Exception?, string> formatter) =>
            Lines.Add(formatter(state, exception));
    }
}
