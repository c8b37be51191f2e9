using MambaVL.Scan;
using Microsoft.Extensions.Logging;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Scan;

[Collection(Alone.Name)]
public class ScanBackendTests
{
    [Theory]
    [InlineData(null, DeviceType.CPU, ScalarType.Float32, "cpu")]
    [InlineData("", DeviceType.CPU, ScalarType.BFloat16, "cpu")]
    [InlineData(null, DeviceType.CPU, ScalarType.Float64, "reference")]
    [InlineData(null, DeviceType.CUDA, ScalarType.Float32, "reference")]
    [InlineData("reference", DeviceType.CPU, ScalarType.Float32, "reference")]
    [InlineData("cpu", DeviceType.CPU, ScalarType.BFloat16, "cpu")]
    public void TheChoiceFollowsDeviceTypeAndVariable(string? forced, DeviceType device, ScalarType type, string expected) =>
        ScanBackend.Choose(forced, device, type).Name.Should().Be(expected);

    [Fact]
    public void AnUnknownNameIsAnError() =>
        FluentActions.Invoking(() => ScanBackend.Choose("fast", DeviceType.CPU, ScalarType.Float32))
            .Should().Throw<InvalidOperationException>().WithMessage("MAMBAVL_SCAN is 'fast'; expected reference, cpu or cuda, or not set.");

    [Fact]
    public void TheCudaKernelIsSaidToBeMissing() =>
        FluentActions.Invoking(() => ScanBackend.Choose("cuda", DeviceType.CUDA, ScalarType.Float32))
            .Should().Throw<NotSupportedException>().WithMessage("*no CUDA kernel of the selective scan. Unset MAMBAVL_SCAN*");

    [Theory]
    [InlineData(DeviceType.CUDA, ScalarType.Float32)]
    [InlineData(DeviceType.CPU, ScalarType.Float64)]
    public void TheCpuKernelDoesNotTakeEverything(DeviceType device, ScalarType type) =>
        FluentActions.Invoking(() => ScanBackend.Choose("cpu", device, type))
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
