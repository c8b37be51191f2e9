using MambaVL.Bench;

// Each benchmark measures both of its sides in one run, and prints medians, their spread and the ratio.
Dictionary<string, (string what, Func<Options, IEnumerable<object>> run)> benchmarks = new()
{
    ["scan"] = ("CPU kernel of the selective scan against the loop of tensor operations", ScanBenchmark.Run),
    ["decode"] = ("decoding on the CPU against the speed of reading its weights, and against tensor operations", DecodeBenchmark.Run),
    ["prefill"] = ("reading a prompt on the CPU against the model's matrix products alone", PrefillBenchmark.Run),
    ["gpu"] = ("every line of the table for one NVIDIA GPU, beside PyTorch where it is", GpuBenchmark.Run),
    ["gpu-group"] = ("our side of one group of them: --name limits, scan, language or vision", GpuBenchmark.RunGroup),
    ["agree"] = ("logits of whole models on one GPU against PyTorch's", GpuAgreement.Run),
    ["mlnet"] = ("a pipeline step against calling the model on the same batches", MlNetBenchmark.Run),
};

MambaVL.Runtime.EnsureLoaded();
var options = Options.Parse(args, out var name, out var problem);
if (problem is null && (name is null || !benchmarks.ContainsKey(name)))
    problem = name is null ? "Which benchmark?" : $"There is no benchmark '{name}'.";
if (problem is not null)
{
    Console.Error.WriteLine(problem);
    Console.Error.WriteLine("usage: dotnet run -c Release --project bench -- BENCHMARK [--threads N] [--repeats N] [--clock wall|cpu] [--json FILE] [--NAME VALUE ...]");
    foreach (var (key, (what, _)) in benchmarks) Console.Error.WriteLine($"  {key,-10} {what}");
    return 2;
}
var results = new List<object>();
try
{
    foreach (var result in benchmarks[name!].run(options))
    {
        Console.WriteLine(result);
        results.Add(result);
        options.Save(name!, results); // each time: one that fails later takes nothing away
    }
}
catch (MambaVL.NativeRuntimeException e)
{
    Console.Error.WriteLine(e.Message);
    return 1;
}
return Environment.ExitCode;
