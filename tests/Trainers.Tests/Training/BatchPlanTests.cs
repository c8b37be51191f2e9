using MambaVL.Training;

namespace MambaVL.Tests.Training;

public sealed class BatchPlanTests
{
    [Theory]
    [InlineData(1, 4, 1), InlineData(3, 4, 4), InlineData(100, 8, 1), InlineData(1000, 7, 4), InlineData(4099, 32, 3)]
    public void EachEpochHasEachRowOnceInFullSteps(int rows, int batch, int perImage)
    {
        var plan = Plan(rows, batch, perImage);
        foreach (var epoch in (int[])[0, 1])
        {
            var steps = plan.Epoch(epoch).ToList();
            steps.Should().HaveCount(plan.StepsPerEpoch);
            steps.SelectMany(s => s).Order().Should().Equal(Enumerable.Range(0, rows));
            steps.SkipLast(1).Count(s => s.Length != batch).Should().Be(0);
        }
    }

    [Fact]
    public void TheSeedAndTheEpochAloneGiveTheOrder()
    {
        Flat(Plan(500, 8, 4), 0).Should().Equal(Flat(Plan(500, 8, 4), 0));
        Flat(Plan(500, 8, 4), 1).Should().NotEqual(Flat(Plan(500, 8, 4), 0));
        Flat(Plan(500, 8, 4, seed: 2), 0).Should().NotEqual(Flat(Plan(500, 8, 4), 0));
        Flat(Plan(40, 8, 1), 0)[..8].Should().Equal([32, 4, 21, 38, 10, 27, 16, 33], "another order would be another model for the same seed");

        static int[] Flat(BatchPlan plan, int epoch) => [.. plan.Epoch(epoch).SelectMany(s => s)];
    }

    // A run that goes on after years must take the rows that it would have taken: the first implementation, in plain words.
    [Theory]
    [InlineData(1, 4, 1), InlineData(3, 4, 4), InlineData(100, 8, 1), InlineData(1000, 7, 4), InlineData(4099, 32, 3), InlineData(20_000, 16, 1), InlineData(20_000, 16, 8)]
    public void TheRowsAreThoseOfTheDefinition(int rows, int batch, int perImage)
    {
        int[] lengths = [.. Enumerable.Range(0, rows).Select(i => 10 + i * 31 % 17)], pictures = [.. Enumerable.Range(0, rows).Select(i => i * 7 % rows / 5)];
        foreach (var (seed, epoch) in ((long, int)[])[(0, 0), (1, 0), (1, 3), (long.MinValue, 1)])
        {
            var actual = new BatchPlan(lengths, pictures, batch, perImage, seed).Epoch(epoch).ToList();
            var expected = Definition(lengths, pictures, batch, perImage, seed, epoch);
            actual.Should().HaveSameCount(expected);
            for (var i = 0; i < expected.Count; i++) actual[i].Should().Equal(expected[i]);
        }
    }

    [Fact]
    public void RowsOfLikeLengthAndOfOneImageStandTogether()
    {
        var lengths = Enumerable.Range(0, 2048).Select(i => 20 + i * 37 % 80).ToArray();
        var pictures = Enumerable.Range(0, 2048).Select(i => i / 8).ToArray();
        double Padding(int[][] steps) => steps.Sum(s => (double)s.Length * s.Max(r => lengths[r])) / lengths.Sum();
        double Distinct(int[][] steps) => steps.Average(s => s.Select(r => pictures[r]).Distinct().Count());

        var loose = new BatchPlan(lengths, pictures, 32, 1, 1).Epoch(0).ToArray();
        Padding(loose).Should().BeLessThan(1.05);
        Distinct(loose).Should().BeGreaterThan(28);
        var grouped = new BatchPlan(lengths, pictures, 32, 4, 1).Epoch(0).ToArray();
        Distinct(grouped).Should().BeLessThan(10);
        Distinct([.. grouped.SelectMany(s => s.Chunk(8))]).Should().BeLessThan(3.5, "micro-batches share pictures too");
        Padding(grouped).Should().BeLessThan(Padding(Enumerable.Range(0, 2048).Chunk(32).ToArray()));
        // Long and short steps come by turns, not the long ones first.
        loose.Take(32).Select(s => lengths[s[0]]).Should().NotBeInDescendingOrder();
    }

    [Fact]
    public void TheLearningRateRisesThenFallsAlongACosine()
    {
        var schedule = new LearningRateSchedule(2, 100, 0.03, 0.1);
        new[] { 0, 1, 2, 3 }.Select(schedule.At).Should().Equal(2 / 3.0, 4 / 3.0, 2, 2);
        schedule.At(3 + 97 / 2).Should().BeApproximately(0.2 + 1.8 / 2, 0.02);
        schedule.At(99).Should().BeInRange(0.2, 0.201);
        new LearningRateSchedule(2, 1, 0.03, 0).At(0).Should().Be(2);
        new LearningRateSchedule(2, 10, 0, 0).At(0).Should().Be(2);
    }

    private static List<int[]> Definition(int[] lengths, int[] pictures, int batchSize, int rowsPerImage, long seed, int epoch)
    {
        var x = unchecked((ulong)seed * 0x9E3779B97F4A7C15 + (ulong)epoch + 1);
        x = unchecked((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9);
        x = unchecked((x ^ (x >> 27)) * 0x94D049BB133111EB);
        var random = new Random(unchecked((int)(x ^ (x >> 31))));
        var order = Enumerable.Range(0, lengths.Length).ToArray();
        random.Shuffle(order);
        int[][] groups = rowsPerImage == 1 ? [.. order.Select(r => new[] { r })] : [.. order.GroupBy(r => pictures[r]).SelectMany(g => g.Chunk(rowsPerImage))];
        random.Shuffle(groups);
        var (steps, window) = (new List<int[]>(), new List<int[]>());
        foreach (var group in groups)
        {
            window.Add(group);
            if (window.Sum(g => g.Length) >= 32 * batchSize) Cut(window.Sum(g => g.Length) % batchSize);
        }
        Cut(0);
        return steps;

        void Cut(int rest)
        {
            var sorted = window.OrderByDescending(g => g.Max(r => lengths[r])).SelectMany(g => g).ToArray();
            var cut = sorted[..^rest].Chunk(batchSize).Select(Ordered).ToArray();
            random.Shuffle(cut.AsSpan(0, cut.Length > 0 && cut[^1].Length < batchSize ? cut.Length - 1 : cut.Length));
            steps.AddRange(cut);
            window = rest == 0 ? [] : [sorted[^rest..]];
        }

        int[] Ordered(int[] step) => rowsPerImage == 1
            ? [.. step.OrderByDescending(r => lengths[r]).ThenBy(r => pictures[r]).ThenBy(r => r)]
            : [.. step.GroupBy(r => pictures[r]).OrderByDescending(g => g.Max(r => lengths[r])).ThenBy(g => g.Key)
                .SelectMany(g => g.OrderByDescending(r => lengths[r]).ThenBy(r => r))];
    }

    private static BatchPlan Plan(int rows, int batch, int perImage, long seed = 1)
        => new([.. Enumerable.Range(0, rows).Select(i => 10 + i * 31 % 17)], [.. Enumerable.Range(0, rows).Select(i => i / 5)], batch, perImage, seed);
}
