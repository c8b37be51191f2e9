using MambaVL.Training;

namespace MambaVL.Tests.Training;

public class ConsoleProgressTests
{
    private readonly StringWriter _text = new() { NewLine = "\n" };
    private readonly Clock _clock = new(1_700_000_000);

    [Fact]
    public void AConsoleHasOneLineThatIsRewritten()
    {
        using (var progress = Progress(100, width: () => 100))
        {
            Step(progress, 1, new(1, 2.5, 2e-5), rows: 8);
            Step(progress, 1, new(50, 1.25, 1e-5, 0.5), rows: 8);
            _text.ToString().Should().NotContain("\n").And.Contain("\r");
        }
        var lines = _text.ToString().TrimEnd('\n').Split('\r');
        lines.Should().HaveCount(3).And.OnlyContain(l => l.Length == 0 || l.Length == 99, "each wipes the one before it");
        lines[1].TrimEnd().Should().Be("[........................] step 1/100 1%  loss 2.5000  lr 2.00e-5  8.0 rows/s  ETA 0:01:39");
        lines[2].TrimEnd().Should().Be("[########........] step 50/100 50%  loss 1.2500  lr 1.00e-5  metric 0.5000  8.0 rows/s  ETA 0:00:02");
        _text.ToString().Should().EndWith("\n").And.Subject.Count(c => c == '\n').Should().Be(1);
    }

    [Fact]
    public void ALogFileHasAPlainLineEverySoOften()
    {
        using (var progress = Progress(1000))
            for (var i = 1; i <= 35; i++) Step(progress, 1, new(i, 1, 1e-4), rows: 4);
        var lines = Lines();
        lines.Should().Equal(new[] { 1, 11, 21, 31, 35 }.Select(i =>
            $"step {i}/1000 {i / 10}%  loss 1.0000  lr 1.00e-4  4.0 rows/s  ETA 0:{(1000 - i) / 60:d2}:{(1000 - i) % 60:d2}"));
        _text.ToString().Should().NotContain("\r");
    }

    [Fact]
    public void AConsoleIsNotWrittenToMoreThanAnEyeCanFollow()
    {
        using var progress = Progress(1000, width: () => 80);
        for (var i = 1; i <= 200; i++) Step(progress, 0.01, new(i, 1, 1), 1);
        _text.ToString().Count(c => c == '\r').Should().Be(20, "2 seconds have passed");
    }

    [Fact]
    public void StepsOfAnEarlierStartDoNotCountForTheRate()
    {
        using (var progress = Progress(100, done: 90)) Step(progress, 2, new(91, 1, 1), 16);
        Lines().Single().Should().Contain("step 91/100 91%").And.EndWith("8.0 rows/s  ETA 0:00:18");
    }

    [Fact]
    public void ANarrowConsoleGetsWhatFits()
    {
        using (var progress = Progress(100, width: () => 30)) Step(progress, 1, new(1, 1, 1), 1);
        _text.ToString().Should().Be("\rstep 1/100 1%  loss 1.0000  l\n");
    }

    [Fact]
    public void StrangeNumbersAreShown()
    {
        using (var progress = Progress(10)) Step(progress, 1e7, new(1, double.NaN, 0), 1);
        Lines().Single().Should().Be("step 1/10 10%  loss NaN  lr 0.00e0  0.0 rows/s  ETA 25000:00:00");
        using (Progress(10)) { }
        Lines().Should().HaveCount(1, "without a step there is nothing to show");
        using (var nothing = Progress(0)) nothing.Report(new(0, 1, 1), 1);
        Lines().Last().Should().Be("step 0/0 100%  loss 1.0000  lr 1.00e0");
    }

    [Fact]
    public void AWriterOfTheCallersGetsPlainLinesAndStaysOpen()
    {
        using (var progress = new ConsoleProgress(10, writer: _text)) progress.Report(new(1, 1, 1), 1);
        _text.Write("!");
        _text.ToString().Should().StartWith("step 1/10 10%").And.EndWith("\n!");
        var wrong = () => new ConsoleProgress(5, doneSteps: 6);
        wrong.Should().Throw<ArgumentOutOfRangeException>();
    }

    private ConsoleProgress Progress(long total, long done = 0, Func<int>? width = null) => new(total, done, _text, width, _clock);

    private void Step(ConsoleProgress progress, double seconds, TrainingPoint point, int rows)
    {
        _clock.Advance(TimeSpan.FromSeconds(seconds));
        progress.Report(point, rows);
    }

    private string[] Lines() => _text.ToString().Split('\n', StringSplitOptions.RemoveEmptyEntries);
}
