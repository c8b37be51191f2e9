namespace MambaVL.Training;

/// <summary>How training stands after a step: what the logs, the plot and the progress line are made of.</summary>
/// <param name="Step">The optimiser's step, counted from 1.</param>
/// <param name="Loss">The loss of the step's rows, in nats; NaN or infinite where it went wrong.</param>
/// <param name="LearningRate">The learning rate that the step was made with.</param>
/// <param name="Metric">The validation metric, where one was measured after this step.</param>
public readonly record struct TrainingPoint(long Step, double Loss, double LearningRate, double? Metric = null);
