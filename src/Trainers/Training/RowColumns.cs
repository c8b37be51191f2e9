using MambaVL.Images;
using MambaVL.Prompts;
using MambaVL.Transforms;
using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Transforms.Image;

namespace MambaVL.Training;

/// <summary>A row's columns as they were read.</summary>
internal sealed class RawRow
{
    public required long Position { get; init; }

    public int Picture { get; set; } = -1;

    public string TaskName { get; set; } = "";

    public AskedRow Asked { get; set; } = new(default, "", [], [], "");

    public Exception? Error { get; set; }
}

/// <summary>The columns of a data set that are there, checked, and how their values are read.</summary>
internal sealed class RowColumns
{
    private readonly DataViewSchema.Column _image;
    private readonly DataViewSchema.Column? _task, _question, _choices, _target, _box;

    public RowColumns(TrainingOptions options, StepHost host, DataViewSchema schema)
    {
        var names = options.Columns;
        _image = schema.GetColumnOrNull(names.Image) ?? throw MlNet.SchemaMismatch(host.Environment, "image", names.Image);
        if (!IsImage(_image.Type))
            throw MlNet.SchemaMismatch(host.Environment, "image", names.Image, "an image (MLImage), a path (text) or a file's bytes (a vector of byte)", _image.Type.ToString()!);
        if (options.Task is null) _task = Find(names.Task, "task", isNeeded: true, t => t is TextDataViewType, "text");
        _question = Find(names.Question, "question", isNeeded: false, t => t is TextDataViewType, "text");
        _choices = Find(names.Choices, "choices", isNeeded: options.Task == VisionTask.MultipleChoice, t => t is VectorDataViewType { ItemType: TextDataViewType }, "a vector of text");
        _target = Find(names.Target, "target", isNeeded: options.Task is { } task && task != VisionTask.Grounding, t => t is TextDataViewType, "text");
        _box = Find(names.Box, "box", isNeeded: options.Task is VisionTask.Grounding or VisionTask.DenseCaptioning,
            t => t is VectorDataViewType v && v.ItemType == NumberDataViewType.Single, "a vector of Single: x0, y0, x1, y1 in pixels");

        DataViewSchema.Column? Find(string name, string role, bool isNeeded, Func<DataViewType, bool> fits, string expected)
        {
            if (schema.GetColumnOrNull(name) is not { } column) return isNeeded ? throw MlNet.SchemaMismatch(host.Environment, role, name) : null;
            return fits(column.Type) ? column : throw MlNet.SchemaMismatch(host.Environment, role, name, expected, column.Type.ToString()!);
        }
    }

    public IEnumerable<DataViewSchema.Column> Needed => new[] { _image, _task, _question, _choices, _target, _box }.OfType<DataViewSchema.Column>().DistinctBy(c => c.Index);

    /// <summary>Reads the row that the cursor stands on.</summary>
    public Func<RawRow> Bind(DataViewRowCursor cursor, PictureStore pictures, long maxPixels)
    {
        var image = Image(cursor, pictures, maxPixels);
        var (task, question, target) = (Text(_task), Text(_question), Text(_target));
        var (choices, box) = (Texts(), Box());
        return () =>
        {
            var row = new RawRow { Position = cursor.Position };
            try
            {
                row.Picture = image();
                row.TaskName = task();
                row.Asked = new(default, question(), choices(), box(), target());
            }
            catch (Exception e) when (e is IOException or UnauthorizedAccessException or ArgumentException or InvalidDataException or NotSupportedException or InvalidOperationException)
            {
                row.Error = e;
            }
            return row;
        };

        Func<string> Text(DataViewSchema.Column? column)
        {
            if (column is not { } found) return () => "";
            var get = cursor.GetGetter<ReadOnlyMemory<char>>(found);
            return () =>
            {
                ReadOnlyMemory<char> value = default;
                get(ref value);
                return value.ToString();
            };
        }

        Func<string[]> Texts()
        {
            if (_choices is not { } found) return () => [];
            var get = cursor.GetGetter<VBuffer<ReadOnlyMemory<char>>>(found);
            VBuffer<ReadOnlyMemory<char>> values = default;
            return () =>
            {
                get(ref values);
                return [.. values.DenseValues().Select(v => v.ToString())];
            };
        }

        Func<float[]> Box()
        {
            if (_box is not { } found) return () => [];
            var get = cursor.GetGetter<VBuffer<float>>(found);
            VBuffer<float> values = default;
            return () =>
            {
                get(ref values);
                return [.. values.DenseValues()];
            };
        }
    }

    private Func<int> Image(DataViewRowCursor cursor, PictureStore pictures, long maxPixels)
    {
        if (_image.Type is TextDataViewType)
        {
            var getPath = cursor.GetGetter<ReadOnlyMemory<char>>(_image);
            ReadOnlyMemory<char> path = default;
            return () =>
            {
                getPath(ref path);
                return pictures.AddPath(path.ToString());
            };
        }
        if (_image.Type is ImageDataViewType)
        {
            var getImage = cursor.GetGetter<MLImage>(_image);
            MLImage? image = null;
            return () =>
            {
                getImage(ref image!); // not disposed of here: of some sources it is the caller's own object
                using var picture = MLImagePixels.Read(image ?? throw new ImageException("image column", "found no image."), maxPixels);
                return pictures.AddDecoded(picture);
            };
        }
        var getBytes = cursor.GetGetter<VBuffer<byte>>(_image);
        VBuffer<byte> bytes = default;
        return () =>
        {
            getBytes(ref bytes);
            return pictures.AddBytes(bytes.Dense());
        };
    }

    private static bool IsImage(DataViewType type) => type is TextDataViewType or ImageDataViewType or VectorDataViewType { ItemType: NumberDataViewType }
        && (type is not VectorDataViewType vector || vector.ItemType == NumberDataViewType.Byte);
}
