using MambaVL.Generation;
using MambaVL.Prompts;
using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Runtime;

namespace MambaVL.Transforms;

/// <summary>A step whose model writes text: columns of its own, then <c>.Text</c> and <c>.Ids</c>.</summary>
internal abstract class TextStep(StepSettings settings, VisionLanguageConfig config) : Step(settings, config)
{
    public const string TextSuffix = ".Text", IdsSuffix = ".Ids", ReadableSuffix = ".Readable", IndexSuffix = ".Index";

    public sealed override IEnumerable<DataViewSchema.DetachedColumn> Outputs(StepInputs inputs)
        => WithError([.. Own(), new(Settings.Output + TextSuffix, TextDataViewType.Instance), new(Settings.Output + IdsSuffix, new VectorDataViewType(NumberDataViewType.Int32))]);

    public override void Run(VisionLanguageModel model, IReadOnlyList<RowInput> rows, StepResults results, bool[] wanted, StopSignal stop)
    {
        using var pictures = new PictureSet(model, Settings.Images);
        pictures.EncodeAhead(rows, stop);
        var asked = new List<RowInput>();
        var requests = new List<GenerationRequest>();
        foreach (var row in rows)
        {
            stop.Check();
            results.Try(row, () =>
            {
                var image = pictures.Encode(row);
                requests.Add(new(image, Ids(model, row, image), row.Seed));
                asked.Add(row);
            });
        }
        if (asked.Count == 0) return;

        IReadOnlyList<GenerationResult>? answers = null;
        try
        {
            answers = Generate(requests);
        }
        catch (Exception e) when (StepResults.IsRowError(e) && asked.Count > 1)
        {
            // Which row it was is not known: each by itself gives the same answer, or its own error.
        }
        for (var i = 0; i < asked.Count; i++)
        {
            var (row, request, answer) = (asked[i], requests[i], answers?[i]);
            results.Try(row, () =>
            {
                answer ??= Generate([request])[0];
                Read(row, request.Image, answer.Text, results);
                results.Set(OwnCount, row.Index, answer.Text.AsMemory());
                results.Set(OwnCount + 1, row.Index, new VBuffer<int>(answer.Ids.Count, [.. answer.Ids]));
            });
        }

        IReadOnlyList<GenerationResult> Generate(IReadOnlyList<GenerationRequest> batch)
            => model.Generate(batch, Settings.Generation, (_, _) => stop.Check(), stop.Token);
    }

    public override void SetEmpty(StepResults results, int row)
    {
        SetOwnEmpty(results, row);
        results.Set(OwnCount, row, ReadOnlyMemory<char>.Empty);
        results.Set(OwnCount + 1, row, new VBuffer<int>(0, []));
    }

    /// <summary>The columns before <c>.Text</c>; the first is the output itself.</summary>
    protected virtual DataViewSchema.DetachedColumn[] Own() => [new(Settings.Output, TextDataViewType.Instance)];

    protected virtual int OwnCount => 1;

    /// <summary>What the row asks the model.</summary>
    protected abstract Conversation Ask(RowInput row, EncodedImage image);

    protected virtual IReadOnlyList<long> Ids(VisionLanguageModel model, RowInput row, EncodedImage image)
        => model.Sequence.Build(Ask(row, image)).Ids;

    /// <summary>Writes the step's own columns.</summary>
    protected virtual void Read(RowInput row, EncodedImage image, string text, StepResults results)
        => results.Set(0, row.Index, Format(text).AsMemory());

    protected virtual string Format(string text) => text.Trim();

    protected virtual void SetOwnEmpty(StepResults results, int row) => results.Set(0, row, ReadOnlyMemory<char>.Empty);

    /// <summary>Boxes are in pixels of the original image, whose size features alone do not tell.</summary>
    protected static StepInputs RequireSize(IHostEnvironment environment, StepSettings settings, StepInputs inputs)
        => inputs.Image is not (ImageKind.Patches or ImageKind.Embeddings) || inputs.SizeColumn is not null ? inputs
            : throw MlNet.SchemaMismatch(environment, "image size", settings.Image + SizeSuffix);
}

internal sealed class CaptionStep(StepSettings settings, VisionLanguageConfig config) : TextStep(settings, config)
{
    protected override Conversation Ask(RowInput row, EncodedImage image) => Conversation.Caption();
}

internal sealed class AnswerStep(StepSettings settings, VisionLanguageConfig config) : TextStep(settings, config)
{
    protected override Conversation Ask(RowInput row, EncodedImage image) => Conversation.Ask(row.Text);

    protected override string Format(string text) => AnswerText.Short(text);
}

/// <summary>The prompt as it is: no words, case or full stop of ours.</summary>
internal sealed class PromptStep(StepSettings settings, VisionLanguageConfig config) : TextStep(settings, config)
{
    protected override IReadOnlyList<long> Ids(VisionLanguageModel model, RowInput row, EncodedImage image)
    {
        var size = model.Config.Images.ImageSize;
        var picture = ImageTokens.Sequence(model.Tokenizer, size, size, model.Vision.PatchSize);
        var prompt = model.Tokenizer.Encode(row.Text).Select(id => (long)id);
        return model.Sequence.InstructionFirst ? [.. prompt, .. picture] : [.. picture, .. prompt];
    }

    protected override Conversation Ask(RowInput row, EncodedImage image) => throw new NotSupportedException();

    protected override string Format(string text) => text;
}

internal sealed class ChooseStep(StepSettings settings, VisionLanguageConfig config) : TextStep(settings, config)
{
    protected override int OwnCount => 2;

    protected override DataViewSchema.DetachedColumn[] Own() =>
        [new(Settings.Output, TextDataViewType.Instance), new(Settings.Output + IndexSuffix, NumberDataViewType.Int32)];

    protected override Conversation Ask(RowInput row, EncodedImage image) => Conversation.Choose(row.Text, row.Choices);

    protected override void Read(RowInput row, EncodedImage image, string text, StepResults results)
    {
        var choice = AnswerText.Choice(text, row.Choices.Count);
        results.Set(0, row.Index, choice is { } i ? row.Choices[i].AsMemory() : ReadOnlyMemory<char>.Empty);
        results.Set(1, row.Index, choice ?? -1);
    }

    protected override void SetOwnEmpty(StepResults results, int row)
    {
        results.Set(0, row, ReadOnlyMemory<char>.Empty);
        results.Set(1, row, -1);
    }
}

internal sealed class GroundStep(StepSettings settings, VisionLanguageConfig config) : TextStep(settings, config)
{
    private static readonly VectorDataViewType BoxType = new(NumberDataViewType.Single, BoxColumn.Length);

    public override StepInputs Bind(IHostEnvironment environment, IReadOnlyDictionary<string, ColumnFacts> columns)
        => RequireSize(environment, Settings, base.Bind(environment, columns));

    protected override int OwnCount => 2;

    protected override DataViewSchema.DetachedColumn[] Own() =>
        [new(Settings.Output, BoxType, MlNet.SlotNames(BoxColumn.SlotNames)), new(Settings.Output + ReadableSuffix, BooleanDataViewType.Instance)];

    protected override Conversation Ask(RowInput row, EncodedImage image) => Conversation.Locate(row.Text);

    protected override void Read(RowInput row, EncodedImage image, string text, StepResults results)
    {
        // The image may be shared with other rows, of features of equal values and another size: the row's own counts.
        var box = BoxParser.Parse(text, row.Width, row.Height);
        results.Set(0, row.Index, new VBuffer<float>(BoxColumn.Length, BoxColumn.Write(box.IsReadable ? box.Pixels : null)));
        results.Set(1, row.Index, box.IsReadable);
    }

    protected override void SetOwnEmpty(StepResults results, int row)
    {
        results.Set(0, row, new VBuffer<float>(BoxColumn.Length, BoxColumn.Write(null)));
        results.Set(1, row, false);
    }
}

internal sealed class MatchStep(StepSettings settings, VisionLanguageConfig config) : TextStep(settings, config)
{
    protected override int OwnCount => 2;

    protected override DataViewSchema.DetachedColumn[] Own() =>
        [new(Settings.Output, BooleanDataViewType.Instance), new(Settings.Output + ReadableSuffix, BooleanDataViewType.Instance)];

    protected override Conversation Ask(RowInput row, EncodedImage image) => Conversation.Match(row.Text);

    protected override void Read(RowInput row, EncodedImage image, string text, StepResults results)
    {
        var matches = AnswerText.TrueOrFalse(text);
        results.Set(0, row.Index, matches == true);
        results.Set(1, row.Index, matches is not null);
    }

    protected override void SetOwnEmpty(StepResults results, int row)
    {
        results.Set(0, row, false);
        results.Set(1, row, false);
    }
}

internal sealed class DescribeStep(StepSettings settings, VisionLanguageConfig config) : TextStep(settings, config)
{
    public override StepInputs Bind(IHostEnvironment environment, IReadOnlyDictionary<string, ColumnFacts> columns)
        => RequireSize(environment, Settings, base.Bind(environment, columns));

    protected override void CheckText(IHostEnvironment environment, ColumnFacts column)
    {
        if (column.ItemType != NumberDataViewType.Single || column.Kind == SchemaShape.Column.VectorKind.Scalar || column.Size is not (0 or BoxColumn.Length))
            throw MlNet.SchemaMismatch(environment, "box", column.Name, "a vector of 4 Single: x0, y0, x1, y1 in pixels", column.TypeName);
    }

    protected override Conversation Ask(RowInput row, EncodedImage image)
    {
        var box = BoxColumn.Read(row.Box.Dense().ToArray())
            ?? throw new ArgumentException("The row's box has an edge that is not finite; expected x0, y0, x1, y1 in pixels.");
        return Conversation.Describe(box.ToShares(row.Width, row.Height));
    }
}
