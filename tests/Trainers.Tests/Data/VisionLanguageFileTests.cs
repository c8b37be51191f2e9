using System.Text;
using MambaVL.Transforms;
using Microsoft.ML;
using Microsoft.ML.Data;

namespace MambaVL.Tests.Data;

public sealed class VisionLanguageFileTests : IDisposable
{
    private const string Caption = """{"image": "a.png", "task": "Captioning", "target": "A cat."}""";

    private static readonly MLContext s_ml = new(seed: 1);

    private readonly DirectoryInfo _folder = Directory.CreateTempSubdirectory("mambavl-data-");

    public void Dispose() => _folder.Delete(recursive: true);

    [Fact]
    public void Rows_come_as_they_are_written()
    {
        var data = Load(
            Caption,
            """{"image": "sub/b.png", "task": "MultipleChoice", "question": "Which?", "choices": ["cat", "Ü \" \\ 猫 🐈"], "target": "Ü \" \\ 猫 🐈", "kind": "what"}""",
            """{"image": "c.png", "task": "Grounding", "question": "the cat", "box": [0, 1.5, 10, 20], "id": 7, "target": null}""");
        var rows = Rows(data);
        rows.Select(r => r.Image).Should().Equal(Full("a.png"), Full("sub/b.png"), Full("c.png"));
        rows.Select(r => r.Task).Should().Equal("Captioning", "MultipleChoice", "Grounding");
        rows.Select(r => r.Question).Should().Equal("", "Which?", "the cat");
        rows.Select(r => r.Target).Should().Equal("A cat.", "Ü \" \\ 猫 🐈", "");
        rows.Select(r => string.Join("|", r.Choices)).Should().Equal("", "cat|Ü \" \\ 猫 🐈", "");
        rows.Select(r => string.Join("|", r.Answers)).Should().Equal("A cat.", "Ü \" \\ 猫 🐈", "");
        rows.Select(r => r.Kind).Should().Equal("", "what", "");
        rows.Select(r => r.Box.ToBoundingBox()).Should().Equal(null, null, new MambaVL.Prompts.BoundingBox(0, 1.5, 10, 20));
        rows[0].Box.Should().OnlyContain(edge => float.IsNaN(edge)).And.HaveCount(4);
    }

    [Theory]
    [InlineData("\n")]
    [InlineData("\r\n")]
    [InlineData("\n\n \t \n")]
    [InlineData("\r\n\r\n")]
    public void Line_ends_blank_lines_and_a_mark_at_the_start_do_not_matter(string end)
    {
        File.WriteAllText(Path, "\uFEFF" + Caption + end + Caption, new UTF8Encoding(false));
        Rows(Load()).Should().HaveCount(2);
        File.WriteAllText(Path, Caption + end + Caption + end, new UTF8Encoding(false));
        Rows(Load()).Should().HaveCount(2);
        File.WriteAllText(Path, "");
        Rows(Load()).Should().BeEmpty();
    }

    [Fact]
    public void Lines_of_any_length_come_whole()
    {
        // Around the size of the reader's buffer, and far beyond.
        int[] lengths = [65_535 - Caption.Length, 65_536 - Caption.Length, 65_537, 200_000, 0, 1];
        File.WriteAllLines(Path, lengths.Select(n => Caption.Replace("A cat.", "A cat." + new string('x', n))));
        Rows(Load()).Select(r => r.Target.Length - 6).Should().Equal(lengths);
    }

    [Theory]
    [InlineData("{", "no JSON at byte 1")]
    [InlineData("[1]", "found [1]; expected an object")]
    [InlineData("""{"image": "a", "image": "b", "task": "Captioning"}""", "no JSON")]
    [InlineData("""{"task": "Captioning"}""", "found no 'image'")]
    [InlineData("""{"image": 3, "task": "Captioning"}""", "found 'image' 3; expected a text")]
    [InlineData("""{"image": "a\u0000", "task": "Captioning"}""", "no path")]
    [InlineData("""{"image": "a"}""", "found no 'task'")]
    [InlineData("""{"image": "a", "task": "captioning"}""", "found the task 'captioning'; expected one of Captioning, QuestionAnswering")]
    [InlineData("""{"image": "a", "task": "GroundedCaptioning"}""", "found the task 'GroundedCaptioning'")]
    [InlineData("""{"image": "a", "task": "1"}""", "found the task '1'")]
    [InlineData("""{"image": "a", "task": "QuestionAnswering", "question": " "}""", "found no 'question'")]
    [InlineData("""{"image": "a", "task": "Grounding", "question": "x", "target": "y"}""", "the target of the task Grounding is 'box'")]
    [InlineData("""{"image": "a", "task": "MultipleChoice", "question": "x"}""", "found 0 choices")]
    [InlineData("""{"image": "a", "task": "Captioning", "choices": ["x"]}""", "found 1 choices; the task Captioning takes none")]
    [InlineData("""{"image": "a", "task": "MultipleChoice", "question": "x", "choices": ["y", 1]}""", "found 1 among the 'choices'")]
    [InlineData("""{"image": "a", "task": "MultipleChoice", "question": "x", "choices": "y"}""", "expected a list of texts")]
    [InlineData("""{"image": "a", "task": "MultipleChoice", "question": "x", "choices": ["y"], "target": "Y"}""", "found the target 'Y'; expected one of the choices 'y'")]
    [InlineData("""{"image": "a", "task": "ImageTextMatch", "question": "x", "target": "maybe"}""", "found the target 'maybe'; expected True or False")]
    [InlineData("""{"image": "a", "task": "DenseCaptioning", "target": "x"}""", "found no 'box'")]
    [InlineData("""{"image": "a", "task": "Captioning", "box": [1, 2, 3]}""", "found 'box' [1, 2, 3]; expected [x0, y0, x1, y1]")]
    [InlineData("""{"image": "a", "task": "Captioning", "box": [5, 5, 3, 9]}""", "found 'box' [5, 5, 3, 9]")]
    [InlineData("""{"image": "a", "task": "Captioning", "box": [0, 0, 1e99, 9]}""", "found 'box'")]
    [InlineData("""{"image": "a", "task": "Captioning", "box": ["0", 0, 1, 9]}""", "found 'box'")]
    [InlineData("""{"image": "a", "task": "Captioning", "target": "\ud800"}""", "not Unicode")]
    public void A_line_that_is_no_row_is_named(string line, string message)
    {
        var data = Load(Caption, "", line, Caption);
        using var cursor = data.GetRowCursor(data.Schema);
        cursor.MoveNext().Should().BeTrue();
        cursor.Invoking(c => c.MoveNext()).Should().Throw<InvalidDataException>().Which.Message.Should().StartWith($"'{Path}', line 3: ").And.Contain(message);
    }

    [Fact]
    public void Bytes_that_are_no_text_are_named()
    {
        File.WriteAllBytes(Path, [.. "{\"image\": \"a\", \"task\": \"Captioning\", \"target\": \"\xFF\"}".Select(c => (byte)c)]);
        FluentActions.Invoking(() => Rows(Load())).Should().Throw<InvalidDataException>().WithMessage("*line 1*");
    }

    [Fact]
    public void A_file_without_line_ends_is_refused_before_it_fills_the_memory()
    {
        using (var file = File.Create(Path)) file.SetLength(1L << 36); // zeros that take no room on the disk
        FluentActions.Invoking(() => Rows(Load())).Should().Throw<InvalidDataException>().WithMessage("*line 1*without a line end*");
    }

    [Fact]
    public void A_file_that_is_not_there_is_named()
        => FluentActions.Invoking(() => s_ml.Data.LoadFromVisionLanguageFile(Path + "x")).Should().Throw<FileNotFoundException>().WithMessage($"*{Path}x*");

    [Fact]
    public void Cursors_are_independent_and_give_only_what_was_asked_for()
    {
        var data = Load([.. Enumerable.Range(0, 50).Select(i => Caption.Replace("A cat.", $"{i}"))]);
        using var one = data.GetRowCursor([data.Schema["Target"]]);
        using var two = data.GetRowCursor([data.Schema["Target"]]);
        var (a, b) = (one.GetGetter<ReadOnlyMemory<char>>(data.Schema["Target"]), two.GetGetter<ReadOnlyMemory<char>>(data.Schema["Target"]));
        ReadOnlyMemory<char> x = default, y = default;
        FluentActions.Invoking(() => a(ref x)).Should().Throw<InvalidOperationException>().WithMessage("*stands on no row*");
        for (var i = 0; i < 10; i++) one.MoveNext();
        two.MoveNext();
        a(ref x);
        b(ref y);
        (x.ToString(), y.ToString(), one.Position, two.Position).Should().Be(("9", "0", 9, 0));
        one.Invoking(c => c.GetGetter<ReadOnlyMemory<char>>(data.Schema["Image"])).Should().Throw<InvalidOperationException>().WithMessage("*'Image' was not asked for*");
        one.Invoking(c => c.GetGetter<float>(data.Schema["Target"])).Should().Throw<InvalidOperationException>();
        while (one.MoveNext()) { }
        one.MoveNext().Should().BeFalse();
    }

    [Fact]
    public void Mlnet_filters_shuffles_caches_and_saves_it()
    {
        var data = Load([.. Enumerable.Range(0, 30).Select(i => $$"""{"image": "{{i}}.png", "task": "Grounding", "question": "{{i}}", "box": [{{i}}, 0, 100, 9]}""")]);
        s_ml.Data.TakeRows(s_ml.Data.SkipRows(data, 5), 3).GetColumn<string>("Question").Should().Equal("5", "6", "7");
        s_ml.Data.ShuffleRows(data, seed: 3).GetColumn<string>("Question").Should().BeEquivalentTo(data.GetColumn<string>("Question")).And.NotBeInAscendingOrder();
        s_ml.Data.Cache(data).GetColumn<float[]>("Box").Select(b => b[0]).Should().Equal(Enumerable.Range(0, 30).Select(i => (float)i));
        using var stream = new MemoryStream();
        s_ml.Data.SaveAsBinary(data, stream);
        var file = System.IO.Path.Combine(_folder.FullName, "rows.idv");
        File.WriteAllBytes(file, stream.ToArray());
        Rows(s_ml.Data.LoadFromBinary(file)).Select(r => r.Image).Should().Equal(Rows(data).Select(r => r.Image));
    }

    private string Path => System.IO.Path.Combine(_folder.FullName, "rows.jsonl");

    private string Full(string image) => System.IO.Path.GetFullPath(System.IO.Path.Combine(_folder.FullName, image));

    private IDataView Load(params string[] lines)
    {
        if (lines.Length > 0) File.WriteAllLines(Path, lines);
        return s_ml.Data.LoadFromVisionLanguageFile(Path);
    }

    private static List<Row> Rows(IDataView data) => [.. s_ml.Data.CreateEnumerable<Row>(data, reuseRowObject: false)];

    private sealed class Row
    {
        public string Image { get; set; } = "";
        public string Task { get; set; } = "";
        public string Question { get; set; } = "";
        public string[] Choices { get; set; } = [];
        public string Target { get; set; } = "";
        public float[] Box { get; set; } = [];
        public string[] Answers { get; set; } = [];
        public string Kind { get; set; } = "";
    }
}
