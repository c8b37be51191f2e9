using System.Reflection;
using Xunit.Abstractions;
using Xunit.Sdk;

namespace MambaVL.Tests.Running;

/// <summary>One assembly of tests: found and run by xunit's framework, as `dotnet test` has it.</summary>
internal static class TestAssembly
{
    public static void Run(string name, Selection selection, Report report)
    {
        var assembly = Assembly.Load(name);
        using var framework = new XunitTestFramework(new Ignored());
        using var found = new Found();
        using var discoverer = framework.GetDiscoverer(Reflector.Wrap(assembly));
        discoverer.Find(includeSourceInformation: false, found, new FrameworkOptions());
        found.Finished.WaitOne();
        var chosen = found.Tests.Where(selection.Takes).ToList();
        if (selection.ListOnly)
        {
            foreach (var test in chosen) Console.WriteLine(test.DisplayName);
            return;
        }

        var options = new FrameworkOptions();
        options.SetValue("xunit.execution.DisableParallelization", (bool?)selection.Sequential);
        using var executor = framework.GetExecutor(assembly.GetName());
        report.Start();
        executor.RunTests(chosen, report, options);
        report.Finished.WaitOne();
    }

    /// <summary>The values of a framework's options by name.</summary>
    private sealed class FrameworkOptions : ITestFrameworkDiscoveryOptions, ITestFrameworkExecutionOptions
    {
        private readonly Dictionary<string, object?> _values = [];

        public TValue GetValue<TValue>(string name) => _values.TryGetValue(name, out var value) ? (TValue)value! : default!;

        public void SetValue<TValue>(string name, TValue value) => _values[name] = value;
    }

    private sealed class Found : IMessageSink, IDisposable
    {
        public List<ITestCase> Tests { get; } = [];

        public ManualResetEvent Finished { get; } = new(false);

        public bool OnMessage(IMessageSinkMessage message)
        {
            if (message is ITestCaseDiscoveryMessage test) Tests.Add(test.TestCase);
            if (message is IDiscoveryCompleteMessage) Finished.Set();
            return true;
        }

        public void Dispose() => Finished.Dispose();
    }

    // xunit's remarks about how it names theories.
    private sealed class Ignored : IMessageSink
    {
        public bool OnMessage(IMessageSinkMessage message) => true;
    }
}
