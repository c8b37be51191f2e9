using MambaVL.Images;
using Microsoft.ML;
using Microsoft.ML.Data;

namespace MambaVL.Transforms;

/// <summary>Copies what a step needs of the row that a source stands on.</summary>
internal sealed class RowReader
{
    private readonly VisionLanguageTransformer _transformer;
    private readonly List<Action<RowInput>> _columns = [];
    private MLImage? _image;

    public RowReader(BoundStep step, DataViewRow source)
    {
        _transformer = step.Transformer;
        AddImage(step, source);
        if (step.SizeColumn is { } size)
        {
            var get = source.GetGetter<VBuffer<int>>(size);
            _columns.Add(row =>
            {
                get(ref row.Size);
                var values = row.Size.Dense();
                if (values.Length != 2) throw new InvalidDataException($"column '{size.Name}' has {values.Length} numbers; expected width and height.");
                (row.Width, row.Height) = (values[0], values[1]);
            });
        }
        if (step.TextColumn is { } text)
        {
            if (text.Type is TextDataViewType)
            {
                var get = source.GetGetter<ReadOnlyMemory<char>>(text);
                ReadOnlyMemory<char> value = default;
                _columns.Add(row =>
                {
                    get(ref value);
                    row.Text = value.ToString();
                });
            }
            else
            {
                var get = source.GetGetter<VBuffer<float>>(text);
                _columns.Add(row => get(ref row.Box));
            }
        }
        if (step.TaskColumn is { } task)
        {
            var get = source.GetGetter<ReadOnlyMemory<char>>(task);
            ReadOnlyMemory<char> value = default;
            _columns.Add(row =>
            {
                get(ref value);
                row.Task = value.ToString();
            });
        }
        if (step.RegionsColumn is { } regions)
        {
            var get = source.GetGetter<VBuffer<float>>(regions);
            _columns.Add(row => get(ref row.Box));
        }
        if (step.ChoicesColumn is { } choices)
        {
            var get = source.GetGetter<VBuffer<ReadOnlyMemory<char>>>(choices);
            VBuffer<ReadOnlyMemory<char>> values = default;
            _columns.Add(row =>
            {
                get(ref values);
                row.Choices = [.. values.Dense().ToArray().Select(c => c.ToString())];
            });
        }
    }

    /// <summary>Reads the row. A column that cannot be read gives the row an error, and the others are left.</summary>
    public void Fetch(RowInput row)
    {
        row.FetchError = null;
        (row.Width, row.Height, row.Path) = (0, 0, "");
        try
        {
            foreach (var column in _columns) column(row);
        }
        catch (Exception e) when (e is not (OperationCanceledException or OutOfMemoryException))
        {
            row.FetchError = e;
        }
    }

    private void AddImage(BoundStep step, DataViewRow source)
    {
        var column = step.ImageColumn;
        switch (step.Inputs.Image)
        {
            case ImageKind.MLImage:
                var getImage = source.GetGetter<MLImage>(column);
                _columns.Add(row =>
                {
                    // Not disposed of here: of some sources it is the caller's own object.
                    getImage(ref _image!);
                    Squash(_image ?? throw new ImageException("image column", "found no image."), row);
                });
                break;
            case ImageKind.Path:
                var getPath = source.GetGetter<ReadOnlyMemory<char>>(column);
                ReadOnlyMemory<char> path = default;
                _columns.Add(row =>
                {
                    getPath(ref path);
                    row.Path = path.ToString();
                });
                break;
            case ImageKind.Bytes:
                var getBytes = source.GetGetter<VBuffer<byte>>(column);
                _columns.Add(row => getBytes(ref row.Encoded));
                break;
            default:
                var getFeatures = source.GetGetter<VBuffer<float>>(column);
                var expected = ((VectorDataViewType)column.Type).Size;
                _columns.Add(row =>
                {
                    getFeatures(ref row.Features);
                    if (row.Features.Length != expected) throw new InvalidDataException($"column '{column.Name}' has {row.Features.Length} numbers; expected {expected}.");
                });
                break;
        }
    }

    private void Squash(MLImage image, RowInput row)
    {
        using var picture = MLImagePixels.Read(image, _transformer.Settings.Images.MaxPixels);
        row.Square = _transformer.Model.ImageProcessor.Resize(picture);
        (row.Width, row.Height) = (picture.Width, picture.Height);
    }
}
