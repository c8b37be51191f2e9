namespace MambaVL.Tests.Training;

/// <summary>Time that passes when a test says so.</summary>
internal sealed class Clock(double unixSeconds) : TimeProvider
{
    private TimeSpan _passed;

    public void Advance(TimeSpan time) => _passed += time;

    public override DateTimeOffset GetUtcNow() => DateTimeOffset.UnixEpoch.AddSeconds(unixSeconds) + _passed;

    public override long TimestampFrequency => TimeSpan.TicksPerSecond;

    public override long GetTimestamp() => _passed.Ticks;
}
