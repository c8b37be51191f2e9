using System.Globalization;
using System.Numerics;
using MambaVL.Prompts;
using Microsoft.ML;
using Microsoft.ML.Data;

namespace MambaVL.Metrics;

/// <summary>The rows of an evaluation: columns checked first, then values read one row at a time.</summary>
internal sealed class MetricRows : IDisposable
{
    private readonly DataViewRowCursor _cursor;

    public MetricRows(IDataView data, params DataViewSchema.Column?[] columns)
        => _cursor = data.GetRowCursor(columns.OfType<DataViewSchema.Column>().DistinctBy(c => c.Index));

    /// <summary>Reads every row.</summary>
    /// <exception cref="InvalidDataException">There is none.</exception>
    public List<T> Read<T>(Func<T> row)
    {
        var rows = new List<T>();
        while (_cursor.MoveNext()) rows.Add(row());
        return rows.Count > 0 ? rows : throw new InvalidDataException("The data has no rows; a metric of nothing has no value. Evaluate at least one row.");
    }

    public void Dispose() => _cursor.Dispose();

    public InvalidDataException Bad(DataViewSchema.Column column, string found)
        => new($"Column '{column.Name}', row {_cursor.Position.ToString(CultureInfo.InvariantCulture)} (the first is 0): {found}");

    public Func<string> Text(DataViewSchema.Column column)
    {
        var get = _cursor.GetGetter<ReadOnlyMemory<char>>(column);
        return () =>
        {
            ReadOnlyMemory<char> value = default;
            get(ref value);
            return value.ToString();
        };
    }

    /// <summary>The texts of a row that are not blank, one at least. ML.NET fills vectors of fixed length up with empty texts.</summary>
    public Func<List<string>> Texts(DataViewSchema.Column column)
    {
        Func<IEnumerable<string>> read;
        if (column.Type is VectorDataViewType)
        {
            var get = _cursor.GetGetter<VBuffer<ReadOnlyMemory<char>>>(column);
            VBuffer<ReadOnlyMemory<char>> values = default;
            read = () =>
            {
                get(ref values);
                return values.DenseValues().Select(v => v.ToString());
            };
        }
        else
        {
            var get = Text(column);
            read = () => [get()];
        }
        return () => read().Where(t => !string.IsNullOrWhiteSpace(t)).ToList() is { Count: > 0 } texts
            ? texts : throw Bad(column, "found no text; expected one at least. Leave the row out, or fill it.");
    }

    /// <summary>A row's vector of numbers.</summary>
    public Func<double[]> Numbers(DataViewSchema.Column column, int length)
    {
        var item = ((VectorDataViewType)column.Type).ItemType;
        var read = item == NumberDataViewType.Single ? Numbers<float>(column)
            : item == NumberDataViewType.Double ? Numbers<double>(column)
            : item == NumberDataViewType.Int64 ? Numbers<long>(column) : Numbers<int>(column);
        return () => read() is var numbers && numbers.Length == length ? numbers
            : throw Bad(column, $"found {numbers.Length} numbers; expected {length}.");
    }

    /// <summary>A box that must be there: finite, and with an area.</summary>
    public Func<BoundingBox> TrueBox(DataViewSchema.Column column)
    {
        var read = Box(column);
        return () => read() is not { } box ? throw Bad(column, "found no box (a number of it is not finite); expected x0, y0, x1, y1.")
            : box.Area > 0 ? box
            : throw Bad(column, $"found the box {Text(box)}, which has no area; expected x0 < x1 and y0 < y1 (the edges, not a width and a height).");
    }

    /// <summary>A box; null where a number of it is not finite.</summary>
    public Func<BoundingBox?> Box(DataViewSchema.Column column)
    {
        var read = Numbers(column, 4);
        return () => read() is var edges && Array.TrueForAll(edges, double.IsFinite) ? new BoundingBox(edges[0], edges[1], edges[2], edges[3]) : null;
    }

    /// <summary>The first box in a text, times the image's size where there is one; null where none can be read.</summary>
    public Func<BoundingBox?> BoxInText(DataViewSchema.Column column, DataViewSchema.Column? sizeColumn)
    {
        var text = Text(column);
        Func<double[]> size = sizeColumn is { } c ? Numbers(c, 2) : () => [1, 1];
        return () =>
        {
            var sides = size();
            if (!Array.TrueForAll(sides, s => s > 0 && double.IsFinite(s)))
                throw Bad(sizeColumn!.Value, "found a size that is not positive; expected width and height of the image.");
            return BoxParser.TryParse(text(), out var raw) ? new BoundingBox(raw.X0 * sides[0], raw.Y0 * sides[1], raw.X1 * sides[0], raw.Y1 * sides[1]) : null;
        };
    }

    /// <summary>What a text says; null where it is neither yes nor no.</summary>
    public Func<bool?> YesOrNo(DataViewSchema.Column column)
    {
        var text = Text(column);
        return () => MatchScores.Read(text());
    }

    public Func<bool> Bool(DataViewSchema.Column column)
    {
        var get = _cursor.GetGetter<bool>(column);
        return () =>
        {
            var value = false;
            get(ref value);
            return value;
        };
    }

    /// <summary>The truth of a yes-or-no question: bool, yes/no or true/false as text, or 1 and 0.</summary>
    public Func<bool> Label(DataViewSchema.Column column)
    {
        if (column.Type is BooleanDataViewType) return Bool(column);
        if (column.Type is TextDataViewType)
        {
            var text = Text(column);
            return () => text() is var label && MatchScores.Read(label) is { } truth ? truth
                : throw Bad(column, $"found '{label}'; expected yes or no, true or false.");
        }
        var number = column.Type == NumberDataViewType.Single ? Number<float>(column)
            : column.Type == NumberDataViewType.Double ? Number<double>(column)
            : column.Type == NumberDataViewType.Int64 ? Number<long>(column) : Number<int>(column);
        return () => number() switch
        {
            1 => true,
            0 => false,
            var other => throw Bad(column, $"found {other.ToString(CultureInfo.InvariantCulture)}; expected 1 for yes or 0 for no."),
        };
    }

    internal static string Text(BoundingBox box) => string.Create(CultureInfo.InvariantCulture, $"[{box.X0}, {box.Y0}, {box.X1}, {box.Y1}]");

    private Func<double> Number<T>(DataViewSchema.Column column) where T : struct, INumberBase<T>
    {
        var get = _cursor.GetGetter<T>(column);
        return () =>
        {
            T value = default;
            get(ref value);
            return double.CreateChecked(value);
        };
    }

    private Func<double[]> Numbers<T>(DataViewSchema.Column column) where T : struct, INumberBase<T>
    {
        var get = _cursor.GetGetter<VBuffer<T>>(column);
        VBuffer<T> values = default;
        return () =>
        {
            get(ref values);
            return [.. values.DenseValues().Select(double.CreateChecked)];
        };
    }
}

/// <summary>Finds columns and checks what they hold, with ML.NET's errors.</summary>
internal static class MetricColumns
{
    public static bool IsText(DataViewType type) => type is TextDataViewType;

    public static bool IsTexts(DataViewType type) => type is TextDataViewType or VectorDataViewType { ItemType: TextDataViewType };

    public static bool IsBox(DataViewType type) => IsVector(type, 4, NumberDataViewType.Single, NumberDataViewType.Double);

    public static bool IsBoxOrText(DataViewType type) => IsBox(type) || IsText(type);

    public static bool IsSize(DataViewType type)
        => IsVector(type, 2, NumberDataViewType.Int32, NumberDataViewType.Int64, NumberDataViewType.Single, NumberDataViewType.Double);

    public static bool IsBool(DataViewType type) => type is BooleanDataViewType;

    public static bool IsBoolOrText(DataViewType type) => IsBool(type) || IsText(type);

    public static bool IsLabel(DataViewType type) => IsBoolOrText(type) || type == NumberDataViewType.Single || type == NumberDataViewType.Double
        || type == NumberDataViewType.Int32 || type == NumberDataViewType.Int64;

    /// <exception cref="ArgumentOutOfRangeException">The column is missing, or of another kind.</exception>
    public static DataViewSchema.Column Require(IDataView data, string role, string name, Func<DataViewType, bool> fits, string expected)
    {
        ArgumentException.ThrowIfNullOrEmpty(name);
        if (data.Schema.GetColumnOrNull(name) is not { } column)
            throw new ArgumentOutOfRangeException(nameof(data), $"Could not find {role} column '{name}'. The data has: {string.Join(", ", data.Schema.Select(c => $"'{c.Name}'"))}.");
        return fits(column.Type) ? column
            : throw new ArgumentOutOfRangeException(nameof(data), $"Schema mismatch for {role} column '{name}': expected {expected}, got {column.Type}.");
    }

    /// <summary>The column that a pipeline step adds beside its own, if it is there and no other is named.</summary>
    public static DataViewSchema.Column? Readable(IDataView data, string? name, string predictedColumnName)
    {
        if (name is null && data.Schema.GetColumnOrNull(predictedColumnName + ".Readable") is not { Type: BooleanDataViewType }) return null;
        return Require(data, "readable", name ?? predictedColumnName + ".Readable", IsBool, "Boolean");
    }

    private static bool IsVector(DataViewType type, int length, params DataViewType[] items)
        => type is VectorDataViewType vector && vector.Size is var size && (size == 0 || size == length) && items.Contains(vector.ItemType);
}
