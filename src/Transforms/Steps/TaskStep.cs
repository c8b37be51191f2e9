using MambaVL.Prompts;
using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Runtime;

namespace MambaVL.Transforms;

/// <summary>Each row by its own task: what a trainer gives back, so that a model can be asked what it was trained on.</summary>
internal sealed class TaskStep(StepSettings settings, VisionLanguageConfig config) : TextStep(settings, config)
{
    public const string BoxSuffix = ".Box";

    private const int Text = 0, Box = 1, Readable = 2;

    public override StepInputs Bind(IHostEnvironment environment, IReadOnlyDictionary<string, ColumnFacts> columns)
    {
        var inputs = RequireSize(environment, Settings, base.Bind(environment, columns));
        if (Settings.TaskColumn is { } task) CheckText(environment, Require(environment, columns, "task", task));
        if (Settings.Regions is { } regions && Expects(columns, regions))
        {
            var column = Require(environment, columns, "box", regions);
            if (column.ItemType != NumberDataViewType.Single || column.Kind == SchemaShape.Column.VectorKind.Scalar)
                throw MlNet.SchemaMismatch(environment, "box", column.Name, "a vector of Single: x0, y0, x1, y1 in pixels", column.TypeName);
        }
        return inputs;
    }

    // Which of the texts, choices and boxes are needed is each row's own matter.
    protected override bool Expects(IReadOnlyDictionary<string, ColumnFacts> columns, string name) => columns.ContainsKey(name);

    protected override int OwnCount => 3;

    protected override DataViewSchema.DetachedColumn[] Own() =>
    [
        new(Settings.Output, TextDataViewType.Instance),
        new(Settings.Output + BoxSuffix, new VectorDataViewType(NumberDataViewType.Single, BoxColumn.Length), MlNet.SlotNames(BoxColumn.SlotNames)),
        new(Settings.Output + BoxSuffix + ReadableSuffix, BooleanDataViewType.Instance),
    ];

    protected override Conversation Ask(RowInput row, EncodedImage image)
    {
        var task = Task(row);
        var boxes = task == VisionTask.DenseCaptioning ? TaskConversation.Shares(row.Box.Dense(), row.Width, row.Height) : [];
        return TaskConversation.Of(task, row.Text, row.Choices, boxes, null);
    }

    protected override void Read(RowInput row, EncodedImage image, string text, StepResults results)
    {
        var task = Task(row);
        var box = task == VisionTask.Grounding ? BoxParser.Parse(text, row.Width, row.Height) : default;
        results.Set(Text, row.Index, (task switch
        {
            VisionTask.QuestionAnswering => AnswerText.Short(text),
            VisionTask.MultipleChoice => AnswerText.Choice(text, Math.Clamp(row.Choices.Count, 1, 26)) is { } i ? row.Choices[i] : "",
            VisionTask.ImageTextMatch => AnswerText.TrueOrFalse(text)?.ToString() ?? "",
            _ => text.Trim(),
        }).AsMemory());
        results.Set(Box, row.Index, new VBuffer<float>(BoxColumn.Length, BoxColumn.Write(box.IsReadable ? box.Pixels : null)));
        results.Set(Readable, row.Index, box.IsReadable);
    }

    protected override void SetOwnEmpty(StepResults results, int row)
    {
        results.Set(Text, row, ReadOnlyMemory<char>.Empty);
        results.Set(Box, row, new VBuffer<float>(BoxColumn.Length, BoxColumn.Write(null)));
        results.Set(Readable, row, false);
    }

    private VisionTask Task(RowInput row) => Settings.TaskColumn is null ? Settings.Task!.Value : TaskConversation.Parse(row.Task);
}
