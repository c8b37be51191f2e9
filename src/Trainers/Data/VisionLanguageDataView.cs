using Microsoft.ML;
using Microsoft.ML.Data;

namespace MambaVL.Data;

/// <summary>The rows of a file of JSON lines.</summary>
internal sealed class VisionLanguageDataView(string path) : IDataView
{
    public const int Image = 0, Task = 1, Question = 2, Choices = 3, Target = 4, Box = 5, Answers = 6, Kind = 7;

    private static readonly DataViewSchema s_schema = MakeSchema();

    public DataViewSchema Schema => s_schema;

    public bool CanShuffle => false;

    public long? GetRowCount() => null; // to count is to read the whole file

    public DataViewRowCursor GetRowCursor(IEnumerable<DataViewSchema.Column> columnsNeeded, Random? rand = null)
    {
        ArgumentNullException.ThrowIfNull(columnsNeeded);
        var active = new bool[s_schema.Count];
        foreach (var column in columnsNeeded) active[column.Index] = true;
        return new Cursor(path, active);
    }

    // Lines are found one after the other: one cursor, however many are asked for.
    public DataViewRowCursor[] GetRowCursorSet(IEnumerable<DataViewSchema.Column> columnsNeeded, int n, Random? rand = null)
        => [GetRowCursor(columnsNeeded, rand)];

    private static DataViewSchema MakeSchema()
    {
        var texts = new VectorDataViewType(TextDataViewType.Instance);
        var builder = new DataViewSchema.Builder();
        builder.AddColumn(nameof(Image), TextDataViewType.Instance);
        builder.AddColumn(nameof(Task), TextDataViewType.Instance);
        builder.AddColumn(nameof(Question), TextDataViewType.Instance);
        builder.AddColumn(nameof(Choices), texts);
        builder.AddColumn(nameof(Target), TextDataViewType.Instance);
        builder.AddColumn(nameof(Box), new VectorDataViewType(NumberDataViewType.Single, 4));
        builder.AddColumn(nameof(Answers), texts);
        builder.AddColumn(nameof(Kind), TextDataViewType.Instance);
        return builder.ToSchema();
    }

    private sealed class Cursor(string path, bool[] active) : DataViewRowCursor
    {
        private readonly LineReader _lines = new(path);
        private readonly string _folder = Path.GetDirectoryName(path)!;
        private VisionLanguageRow? _row;
        private long _position = -1;
        private bool _ended;

        public override DataViewSchema Schema => s_schema;

        public override long Position => _position;

        public override long Batch => 0;

        public override bool IsColumnActive(DataViewSchema.Column column) => active[column.Index];

        public override bool MoveNext()
        {
            if (_ended) return false;
            try
            {
                while (_lines.TryRead(out var line))
                {
                    if (line.Span.Trim(" \t"u8).IsEmpty) continue; // between rows, and at the end
                    _row = VisionLanguageRow.Parse(line, _folder);
                    _position++;
                    return true;
                }
            }
            catch (FormatException e)
            {
                throw new InvalidDataException($"'{path}', line {_lines.Number}: {e.Message} docs/dataset-format.md has the format.", e);
            }
            Dispose();
            return false;
        }

        public override ValueGetter<DataViewRowId> GetIdGetter() => (ref DataViewRowId id) => id = new((ulong)Row(_position), 0);

        public override ValueGetter<TValue> GetGetter<TValue>(DataViewSchema.Column column)
        {
            if (column.Index >= active.Length || !active[column.Index])
                throw new InvalidOperationException($"Column '{column.Name}' was not asked for when the cursor was made; name it among the columns needed.");
            Delegate getter = column.Index switch
            {
                Image => Text(r => r.Image),
                Task => Text(r => r.Task.ToString()),
                Question => Text(r => r.Question),
                Choices => Texts(r => r.Choices),
                Target => Text(r => r.Target),
                Box => (ValueGetter<VBuffer<float>>)((ref VBuffer<float> value) => Set(ref value, Row(_row!).Box)),
                Answers => Texts(r => r.Target.Length > 0 ? [r.Target] : []),
                _ => Text(r => r.Kind),
            };
            return getter as ValueGetter<TValue>
                ?? throw new InvalidOperationException($"Column '{column.Name}' has values of {column.Type.RawType}; a getter of {typeof(TValue)} was asked for.");
        }

        protected override void Dispose(bool disposing)
        {
            if (disposing) _lines.Dispose();
            (_ended, _position, _row) = (true, -1, null);
            base.Dispose(disposing);
        }

        private ValueGetter<ReadOnlyMemory<char>> Text(Func<VisionLanguageRow, string> read)
            => (ref ReadOnlyMemory<char> value) => value = read(Row(_row!)).AsMemory();

        private ValueGetter<VBuffer<ReadOnlyMemory<char>>> Texts(Func<VisionLanguageRow, string[]> read)
            => (ref VBuffer<ReadOnlyMemory<char>> value) => Set(ref value, [.. read(Row(_row!)).Select(t => t.AsMemory())]);

        // The caller's buffer, which may be longer, is used again.
        private static void Set<T>(ref VBuffer<T> value, ReadOnlySpan<T> items)
        {
            var editor = VBufferEditor.Create(ref value, items.Length);
            items.CopyTo(editor.Values);
            value = editor.Commit();
        }

        private T Row<T>(T value) => _row is null ? throw new InvalidOperationException("The cursor stands on no row; call MoveNext first.") : value;
    }
}
