// Scenes: pictures composed of emoji, with captions, questions, phrases and boxes that are right by construction.
//
//   dotnet run --project samples/Scenes -- generate --seed 1 --count 20000 --out data/scenes
//   dotnet run --project samples/Scenes -- train    --data data/scenes --backbone mamba --out models/scenes-mamba
//   dotnet run --project samples/Scenes -- evaluate --data data/scenes --model models/scenes-mamba

using System.CommandLine;
using System.Globalization;
using MambaVL;
using MambaVL.Samples.Scenes;

CultureInfo.CurrentCulture = CultureInfo.InvariantCulture;
return await new RootCommand("Makes data sets of scenes, trains small models on them and evaluates models.") { GenerateCommand.Create(), TrainCommand.Create(), EvaluateCommand.Create() }
    .Parse(args).InvokeAsync();
