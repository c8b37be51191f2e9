namespace MambaVL.Training;

/// <summary>The learning rate of each step: up in a straight line, then down along half a cosine.</summary>
/// <param name="highest">What the warm-up ends at.</param>
/// <param name="totalSteps">Steps in all.</param>
/// <param name="warmupShare">The share of them that warms up, rounded up.</param>
/// <param name="finalShare">What the cosine ends at, as a share of the highest.</param>
internal readonly struct LearningRateSchedule(double highest, int totalSteps, double warmupShare, double finalShare)
{
    private readonly int _warmup = (int)Math.Ceiling(totalSteps * warmupShare);

    /// <summary>The rate of a step, the first is 0. The first step of a warm-up has the rate 1 / warm-up, not 0 as in
    /// transformers: a step that changes nothing is a step lost.</summary>
    public double At(int step)
    {
        if (step < _warmup) return highest * (step + 1) / _warmup;
        var progress = totalSteps == _warmup ? 1 : (double)(step - _warmup) / (totalSteps - _warmup);
        return highest * (finalShare + (1 - finalShare) * 0.5 * (1 + Math.Cos(Math.PI * progress)));
    }
}
