using System.Globalization;
using Xunit.Abstractions;
using Xunit.Sdk;

namespace MambaVL.Tests.Running;

/// <summary>Prints what fails as it happens, and at the end the seconds of each class and the counts.</summary>
internal sealed class Report(bool verbose, bool nameEach) : IMessageSink
{
    private readonly Dictionary<string, (int Tests, decimal Seconds)> _classes = [];
    private readonly Dictionary<string, int> _skips = [];
    private readonly List<string> _failed = [];
    private int _passed, _skipped;

    /// <summary>Set when the tests of an assembly have run.</summary>
    public ManualResetEvent Finished { get; } = new(false);

    public void Start() => Finished.Reset();

    public bool OnMessage(IMessageSinkMessage message)
    {
        lock (_classes)
        {
            switch (message)
            {
                case ITestStarting starting when nameEach:
                    Console.WriteLine($"     {starting.Test.DisplayName}");
                    break;
                case ITestPassed passed:
                    _passed++;
                    Count(passed);
                    if (verbose && passed.Output is { Length: > 0 } output) Console.WriteLine($"ok   {passed.Test.DisplayName}\n{Indent(output)}");
                    break;
                case ITestSkipped skipped:
                    _skipped++;
                    Count(skipped);
                    _skips[skipped.Reason] = _skips.GetValueOrDefault(skipped.Reason) + 1;
                    break;
                case ITestFailed failed:
                    Count(failed);
                    Fail(failed.Test.DisplayName, failed, failed.Output);
                    break;
                // What fails outside a test: a constructor of a fixture, a Dispose.
                case ITestClassCleanupFailure failure:
                    Fail($"{failure.TestClass.Class.Name}: clean-up", failure);
                    break;
                case ITestCollectionCleanupFailure failure:
                    Fail($"{failure.TestCollection.DisplayName}: clean-up", failure);
                    break;
                case ITestAssemblyCleanupFailure failure:
                    Fail($"{failure.TestAssembly.Assembly.Name}: clean-up", failure);
                    break;
                case ITestCleanupFailure failure:
                    Fail($"{failure.Test.DisplayName}: clean-up", failure);
                    break;
                case IErrorMessage error:
                    Fail("xunit", error);
                    break;
                case ITestAssemblyFinished:
                    Finished.Set();
                    break;
            }
        }
        return true;
    }

    /// <summary>The closing lines; the exit code: 0, 1 where a test failed, 2 where none ran.</summary>
    public int Close()
    {
        foreach (var (name, (tests, seconds)) in _classes.OrderByDescending(c => c.Value.Seconds))
            Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{seconds,8:f2} s {tests,5}  {name}"));
        foreach (var (reason, count) in _skips.OrderByDescending(s => s.Value))
            Console.WriteLine($"skipped {count}: {reason}");
        foreach (var name in _failed) Console.WriteLine($"FAILED {name}");
        Console.WriteLine($"{_passed} passed, {_failed.Count} failed, {_skipped} skipped");
        return _failed.Count > 0 ? 1 : _passed + _skipped == 0 ? 2 : 0;
    }

    private void Count(ITestResultMessage result)
    {
        var name = result.TestClass.Class.Name;
        var (tests, seconds) = _classes.GetValueOrDefault(name);
        _classes[name] = (tests + 1, seconds + result.ExecutionTime);
    }

    private void Fail(string name, IFailureInformation failure, string? output = null)
    {
        _failed.Add(name);
        // The outermost exception is the first of the lists.
        Console.WriteLine($"FAIL {name}");
        for (var i = 0; i < failure.Messages.Length; i++)
            Console.WriteLine(Indent($"{failure.ExceptionTypes[i]}: {failure.Messages[i]}\n{failure.StackTraces[i]}"));
        if (!string.IsNullOrEmpty(output)) Console.WriteLine(Indent(output));
    }

    private static string Indent(string text) => "     " + text.TrimEnd().ReplaceLineEndings("\n     ");
}
