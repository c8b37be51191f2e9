// Builds an ML.NET pipeline that captions pictures, answers a question about each and locates a phrase in it; runs it; and writes
// each picture with its box, and results.json.
//
//   dotnet run --project samples/Describe
//   dotnet run --project samples/Describe -- PICTURES... [--model FOLDER-OR-NAME] [--question TEXT] [--phrase TEXT] [--out FOLDER]
//   dotnet run --project samples/Describe -- --train

using System.CommandLine;
using System.Diagnostics;
using System.Globalization;
using MambaVL;
using MambaVL.Checkpoints;
using MambaVL.Samples;
using MambaVL.Transforms;
using Microsoft.ML;
using TorchSharp;

CultureInfo.CurrentCulture = CultureInfo.InvariantCulture;
var shipped = Path.Combine(AppContext.BaseDirectory, "models", "scenes-mamba");
var pictures = new Argument<string[]>("pictures") { Description = "Image files, or folders of them. Default: eight scenes of this repository.", DefaultValueFactory = _ => [Path.Combine(AppContext.BaseDirectory, "pictures")] };
var model = new Option<string?>("--model") { Description = "A folder with a model, or owner/name on the hub. Default: models/scenes-mamba." };
var tokenizer = new Option<string?>("--tokenizer") { Description = "A tokenizer.json, where the model's folder has none." };
var question = new Option<string?>("--question") { Description = $"What to ask about each picture. Default: what rows.jsonl beside the picture asks, else '{Asked.DefaultQuestion}'." };
var phrase = new Option<string?>("--phrase") { Description = $"What to look for. Default: as above, else '{Asked.DefaultPhrase}'." };
var output = new Option<string>("--out") { Description = "Where the pictures with boxes and results.json go.", DefaultValueFactory = _ => "described" };
var device = new Option<string>("--device") { Description = "cpu, cuda or cuda:N.", DefaultValueFactory = _ => "cpu" };
var bfloat16 = new Option<bool>("--bfloat16") { Description = "Compute in bfloat16 rather than in the device's usual precision." };
var maxTokens = new Option<int>("--max-tokens") { Description = "The most tokens of one answer.", DefaultValueFactory = _ => 40 };
var train = new Option<bool>("--train") { Description = "Instead, teach the model a question that it was never asked, for a minute." };

var command = new RootCommand("Captions pictures, answers a question about them and locates a phrase in them.")
{
    pictures, model, tokenizer, question, phrase, output, device, bfloat16, maxTokens, train,
};
command.SetAction((arguments, cancellation) => Task.FromResult(Run(
    arguments.GetValue(model) ?? (Directory.Exists(shipped) ? shipped : null),
    new()
    {
        Device = arguments.GetValue(device)!,
        DType = arguments.GetValue(bfloat16) ? torch.ScalarType.BFloat16 : arguments.GetValue(train) ? torch.ScalarType.Float32 : null,
        TokenizerPath = arguments.GetValue(tokenizer),
        Hub = new() { Progress = new DownloadLine() },
    },
    arguments.GetValue(train)
        ? loaded => FineTuning.Run(loaded, TimeSpan.FromMinutes(1), cancellation)
        : loaded => Describe(loaded, Asked.Read(arguments.GetValue(pictures)!, arguments.GetValue(question), arguments.GetValue(phrase)),
            arguments.GetValue(maxTokens), arguments.GetValue(output)!, cancellation),
    cancellation)));
return await command.Parse(args).InvokeAsync();

static int Run(string? name, LoadOptions options, Func<VisionLanguageModel, int> work, CancellationToken cancellation)
{
    try
    {
        var watch = Stopwatch.StartNew();
        using var model = name is null ? DemoModel.Create() : VisionLanguageModel.FromPretrained(name, options, cancellation);
        Console.WriteLine($"{name ?? "a made-up model"}: {model.Config.Vision.GetType().Name} and {model.Config.Language.GetType().Name}, " +
            $"{model.NamedParameters().Sum(p => p.Parameter.numel()):N0} weights, loaded in {watch.ElapsedMilliseconds} ms");
        if (name is null) Console.WriteLine("There is no models/scenes-mamba, so the weights are random and the answers are noise. Name a trained model with --model.");
        return work(model);
    }
    catch (OperationCanceledException)
    {
        return 130; // Ctrl+C
    }
    catch (Exception e) when (e is IOException or UnauthorizedAccessException or InvalidDataException or ArgumentException or NativeRuntimeException)
    {
        Console.Error.WriteLine(e.Message);
        return 1;
    }
}

static int Describe(VisionLanguageModel model, IReadOnlyList<Asked> asked, int maxTokens, string folder, CancellationToken cancellation)
{
    var ml = new MLContext(seed: 1);
    // A picture that cannot be read leaves its row empty, and the others come out.
    var read = new ImageStepOptions { BatchSize = 1, OnError = RowErrors.EmptyResult };
    var write = new TextStepOptions { BatchSize = 1, OnError = RowErrors.EmptyResult, Generation = new() { MaxNewTokens = maxTokens } };
    var pipeline = ml.Transforms.EncodeImages("Patches", "Path", model, read)         // once, for the three that follow
        .Append(ml.Transforms.CaptionImages("Caption", "Patches", model, write))
        .Append(ml.Transforms.AnswerQuestions("Answer", "Patches", "Question", model, write))
        .Append(ml.Transforms.GroundPhrases("Box", "Patches", "Phrase", model, write));

    var data = ml.Data.LoadFromEnumerable(asked);
    using var transformer = pipeline.Fit(data);
    var results = new Results(folder, asked);
    using (StepCancellation.Use(cancellation))
    {
        var watch = Stopwatch.StartNew();
        foreach (var row in ml.Data.CreateEnumerable<Described>(transformer.Transform(data), reuseRowObject: false))
        {
            results.Add(row, watch.ElapsedMilliseconds);
            watch.Restart();
        }
    }
    results.Save();
    return results.Failures == 0 ? 0 : 1;
}

/// <summary>One line that tells how far a download is.</summary>
internal sealed class DownloadLine : IProgress<DownloadProgress>
{
    public void Report(DownloadProgress p)
    {
        if (!Console.IsErrorRedirected)
            Console.Error.Write($"\r{p.File} ({p.FileNumber} of {p.FileCount}): {p.Bytes >> 20:N0} of {p.TotalBytes >> 20:N0} MB   {(p.Bytes == p.TotalBytes ? "\n" : "")}");
    }
}
