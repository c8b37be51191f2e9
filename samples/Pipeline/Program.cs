// Builds an ML.NET pipeline that captions pictures, answers a question about them and locates a phrase; runs it; saves it as
// model.zip; and loads that again as any other application would, with nothing but ML.NET's own calls.
//
//   dotnet run --project samples/Pipeline -- PICTURES... [--model FOLDER-OR-NAME] [--save model.zip]

using System.CommandLine;
using System.Globalization;
using MambaVL;
using MambaVL.Samples;
using MambaVL.Transforms;
using Microsoft.ML;

var pictures = new Argument<string[]>("pictures") { Description = "Image files.", Arity = ArgumentArity.OneOrMore };
var model = new Option<string?>("--model") { Description = "A folder with a model, or owner/name on the hub. Without it, a tiny model with random weights is made up." };
var question = new Option<string>("--question") { Description = "What to ask about each picture.", DefaultValueFactory = _ => "What is in the picture?" };
var phrase = new Option<string>("--phrase") { Description = "What to look for in each picture.", DefaultValueFactory = _ => "the animal" };
var save = new Option<string>("--save") { Description = "Where the pipeline is saved.", DefaultValueFactory = _ => "model.zip" };
var device = new Option<string>("--device") { Description = "cpu, cuda or cuda:N.", DefaultValueFactory = _ => "cpu" };
var maxTokens = new Option<int>("--max-tokens") { Description = "The most tokens of one answer.", DefaultValueFactory = _ => 40 };

var command = new RootCommand("Builds, runs, saves and loads an ML.NET pipeline that describes pictures.") { pictures, model, question, phrase, save, device, maxTokens };
command.SetAction((arguments, cancellation) => Task.FromResult(Run(
    [.. arguments.GetValue(pictures)!.Select(p => new Example { Image = p, Question = arguments.GetValue(question)!, Phrase = arguments.GetValue(phrase)! })],
    arguments.GetValue(model), new() { Device = arguments.GetValue(device)! },
    new() { Generation = new() { MaxNewTokens = arguments.GetValue(maxTokens) } }, arguments.GetValue(save)!, cancellation)));
return await command.Parse(args).InvokeAsync();

static int Run(IReadOnlyList<Example> examples, string? name, LoadOptions load, TextStepOptions options, string zip, CancellationToken cancellation)
{
    try
    {
        using var model = name is null ? DemoModel.Create() : VisionLanguageModel.FromPretrained(name, load, cancellation);
        if (name is null) Console.WriteLine("The model is made up and its weights are random, so its answers are noise. Name a trained one with --model.");

        using (StepCancellation.Use(cancellation)) // Ctrl+C stops within one token
        {
            Save(model, examples, options, zip);
            Load(examples, zip);
        }
        return 0;
    }
    catch (OperationCanceledException)
    {
        return 130;
    }
    catch (Exception e) when (e is RowException or IOException or InvalidDataException or ArgumentException or NativeRuntimeException)
    {
        Console.Error.WriteLine(e.Message); // of a picture that cannot be read: its row, its path and why
        return 1;
    }
}

static void Save(VisionLanguageModel model, IReadOnlyList<Example> examples, TextStepOptions options, string zip)
{
    var ml = new MLContext(seed: 1);
    var data = ml.Data.LoadFromEnumerable(examples);
    var pipeline = ml.Transforms.EncodeImages("Patches", "Image", model) // once, for the three that follow
        .Append(ml.Transforms.CaptionImages("Caption", "Patches", model, options))
        .Append(ml.Transforms.AnswerQuestions("Answer", "Patches", "Question", model, options))
        .Append(ml.Transforms.GroundPhrases("Box", "Patches", "Phrase", model, options));

    using var transformer = pipeline.Fit(data); // checks the columns; nothing is learnt
    foreach (var row in ml.Data.CreateEnumerable<Described>(transformer.Transform(data), reuseRowObject: false))
    {
        Console.WriteLine($"\n{row.Image}");
        Console.WriteLine($"  caption: {Line(row.Caption)}");
        Console.WriteLine($"  answer:  {Line(row.Answer)}");
        Console.WriteLine($"  box:     {Show(row)}");
    }

    ml.Model.Save(transformer, data.Schema, zip);
    Console.WriteLine($"\nsaved to {zip}: {new FileInfo(zip).Length:N0} bytes");
}

// What a consuming application does. It needs no registration, and not the model's folder.
static void Load(IReadOnlyList<Example> examples, string zip)
{
    var ml = new MLContext();
    var transformer = ml.Model.Load(zip, out _);
    using var engine = ml.Model.CreatePredictionEngine<Example, Captioned>(transformer); // owns the transformer
    Console.WriteLine($"loaded again, it says of {examples[0].Image}: {Line(engine.Predict(examples[0]).Caption)}");
}

static string Line(string text) => text.ReplaceLineEndings(" ");

static string Show(Described row) => row.Box.ToBoundingBox() is { } box
    ? string.Create(CultureInfo.InvariantCulture, $"x {box.X0:0} to {box.X1:0}, y {box.Y0:0} to {box.Y1:0}")
    : $"none in '{Line(row.BoxText)}'";
