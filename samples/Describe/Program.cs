// Prints a caption, an answer and a box for each picture.
//
//   dotnet run --project samples/Describe -- PICTURES... [--model FOLDER-OR-NAME] [--question TEXT] [--phrase TEXT]

using System.CommandLine;
using System.Diagnostics;
using System.Globalization;
using MambaVL;
using MambaVL.Checkpoints;
using MambaVL.Generation;
using MambaVL.Images;
using MambaVL.Samples;
using TorchSharp;

var pictures = new Argument<string[]>("pictures") { Description = "Image files, or folders of them.", Arity = ArgumentArity.OneOrMore };
var model = new Option<string?>("--model") { Description = "A folder with a model, or owner/name on the hub. Without it, a tiny model with random weights is made up." };
var tokenizer = new Option<string?>("--tokenizer") { Description = "A tokenizer.json, where the model's folder has none." };
var question = new Option<string>("--question") { Description = "What to ask about each picture.", DefaultValueFactory = _ => "What is in the picture?" };
var phrase = new Option<string>("--phrase") { Description = "What to look for in each picture.", DefaultValueFactory = _ => "the animal" };
var device = new Option<string>("--device") { Description = "cpu, cuda or cuda:N.", DefaultValueFactory = _ => "cpu" };
var bfloat16 = new Option<bool>("--bfloat16") { Description = "Compute in bfloat16 rather than in the device's usual precision." };
var maxTokens = new Option<int>("--max-tokens") { Description = "The most tokens of one answer.", DefaultValueFactory = _ => 40 };

var command = new RootCommand("Captions pictures, answers a question about them and locates a phrase in them.")
{
    pictures, model, tokenizer, question, phrase, device, bfloat16, maxTokens,
};
command.SetAction((arguments, cancellation) => Task.FromResult(Run(
    Expand(arguments.GetValue(pictures)!), arguments.GetValue(model),
    new()
    {
        Device = arguments.GetValue(device)!,
        DType = arguments.GetValue(bfloat16) ? torch.ScalarType.BFloat16 : null,
        TokenizerPath = arguments.GetValue(tokenizer),
        Hub = new() { Progress = new DownloadLine() },
    },
    arguments.GetValue(question)!, arguments.GetValue(phrase)!, new() { MaxNewTokens = arguments.GetValue(maxTokens) }, cancellation)));
return await command.Parse(args).InvokeAsync();

static int Run(IReadOnlyList<string> pictures, string? name, LoadOptions options, string question, string phrase,
    GenerationOptions generation, CancellationToken cancellation)
{
    try
    {
        var watch = Stopwatch.StartNew();
        using var model = name is null ? DemoModel.Create() : VisionLanguageModel.FromPretrained(name, options, cancellation);
        Console.WriteLine($"{name ?? "a made-up model"}: {model.Config.Vision.GetType().Name} and {model.Config.Language.GetType().Name}, " +
            $"{model.NamedParameters().Sum(p => p.Parameter.numel()):N0} weights, loaded in {watch.ElapsedMilliseconds} ms");
        if (name is null) Console.WriteLine("Its weights are random, so its answers are noise. Name a trained model with --model.");

        var failures = 0;
        foreach (var path in pictures)
        {
            Console.WriteLine($"\n{path}");
            try
            {
                watch.Restart();
                using var image = model.EncodeImage(path); // once, for all three
                Console.WriteLine($"  {image.Width} x {image.Height} pixels, encoded in {watch.ElapsedMilliseconds} ms");
                Print("caption", watch, () => model.Caption(image, generation, cancellation));
                Print($"'{question}'", watch, () => model.Answer(image, question, generation, cancellation));
                Print($"'{phrase}'", watch, () => Show(model.Locate(image, phrase, generation, cancellation)));
            }
            catch (Exception e) when (e is ImageException or IOException)
            {
                Console.Error.WriteLine($"  {e.Message}"); // the other pictures are not lost
                failures++;
            }
        }
        return failures == 0 ? 0 : 1;
    }
    catch (OperationCanceledException)
    {
        return 130; // Ctrl+C
    }
    catch (Exception e) when (e is IOException or InvalidDataException or ArgumentException or NativeRuntimeException)
    {
        Console.Error.WriteLine(e.Message);
        return 1;
    }
}

static void Print(string label, Stopwatch watch, Func<string> answer)
{
    watch.Restart();
    var text = answer();
    Console.WriteLine($"  {label}: {text} ({watch.ElapsedMilliseconds} ms)");
}

static string Show(GroundingAnswer answer) => answer.Box is { } box
    ? string.Create(CultureInfo.InvariantCulture, $"x {box.X0:0} to {box.X1:0}, y {box.Y0:0} to {box.Y1:0}")
    : $"no box in '{answer.Text.ReplaceLineEndings(" ").Trim()}'";

static IReadOnlyList<string> Expand(string[] paths) => [.. paths.SelectMany(p => Directory.Exists(p) ? Pictures(p) : [p])];

static IEnumerable<string> Pictures(string folder) => Directory.EnumerateFiles(folder)
    .Where(f => Path.GetExtension(f).ToLowerInvariant() is ".png" or ".jpg" or ".jpeg" or ".webp" or ".gif" or ".bmp")
    .Order(StringComparer.Ordinal);

/// <summary>One line that tells how far a download is.</summary>
internal sealed class DownloadLine : IProgress<DownloadProgress>
{
    public void Report(DownloadProgress p)
    {
        if (!Console.IsErrorRedirected)
            Console.Error.Write($"\r{p.File} ({p.FileNumber} of {p.FileCount}): {p.Bytes >> 20:N0} of {p.TotalBytes >> 20:N0} MB   {(p.Bytes == p.TotalBytes ? "\n" : "")}");
    }
}
