using System.Globalization;
using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Nodes;
using MambaVL.Images;
using MambaVL.Prompts;
using MambaVL.Transforms;
using SkiaSharp;

namespace MambaVL.Samples;

/// <summary>What was found: lines on the console, pictures with boxes, and results.json.</summary>
internal sealed class Results
{
    private const string FileName = "results.json";

    private static readonly JsonSerializerOptions s_json = new() { WriteIndented = true, Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping };

    private readonly string _folder;
    private readonly JsonArray _rows = [];
    private readonly HashSet<string> _names = new(StringComparer.OrdinalIgnoreCase);

    /// <param name="folder">Made if it is not there; files of the same names are replaced.</param>
    /// <param name="asked">The pictures.</param>
    /// <exception cref="IOException">The folder has the pictures themselves.</exception>
    public Results(string folder, IReadOnlyList<Asked> asked)
    {
        _folder = Path.GetFullPath(folder);
        if (asked.Any(a => Path.GetDirectoryName(Path.GetFullPath(a.Path)) == Path.TrimEndingDirectorySeparator(_folder)))
            throw new IOException($"'{folder}' holds the pictures themselves, which must not be drawn on; name another folder with --out.");
        Directory.CreateDirectory(_folder);
    }

    /// <summary>The pictures that could not be read.</summary>
    public int Failures { get; private set; }

    public void Add(Described row, long milliseconds)
    {
        Console.WriteLine($"\n{Path.GetFileName(row.Path)}");
        if (row.Error.Length > 0)
        {
            Failures++;
            Console.Error.WriteLine($"  {row.Error}");
            _rows.Add(new JsonObject { ["file"] = row.Path, ["error"] = row.Error });
            return;
        }
        var box = row.Box.ToBoundingBox();
        Console.WriteLine($"  caption:  {Line(row.Caption)}");
        Console.WriteLine($"  {Line(row.Question)}  {Line(row.Answer)}");
        Console.WriteLine($"  {Line(row.Phrase)}:  {Show(box) ?? $"no box in '{Line(row.BoxText)}'"}");
        Console.WriteLine($"  {milliseconds} ms");
        Draw(row.Path, box);
        _rows.Add(new JsonObject
        {
            ["file"] = row.Path,
            ["caption"] = row.Caption,
            ["question"] = row.Question,
            ["answer"] = row.Answer,
            ["phrase"] = row.Phrase,
            ["box"] = box is { } b ? new JsonArray(Math.Round(b.X0, 1), Math.Round(b.Y0, 1), Math.Round(b.X1, 1), Math.Round(b.Y1, 1)) : null,
            ["milliseconds"] = milliseconds,
        });
    }

    public void Save()
    {
        // Under another name first: never half a file.
        var path = Path.Combine(_folder, FileName);
        File.WriteAllText(path + ".part", _rows.ToJsonString(s_json) + "\n");
        File.Move(path + ".part", path, overwrite: true);
        Console.WriteLine($"\n{_rows.Count} pictures; with their boxes, and as {FileName}, in {_folder}");
    }

    private void Draw(string path, BoundingBox? box)
    {
        using var image = DecodedImage.Decode(path); // as the model saw it: turned as its EXIF says
        using var bitmap = new SKBitmap(new SKImageInfo(image.Width, image.Height, SKColorType.Rgba8888, SKAlphaType.Opaque));
        var from = image.Pixels;
        var to = new byte[image.Width * image.Height * 4];
        for (int i = 0, j = 0; i < from.Length; i += 3, j += 4) (to[j], to[j + 1], to[j + 2], to[j + 3]) = (from[i], from[i + 1], from[i + 2], 255);
        System.Runtime.InteropServices.Marshal.Copy(to, 0, bitmap.GetPixels(), to.Length);
        if (box is { } b)
        {
            using var canvas = new SKCanvas(bitmap);
            var width = Math.Max(2, Math.Max(image.Width, image.Height) / 100f);
            var edges = new SKRect((float)b.X0, (float)b.Y0, (float)b.X1, (float)b.Y1);
            edges.Inflate(width / 2, width / 2);
            // Dark under light is seen on any background.
            foreach (var (color, stroke) in ((SKColor, float)[])[(SKColors.Black, 2 * width), (SKColors.White, width)])
            {
                using var paint = new SKPaint { Color = color, Style = SKPaintStyle.Stroke, StrokeWidth = stroke, IsAntialias = true };
                canvas.DrawRect(edges, paint);
            }
        }
        using var png = bitmap.Encode(SKEncodedImageFormat.Png, 100);
        using var file = File.Create(Path.Combine(_folder, Name(path)));
        png.SaveTo(file);
    }

    // Pictures of several folders may have the same name.
    private string Name(string path)
    {
        var name = Path.GetFileNameWithoutExtension(path);
        for (var n = 2; !_names.Add(name); n++) name = string.Create(CultureInfo.InvariantCulture, $"{Path.GetFileNameWithoutExtension(path)}-{n}");
        return name + ".png";
    }

    private static string Line(string text) => text.ReplaceLineEndings(" ");

    private static string? Show(BoundingBox? box) => box is { } b
        ? string.Create(CultureInfo.InvariantCulture, $"x {b.X0:0} to {b.X1:0}, y {b.Y0:0} to {b.Y1:0}") : null;
}
