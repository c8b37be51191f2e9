using Xunit.Abstractions;

namespace MambaVL.Tests.Running;

/// <summary>Which tests run, from the command line.</summary>
internal sealed record Selection
{
    public IReadOnlyList<string> Assemblies { get; init; } = ["MambaVL.Backbones.Tests"];

    public IReadOnlyList<string> Classes { get; init; } = [];

    public IReadOnlyList<string> Not { get; init; } = [];

    public IReadOnlyList<(string Name, string Value)> Traits { get; init; } = [];

    public bool ListOnly { get; init; }

    public bool Sequential { get; init; }

    public bool Verbose { get; init; }

    /// <exception cref="FormatException">An argument is unknown, or its value is missing.</exception>
    public static Selection Parse(IReadOnlyList<string> arguments)
    {
        List<string> assemblies = [], classes = [], not = [];
        List<(string, string)> traits = [];
        bool list = false, sequential = false, verbose = false;
        for (var i = 0; i < arguments.Count; i++)
        {
            switch (arguments[i])
            {
                case "--assembly": assemblies.Add(Value()); break;
                case "--class": classes.Add(Value()); break;
                case "--not": not.Add(Value()); break;
                case "--trait":
                    traits.Add(Value().Split('=') is [var name, var value] ? (name, value) : throw new FormatException($"--trait is '{arguments[i]}'; expected NAME=VALUE."));
                    break;
                case "--list": list = true; break;
                case "--sequential": sequential = true; break;
                case "--verbose": verbose = true; break;
                default: throw new FormatException($"There is no argument '{arguments[i]}'.");
            }

            string Value() => ++i < arguments.Count ? arguments[i] : throw new FormatException($"{arguments[i - 1]} needs a value.");
        }
        return new()
        {
            Assemblies = assemblies.Count > 0 ? assemblies : ["MambaVL.Backbones.Tests"],
            Classes = classes, Not = not, Traits = traits, ListOnly = list, Sequential = sequential, Verbose = verbose,
        };
    }

    public bool Takes(ITestCase test)
    {
        var name = $"{test.TestMethod.TestClass.Class.Name}.{test.TestMethod.Method.Name}";
        return (Classes.Count == 0 || Classes.Any(c => name.Contains(c, StringComparison.OrdinalIgnoreCase)))
            && !Not.Any(c => name.Contains(c, StringComparison.OrdinalIgnoreCase))
            && Traits.All(t => test.Traits.TryGetValue(t.Name, out var values) && values.Contains(t.Value));
    }
}
