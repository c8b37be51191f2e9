using System.CommandLine;
using MambaVL.Training;

namespace MambaVL.Samples.Scenes;

/// <summary><c>train</c>: a small model from random weights.</summary>
internal static class TrainCommand
{
    public static Command Create()
    {
        SceneTrainingOptions training = new() { Data = "", Output = "", Backbone = "" };
        var sizes = training.Sizes;
        var data = new Option<string>("--data") { Description = "A folder that generate wrote, with the splits train and validation.", Required = true };
        var output = new Option<string>("--out") { Description = "The model's folder.", Required = true };
        var backbone = new Option<string>("--backbone") { Description = "mamba or pythia.", DefaultValueFactory = _ => "mamba" };
        var from = new Option<string?>("--from") { Description = "A model to go on from, in the last lesson; its sizes and tokeniser stay. Default: random weights." };
        var encoder = new Option<string?>("--encoder") { Description = "A model, of either backbone, whose vision encoder and connector this one starts with. Default: random weights." };
        var device = new Option<string>("--device") { Description = "cpu, cuda or cuda:N.", DefaultValueFactory = _ => training.Device };
        var seed = Number<long>("--seed", "Of the first weights and of the order of the rows.", training.Seed);
        var scenes = new Option<int?>("--scenes") { Description = "Pictures to learn from. Default: all." };
        var namingSteps = Number("--naming-steps", "Steps on the names and numbers of scenes of one kind (the split first).", training.NamingSteps);
        var firstSteps = Number("--first-steps", "Steps on everything about such scenes, after those.", training.FirstSteps);
        var epochs = Number("--epochs", "Passes over the data.", training.Epochs);
        var steps = new Option<int?>("--steps") { Description = "Steps in all, whatever --epochs says." };
        var minutes = new Option<double?>("--minutes") { Description = "Ends training after so many minutes, wherever its schedule is." };
        var rate = Number("--lr", "The highest learning rate.", training.LearningRate);
        var warmup = Number("--warmup", "The share of the steps in which it rises.", training.WarmupShare);
        var decay = Number("--weight-decay", "AdamW's.", training.WeightDecay);
        var batch = Number("--batch", "Rows of a step.", training.Batch);
        var microBatch = new Option<int?>("--micro-batch") { Description = "Rows at once. Default: --batch." };
        var rowsPerImage = Number("--rows-per-image", "Rows about one picture that stand together.", training.RowsPerImage);
        var precision = Number("--precision", "Auto, Float32 or BFloat16.", training.Precision);
        var checkpoints = new Option<string?>("--checkpoints") { Description = "A folder of checkpoints; started again, the run goes on from there." };
        var imageSize = Number("--image-size", "Pixels on a side that the encoder sees.", sizes.ImageSize);
        var patch = Number("--patch", "Pixels on a side of a patch.", sizes.Patch);
        var width = Number("--width", "The encoder's width.", sizes.Width);
        var depth = Number("--depth", "The encoder's blocks.", sizes.Depth);
        var heads = new Option<int?>("--heads") { Description = "The encoder's heads. Default: one for 32 channels." };
        var mlp = new Option<int?>("--mlp") { Description = "The inner width of the encoder's MLP. Default: 8/3 of --width." };
        var hidden = Number("--hidden", "The language model's width.", sizes.Hidden);
        var layers = new Option<int?>("--layers") { Description = "The language model's layers. Default: 7 of mamba, 4 of pythia." };
        var vocabulary = Number("--vocabulary", "Tokens of the tokeniser, at most.", sizes.Vocabulary);

        var command = new Command("train", "Trains a small model from random weights, and writes it in float16.")
        {
            data, output, backbone, from, encoder, device, seed, scenes, namingSteps, firstSteps, epochs, steps, minutes, rate, warmup, decay, batch, microBatch, rowsPerImage, precision,
            checkpoints, imageSize, patch, width, depth, heads, mlp, hidden, layers, vocabulary,
        };
        command.SetAction((arguments, cancellation) => Task.FromResult(Errors.Report(() => SceneTraining.Run(new()
        {
            Data = arguments.GetValue(data)!,
            Output = arguments.GetValue(output)!,
            From = arguments.GetValue(from),
            Encoder = arguments.GetValue(encoder),
            Backbone = arguments.GetValue(backbone)!,
            Device = arguments.GetValue(device)!,
            Seed = arguments.GetValue(seed),
            Scenes = arguments.GetValue(scenes),
            NamingSteps = arguments.GetValue(namingSteps),
            FirstSteps = arguments.GetValue(firstSteps),
            Epochs = arguments.GetValue(epochs),
            Steps = arguments.GetValue(steps),
            Minutes = arguments.GetValue(minutes),
            LearningRate = arguments.GetValue(rate),
            WarmupShare = arguments.GetValue(warmup),
            WeightDecay = arguments.GetValue(decay),
            Batch = arguments.GetValue(batch),
            MicroBatch = arguments.GetValue(microBatch),
            RowsPerImage = arguments.GetValue(rowsPerImage),
            Precision = arguments.GetValue(precision),
            Checkpoints = arguments.GetValue(checkpoints),
            Sizes = new()
            {
                ImageSize = arguments.GetValue(imageSize),
                Patch = arguments.GetValue(patch),
                Width = arguments.GetValue(width),
                Depth = arguments.GetValue(depth),
                Heads = arguments.GetValue(heads),
                Mlp = arguments.GetValue(mlp),
                Hidden = arguments.GetValue(hidden),
                Layers = arguments.GetValue(layers),
                Vocabulary = arguments.GetValue(vocabulary),
            },
        }, Console.WriteLine, cancellation))));
        return command;

        static Option<T> Number<T>(string name, string description, T value)
            => new(name) { Description = description, DefaultValueFactory = _ => value };
    }
}
