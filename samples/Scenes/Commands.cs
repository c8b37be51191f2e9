namespace MambaVL.Samples.Scenes;

/// <summary>What the commands share.</summary>
internal static class Commands
{
    public static int InRange(string option, int value, int least, int most)
        => value >= least && value <= most ? value : throw new ArgumentException($"{option} is {value}; expected {least} to {most}.");
}

/// <summary>How far a command is, on one line of the error output; nothing where that is no console.</summary>
internal sealed class ProgressLine(string what, int? total = null) : IProgress<int>
{
    public void Report(int value)
    {
        if (!Console.IsErrorRedirected) Console.Error.Write($"\r{value}{(total is null ? "" : $" of {total}")} {what}{(value == total ? "\n" : "")}");
    }
}

internal static class Errors
{
    /// <summary>Runs a command; what its user did wrong is a line on the error output and the exit code 1.</summary>
    public static int Report(Action command)
    {
        try
        {
            command();
            return 0;
        }
        catch (OperationCanceledException)
        {
            return 130; // Ctrl+C
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or InvalidDataException or ArgumentException
            or Transforms.RowException or Training.TrainingException or NativeRuntimeException)
        {
            Console.Error.WriteLine(e.Message);
            return 1;
        }
    }
}
