using Microsoft.ML;
using Microsoft.ML.Data;

namespace MambaVL.Transforms;

/// <summary>A step on a schema: where its inputs are, and the schema after it.</summary>
internal sealed class BoundStep
{
    public BoundStep(VisionLanguageTransformer transformer, DataViewSchema input)
    {
        (Transformer, Input) = (transformer, input);
        var settings = transformer.Settings;
        Inputs = transformer.Step.Bind(transformer.Host.Environment, MlNet.Columns(input));
        ImageColumn = input[settings.Image];
        TextColumn = settings.Text is { } text ? input.GetColumnOrNull(text) : null; // whether it must be there, Bind has checked
        ChoicesColumn = settings.Choices is { } choices ? input.GetColumnOrNull(choices) : null;
        TaskColumn = settings.TaskColumn is { } task ? input[task] : null;
        RegionsColumn = settings.Regions is { } regions ? input.GetColumnOrNull(regions) : null;
        SizeColumn = Inputs.SizeColumn is { } size ? input[size] : null;
        Outputs = [.. transformer.Step.Outputs(Inputs)];
        var schema = new DataViewSchema.Builder();
        schema.AddColumns(input); // so that column i of the input is column i of the output
        schema.AddColumns(Outputs);
        Output = schema.ToSchema();
    }

    public VisionLanguageTransformer Transformer { get; }

    public DataViewSchema Input { get; }

    public DataViewSchema Output { get; }

    public StepInputs Inputs { get; }

    public IReadOnlyList<DataViewSchema.DetachedColumn> Outputs { get; }

    public DataViewSchema.Column ImageColumn { get; }

    public DataViewSchema.Column? TextColumn { get; }

    public DataViewSchema.Column? ChoicesColumn { get; }

    public DataViewSchema.Column? TaskColumn { get; }

    public DataViewSchema.Column? RegionsColumn { get; }

    public DataViewSchema.Column? SizeColumn { get; }

    public bool[] Active(IEnumerable<DataViewSchema.Column> columns)
    {
        var active = new bool[Output.Count];
        foreach (var column in columns) active[column.Index] = true;
        return active;
    }

    public bool[] Wanted(bool[] active) => active[Input.Count..];

    /// <summary>What the source must give: what is passed on, and the step's inputs where one of its columns is asked for.</summary>
    public IEnumerable<DataViewSchema.Column> Dependencies(bool[] active)
    {
        var wanted = Wanted(active).Contains(true);
        return Input.Where(c => active[c.Index] || (wanted && IsInput(c)));
    }

    private bool IsInput(DataViewSchema.Column c)
        => c.Index == ImageColumn.Index || c.Index == TextColumn?.Index || c.Index == ChoicesColumn?.Index || c.Index == SizeColumn?.Index
            || c.Index == TaskColumn?.Index || c.Index == RegionsColumn?.Index;
}
