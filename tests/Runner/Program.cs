using System.Reflection;
using MambaVL.Tests.Running;

// Runs the tests in this process, where there is no .NET SDK: xunit's own engine, without `dotnet test` around it.
const string usage = """
    usage: runner [--assembly NAME]... [--class TEXT]... [--not TEXT]... [--trait NAME=VALUE]... [--list] [--sequential] [--verbose]
           runner probe ARGUMENTS     the test assembly as a program (tests/Backbones.Tests/Runtime/Probe.cs)
      --assembly   MambaVL.Backbones.Tests (the default), MambaVL.Trainers.Tests
      --class      tests whose full name (namespace, class and method) holds the text; several: any of them
      --not        leaves out the tests whose full name holds the text
      --trait      tests with this trait, such as Category=Parity
      --list       names the tests and runs none
      --sequential one test at a time: which one a crash was in is the last line printed
      --verbose    prints what passed tests wrote, too
    """;

if (args is ["probe", ..])
    return await Entry(Assembly.Load("MambaVL.Backbones.Tests"), args[1..]);

Selection selection;
try
{
    selection = Selection.Parse(args);
}
catch (FormatException e)
{
    Console.Error.WriteLine(e.Message);
    Console.Error.WriteLine(usage);
    return 2;
}

var report = new Report(selection.Verbose, selection.Sequential);
foreach (var name in selection.Assemblies)
    TestAssembly.Run(name, selection, report);
return selection.ListOnly ? 0 : report.Close();

static async Task<int> Entry(Assembly program, string[] arguments)
{
    var parameters = program.EntryPoint!.GetParameters().Length == 0 ? null : new object[] { arguments };
    return program.EntryPoint.Invoke(null, parameters) switch { int code => code, Task<int> task => await task, _ => 0 };
}
