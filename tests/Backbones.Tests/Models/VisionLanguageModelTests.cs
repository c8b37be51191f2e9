using MambaVL.Checkpoints;
using MambaVL.Generation;
using MambaVL.Models;
using MambaVL.Prompts;
using MambaVL.Tests.Prompts;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Tests.Models;

public class VisionLanguageModelTests
{
    public static TheoryData<string> Backbones => TinyVisionLanguage.Backbones;

    private static readonly Conversation[] Conversations =
    [
        Conversation.Caption(),
        Conversation.Ask("What is to the left of the red square"),
        Conversation.Locate("the blue circle"),
        Conversation.Choose("Which shape is it?", ["circle", "square", "triangle"]),
        Conversation.Match("a red circle"),
        Conversation.Chat([new("What is this?")]),
        Conversation.Ask("What is it"),
    ];

    private static readonly GenerationOptions Short = new() { MaxNewTokens = 12, IgnoreEndToken = true };

    [Theory, MemberData(nameof(Backbones))]
    public void ABatchOfRowsOfDifferentLengthsGivesWhatEachRowGivesAlone(string backbone)
    {
        using var model = TinyVisionLanguage.Create(backbone);
        using var first = model.Encode(1);
        using var second = model.Encode(2);
        var requests = Conversations.Select((c, i) => model.Request(i % 2 == 0 ? first : second, c, i)).ToList();
        foreach (var options in new[] { Short, Short with { Temperature = 1, TopK = 50, TopP = 0.95, Seed = 7 }, Short with { RepetitionPenalty = 1.5 } })
        {
            var alone = requests.ConvertAll(r => model.Generate(r, options));
            var together = model.Generate(requests, options);
            together.Select(a => a.Ids).Should().BeEquivalentTo(alone.Select(a => a.Ids), o => o.WithStrictOrdering());
            together.Select(a => a.Text).Should().Equal(alone.Select(a => a.Text));
            alone.Select(a => string.Join(' ', a.Ids)).Distinct().Should().HaveCountGreaterThan(3, "else the rows prove nothing");
        }
    }

    // As on a GPU.
    [Theory, MemberData(nameof(Backbones))]
    public void RowsThatAreReadAtOnceSayTheSame(string backbone)
    {
        using var model = TinyVisionLanguage.Create(backbone);
        var images = Enumerable.Range(1, 3).Select(model.Encode).ToList();
        // Three pictures, some more than once; questions of one length and of others between them.
        var requests = new[] { (0, 6), (1, 6), (2, 1), (0, 1), (2, 6), (1, 2), (0, 6), (1, 3) }.Select((r, i) => model.Request(images[r.Item1], Conversations[r.Item2], i)).ToList();
        requests.Insert(1, requests[0] with { InputIds = [.. requests[0].InputIds.SkipLast(1), requests[0].InputIds[^2]] });
        var byTurns = model.Generate(requests, Short);
        model.Language.ReadsTogether = true;
        var atOnce = model.Generate(requests, Short);
        atOnce.Select(a => string.Join(' ', a.Ids)).Should().Equal(byTurns.Select(a => string.Join(' ', a.Ids)));
        byTurns.Select(a => string.Join(' ', a.Ids)).Distinct().Should().HaveCountGreaterThan(3, "else the rows prove nothing");
        images.ForEach(i => i.Dispose());
    }

    [Theory, MemberData(nameof(Backbones))]
    public void APictureThatRowsShareIsReadOnceAndTheBitsStayTheSame(string backbone)
    {
        using var model = TinyVisionLanguage.Create(backbone);
        using var image = model.Encode(1);
        using var again = model.Encode(1);
        var shared = Conversations.Select(c => model.Request(image, c)).ToList();
        var apart = shared.Select((r, i) => i % 2 == 0 ? r : r with { Image = again }).ToList();
        model.Generate(shared, Short).Select(a => a.Text).Should().Equal(model.Generate(apart, Short).Select(a => a.Text));
    }

    [Theory, MemberData(nameof(Backbones))]
    public void InstructionFirstGivesAnotherSequenceAndStillEqualsOneRowAtATime(string backbone)
    {
        using var model = VisionLanguageModel.Create(TinyVisionLanguage.Config(backbone) with { InstructionFirst = true }, TinyTokenizer.Load(), 1);
        using var image = model.Encode(1);
        var requests = Conversations.Select(c => model.Request(image, c)).ToList();
        requests[0].InputIds[0].Should().NotBe(requests[0].InputIds[^1]);
        model.Generate(requests, Short).Select(a => a.Text).Should().Equal(requests.Select(r => model.Generate(r, Short).Text));
    }

    [Theory, MemberData(nameof(Backbones))]
    public void StreamedPiecesAreTheText(string backbone)
    {
        using var model = TinyVisionLanguage.Create(backbone);
        using var image = model.Encode(3);
        foreach (var conversation in Conversations)
        {
            var request = model.Request(image, conversation);
            var options = new GenerationOptions { MaxNewTokens = 20, Temperature = 1.5, Seed = 3 };
            string.Concat(model.Stream(request, options)).Should().Be(model.Generate(request, options).Text);
        }

        var texts = new string[Conversations.Length];
        var answers = model.Generate([.. Conversations.Select(c => model.Request(image, c))], Short, (row, text) => texts[row] += text);
        texts.Should().Equal(answers.Select(a => a.Text));
    }

    [Theory, MemberData(nameof(Backbones))]
    public void EachRowStopsAtItsOwnEndToken(string backbone)
    {
        using var model = TinyVisionLanguage.Create(backbone);
        using var image = model.Encode(1);
        var request = model.Request(image, Conversations[0]);
        var free = model.Generate(request, new() { MaxNewTokens = 4000, Temperature = 50, IgnoreEndToken = true });
        var end = free.Ids.ToList().IndexOf(model.Tokenizer.EndOfTextId);
        end.Should().BePositive("the model is random: and so hot that it says its end token sooner or later");

        var stopped = model.Generate(request, new() { MaxNewTokens = 4000, Temperature = 50 });
        stopped.Ids.Should().Equal(free.Ids.Take(end));
        stopped.FinishReason.Should().Be(FinishReason.EndToken);
        free.FinishReason.Should().Be(FinishReason.MaxNewTokens);
        free.Ids.Should().HaveCount(4000);
    }

    [Theory, MemberData(nameof(Backbones))]
    public void EachRowStopsBeforeItsFirstStopSequence(string backbone)
    {
        using var model = TinyVisionLanguage.Create(backbone);
        using var image = model.Encode(1);
        var requests = Conversations.Select((c, i) => model.Request(image, c, i)).ToList();
        var options = new GenerationOptions { MaxNewTokens = 60, Temperature = 1, IgnoreEndToken = true };
        var free = model.Generate(requests, options);
        options = options with { StopSequences = [free[0].Text.Substring(9, 2), free[1].Text.Substring(15, 3)] };

        var texts = new string[requests.Count];
        Array.Fill(texts, "");
        var stopped = model.Generate(requests, options, (row, text) => texts[row] += text);
        stopped[0].FinishReason.Should().Be(FinishReason.StopSequence);
        stopped[1].FinishReason.Should().Be(FinishReason.StopSequence);
        for (var i = 0; i < requests.Count; i++)
        {
            var end = options.StopSequences.Select(s => free[i].Text.IndexOf(s, StringComparison.Ordinal)).Where(e => e >= 0).DefaultIfEmpty(free[i].Text.Length).Min();
            stopped[i].Text.Should().Be(free[i].Text[..end]);
            texts[i].Should().Be(stopped[i].Text);
            stopped[i].Ids.Should().Equal(free[i].Ids.Take(stopped[i].Ids.Count));
            // Not by the number of tokens: a stop sequence may end with the last one.
            (stopped[i].FinishReason == FinishReason.StopSequence).Should().Be(end < free[i].Text.Length);
        }
    }

    [Theory, MemberData(nameof(Backbones))]
    public void TheSameSeedGivesTheSameTextAndRowsOfOtherSeedsOthers(string backbone)
    {
        using var model = TinyVisionLanguage.Create(backbone);
        using var image = model.Encode(1);
        var options = Short with { Temperature = 1, Seed = 5 };
        string Text(GenerationOptions o, long row) => model.Generate(model.Request(image, Conversations[0], row), o).Text;
        Text(options, 0).Should().Be(Text(options, 0));
        Text(options, 0).Should().NotBe(Text(options, 1));
        Text(options, 0).Should().NotBe(Text(options with { Seed = 6 }, 0));
    }

    [Theory, MemberData(nameof(Backbones))]
    public void CancellationStopsBeforeTheNextToken(string backbone)
    {
        using var model = TinyVisionLanguage.Create(backbone);
        using var image = model.Encode(1);
        using var cancel = new CancellationTokenSource();
        var request = model.Request(image, Conversations[0]);
        var pieces = 0;
        var act = () => model.Generate([request], new() { MaxNewTokens = 100_000, IgnoreEndToken = true }, (_, _) =>
        {
            if (++pieces == 3) cancel.Cancel();
        }, cancel.Token);
        act.Should().Throw<OperationCanceledException>();
        pieces.Should().Be(3);

        var late = () => model.Generate(request, Short, cancel.Token);
        late.Should().Throw<OperationCanceledException>();
    }

    [Theory, MemberData(nameof(Backbones))]
    public void ManyThreadsShareOneModel(string backbone)
    {
        using var model = TinyVisionLanguage.Create(backbone);
        string[] Run()
        {
            using var image = model.Encode(4);
            return [.. Conversations.Select(c => model.Generate(model.Request(image, c), Short).Text)];
        }

        var expected = Run();
        var results = new string[6][];
        var threads = Enumerable.Range(0, results.Length).Select(i => new Thread(() => results[i] = Run())).ToList();
        threads.ForEach(t => t.Start());
        threads.ForEach(t => t.Join());
        foreach (var result in results) result.Should().Equal(expected);
    }

    [Theory, MemberData(nameof(Backbones))]
    public void AModelThatIsSavedAndLoadedAnswersTheSame(string backbone)
    {
        var folder = Path.Combine(Path.GetTempPath(), $"mambavl-{Guid.NewGuid():N}");
        try
        {
            var config = TinyVisionLanguage.Config(backbone);
            config = config with { InstructionFirst = true, Images = new() { ImageSize = 48, Mean = [0.5f, 0.4f, 0.3f], Std = [0.2f, 0.3f, 0.1f] } };
            using var model = VisionLanguageModel.Create(config, TinyTokenizer.Load(), 9);
            model.Save(folder);
            Directory.EnumerateFiles(folder).Select(Path.GetFileName).Should().BeEquivalentTo("config.json", "model.safetensors", "tokenizer.json");
            using var loaded = VisionLanguageModel.FromPretrained(folder);
            loaded.Config.Should().BeEquivalentTo(model.Config, o => o.ComparingRecordsByMembers().Excluding(c => c.Path.EndsWith("InitializerRange")));
            using var a = model.Encode(1);
            using var b = loaded.Encode(1);
            loaded.Generate(loaded.Request(b, Conversations[1]), Short).Text.Should().Be(model.Generate(model.Request(a, Conversations[1]), Short).Text);
            foreach (var ((name, saved), (loadedName, read)) in model.NamedParameters().Zip(loaded.NamedParameters()))
            {
                loadedName.Should().Be(name);
                Compare.Same(read, saved, name);
            }
        }
        finally
        {
            if (Directory.Exists(folder)) Directory.Delete(folder, recursive: true);
        }
    }

    [Theory, MemberData(nameof(Backbones))]
    public void AModelIsSavedInHalfPrecision(string backbone)
    {
        var folder = Directory.CreateTempSubdirectory("mambavl-").FullName;
        try
        {
            using var model = TinyVisionLanguage.Create(backbone);
            model.Save(folder, ScalarType.Float16);
            using (var checkpoint = Checkpoint.Open(folder))
                foreach (var (name, entry) in checkpoint.Tensors)
                    entry.DType.Should().Be(name.EndsWith("A_log") || name.EndsWith("mixer.D") || name.EndsWith("dt_proj.bias") ? ScalarType.Float32 : ScalarType.Float16, name);
            using var loaded = VisionLanguageModel.FromPretrained(folder);
            foreach (var ((name, saved), (_, read)) in model.NamedParameters().Zip(loaded.NamedParameters()))
            {
                read.dtype.Should().Be(ScalarType.Float32, name);
                Compare.Close(read, saved, 1e-3, name);
            }
            Act(() => { model.Save(folder, ScalarType.Int8); return 0; }).Should().Throw<ArgumentException>().WithMessage("*Int8*Float16*");
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    [Fact]
    public void TheSameSeedMakesTheSameModel()
    {
        using var a = TinyVisionLanguage.Create(TinyVisionLanguage.Mamba, 1);
        using var b = TinyVisionLanguage.Create(TinyVisionLanguage.Mamba, 1);
        using var c = TinyVisionLanguage.Create(TinyVisionLanguage.Mamba, 2);
        foreach (var ((name, x), (_, y)) in a.NamedParameters().Zip(b.NamedParameters())) Compare.Same(x, y, name);
        var different = a.NamedParameters().Zip(c.NamedParameters()).Count(p => !p.First.Parameter.Equals(p.Second.Parameter));
        different.Should().BePositive();
    }

    [Theory, MemberData(nameof(Backbones))]
    public void InBfloat16TheLogitsAreCloseAndBatchesStillExact(string backbone)
    {
        // Weights of the size that models start with: larger ones amplify rounding errors in each layer.
        var config = TinyVisionLanguage.Config(backbone);
        config = config with { Language = config.Language is GptNeoXConfig n ? n with { InitializerRange = 0.02 } : config.Language };
        using var wide = VisionLanguageModel.Create(config, TinyTokenizer.Load(), 1);
        using var narrow = VisionLanguageModel.Create(config, TinyTokenizer.Load(), 1, ScalarType.BFloat16);
        using var image = narrow.Encode(1);
        var requests = Conversations.Select(c => narrow.Request(image, c)).ToList();
        narrow.Generate(requests, Short).Select(a => a.Text).Should().Equal(requests.Select(r => narrow.Generate(r, Short).Text));

        using var scope = NewDisposeScope();
        using var inference = inference_mode();
        using var wideImage = wide.Encode(1);
        var ids = tensor(requests[1].InputIds.ToArray()).unsqueeze(0);
        var expected = wide.Forward(ids, wideImage.Embeddings.unsqueeze(0));
        var actual = narrow.Forward(ids, image.Embeddings.unsqueeze(0));
        actual.dtype.Should().Be(ScalarType.BFloat16);
        var error = (actual.to(ScalarType.Float32) - expected).norm() / expected.norm();
        error.item<float>().Should().BeInRange(1e-6f, 0.05f, "bfloat16 has 8 bits, and the model few layers");
    }

    [Theory, MemberData(nameof(Backbones))]
    public void TasksGiveTypedAnswers(string backbone)
    {
        using var model = TinyVisionLanguage.Create(backbone);
        using var image = model.Encode(1);
        image.Width.Should().Be(40);
        image.Height.Should().Be(30);
        model.Caption(image, Short).Should().Be(model.Generate(model.Request(image, Conversation.Caption()), Short).Text.Trim());
        model.Answer(image, "What is it", Short).Should().Be(AnswerText.Short(model.Generate(model.Request(image, Conversation.Ask("What is it")), Short).Text));
        model.Locate(image, "it", Short).Text.Should().NotBeNull();
        model.Choose(image, "Which?", ["a", "b"], Short).Text.Should().NotBeNull();
        model.Describe(image, new(0, 0, 20, 15), Short).Should().Be(model.Generate(model.Request(image, Conversation.Describe(new BoundingBox(0, 0, 0.5, 0.5))), Short).Text.Trim());
        model.Matches(image, "noise", Short).Should().BeNull("a random model says neither True nor False");
    }

    [Fact]
    public void RequestsThatDoNotFitAreRefusedBeforeAnyWork()
    {
        using var model = TinyVisionLanguage.Create(TinyVisionLanguage.Mamba);
        using var image = model.Encode(1);
        var ids = model.Request(image, Conversations[0]).InputIds;
        Refused<ArgumentException>([.. ids.Skip(2)], "*places for patches*");
        Refused<ArgumentException>([.. ids, 100_000], "*id 100000*");
        Refused<ArgumentException>([.. ids, -1], "*id -1*");
        Refused<ArgumentException>([.. ids.TakeWhile(i => i != ImageTokens.Placeholder), .. ids.Where(i => i == ImageTokens.Placeholder)], "*ends within the picture*");

        using var narrow = new EncodedImage(zeros(16, 20), 10, 10);
        Act(() => model.Generate(new GenerationRequest(narrow, ids))).Should().Throw<ArgumentException>().WithMessage("*20 wide*");
        var gone = model.Encode(1);
        gone.Dispose();
        Act(() => model.Generate(new GenerationRequest(gone, ids))).Should().Throw<ObjectDisposedException>();
        Act(() => model.Stream(new GenerationRequest(gone, ids))).Should().Throw<ObjectDisposedException>("not first when it is read");
        Act(() => model.Generate(new GenerationRequest(image, ids), new() { TopP = 2 })).Should().Throw<ArgumentOutOfRangeException>();
        model.Generate([]).Should().BeEmpty();

        void Refused<T>(long[] wrong, string message) where T : Exception
            => Act(() => model.Generate(new GenerationRequest(image, wrong))).Should().Throw<T>().WithMessage(message);
    }

    [Fact]
    public void TheLossIsTheMeanOverRowsOfTheirMeans()
    {
        using var scope = NewDisposeScope();
        var logits = randn(2, 4, 5);
        var labels = tensor(new long[] { -100, -100, 3, 1, -100, 2, -100, -100 }).view(2, 4);
        var p = nn.functional.log_softmax(logits, -1);
        var expected = -((p[0, 1, 3] + p[0, 2, 1]) / 2 + p[1, 0, 2]) / 2;
        VisionLanguageModel.AnswerLoss(logits, labels).item<float>().Should().BeApproximately(expected.item<float>(), 1e-6f);

        Act(() => VisionLanguageModel.AnswerLoss(logits, full_like(labels, -100))).Should().Throw<ArgumentException>().WithMessage("*No row has a label*");
        Act(() => VisionLanguageModel.AnswerLoss(logits, labels[.., ..3])).Should().Throw<ArgumentException>().WithMessage("*[2, 3]*");
    }

    [Fact]
    public void PaddingOnTheRightChangesNoLogits()
    {
        foreach (var backbone in new[] { TinyVisionLanguage.Mamba, TinyVisionLanguage.NeoX })
        {
            using var model = TinyVisionLanguage.Create(backbone);
            using var image = model.Encode(1);
            using var scope = NewDisposeScope();
            var ids = model.Request(image, Conversations[0]).InputIds;
            var row = tensor(ids.ToArray()).unsqueeze(0);
            var padded = cat([row, zeros(1, 5, ScalarType.Int64)], 1);
            var patches = image.Embeddings.unsqueeze(0).clone();
            Compare.Close(model.Forward(padded, patches)[.., ..ids.Count], model.Forward(row, patches), 1e-5, backbone);
        }
    }

    [Fact]
    public void AFolderThatIsNoModelSaysSo()
    {
        var folder = Directory.CreateTempSubdirectory("mambavl-").FullName;
        try
        {
            Act(() => VisionLanguageModel.FromPretrained(folder)).Should().Throw<IOException>().WithMessage("*model.safetensors*");
            Act(() => VisionLanguageModel.FromPretrained(Path.Combine(folder, "no/such/folder"))).Should().Throw<DirectoryNotFoundException>().WithMessage("*no name on the hub*");

            using var model = TinyVisionLanguage.Create(TinyVisionLanguage.Mamba);
            model.Save(folder);
            File.Delete(Path.Combine(folder, "config.json"));
            Act(() => VisionLanguageModel.FromPretrained(folder)).Should().Throw<FileNotFoundException>().WithMessage("*config.json*");
            model.Save(folder);
            Act(() => VisionLanguageModel.FromPretrained(folder, new() { ImageSize = 33 })).Should().Throw<ArgumentException>().WithMessage("*multiple of the patch size 8*");
            Act(() => VisionLanguageModel.FromPretrained(folder, new() { Device = "gpu" })).Should().Throw<ArgumentException>().WithMessage("*'gpu'*cuda*");
            Act(() => VisionLanguageModel.FromPretrained(folder, new() { DType = ScalarType.Int64 })).Should().Throw<ArgumentException>().WithMessage("*Int64*");
            File.Delete(Path.Combine(folder, "tokenizer.json"));
            Act(() => VisionLanguageModel.FromPretrained(folder, new() { Hub = new() { Offline = true, CacheFolder = folder } }))
                .Should().Throw<FileNotFoundException>().WithMessage("*tokenizer.json*TokenizerPath*");
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    [Fact]
    public void AllThatIsWrongWithTheTensorsIsInOneError()
    {
        var folder = Directory.CreateTempSubdirectory("mambavl-").FullName;
        try
        {
            using var model = TinyVisionLanguage.Create(TinyVisionLanguage.Mamba);
            model.Save(folder);
            using var scope = NewDisposeScope();
            var tensors = model.NamedParameters().ToDictionary(p => p.Name, p => (Tensor)p.Parameter);
            tensors.Remove("backbone.layers.1.mixer.D");
            tensors.Remove("vision_encoder.blocks.0.norm1.weight");
            tensors["vision_embed_tokens.2.bias"] = zeros(7);
            tensors["backbone.layers.1.surprise"] = zeros(1);
            File.Delete(Path.Combine(folder, "model.safetensors"));
            SafetensorsWriter.Write(Path.Combine(folder, "model.safetensors"), tensors);
            Act(() => VisionLanguageModel.FromPretrained(folder)).Should().Throw<CheckpointException>().Which.Message.Should()
                .Contain("backbone.layers.1.mixer.D").And.Contain("vision_encoder.blocks.0.norm1.weight")
                .And.Contain("vision_embed_tokens.2.bias").And.Contain("backbone.layers.1.surprise");
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    private static Action Act<T>(Func<T> function) => () => function();
}
