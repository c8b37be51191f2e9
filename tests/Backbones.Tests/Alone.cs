namespace MambaVL.Tests;

/// <summary>Tests that set process-wide things or measure them: they run alone, after the others.</summary>
[CollectionDefinition(Name, DisableParallelization = true)]
public class Alone
{
    public const string Name = "alone";
}
