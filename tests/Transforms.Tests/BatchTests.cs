using MambaVL.Tests.Models;
using MambaVL.Transforms;
using Microsoft.ML;
using Microsoft.ML.Data;
using TorchSharp;

namespace MambaVL.Tests;

public sealed class BatchTests : IDisposable
{
    private readonly Pictures _pictures = new(7);
    private readonly MLContext _ml = new(1);
    private readonly VisionLanguageModel _model = TinyVisionLanguage.Create(TinyVisionLanguage.NeoX);

    public void Dispose()
    {
        _model.Dispose();
        _pictures.Dispose();
    }

    [Fact]
    public void EveryBatchSizeGivesTheSameRowsInOrder()
    {
        var expected = Answers(1);
        expected.Distinct().Count().Should().BeGreaterThan(1);
        foreach (var size in new int?[] { 2, 3, 7, 20, null }) Answers(size).Should().Equal(expected, $"the batch size is {size}");

        List<string> Answers(int? size)
        {
            var data = _pictures.Data(_ml);
            var result = _ml.Transforms.AnswerQuestions("Answer", "Path", "Question", _model, Pictures.Short with { BatchSize = size }).Fit(data).Transform(data);
            return [.. Pictures.Texts(result, "Answer").Zip(result.GetColumn<string>("Path"), (a, p) => $"{p}: {a}")];
        }
    }

    [Fact]
    public void SeveralThreadsGiveTheSameRows()
    {
        var data = _pictures.Data(_ml);
        var transformer = Caption(2).Fit(data);
        var result = transformer.Transform(data);
        var expected = Pictures.Texts(result, "Caption");
        var found = new List<string>[4];
        Parallel.For(0, found.Length, i => found[i] = Pictures.Texts(result, "Caption"));
        found.Should().AllSatisfy(f => f.Should().Equal(expected));

        var engines = new List<string>[4];
        Parallel.For(0, engines.Length, i =>
        {
            // The transformer is shared, so no engine may take it with it.
            using var engine = _ml.Model.CreatePredictionEngine<Example, Captioned>(transformer, new PredictionEngineOptions { OwnsTransformer = false });
            engines[i] = [.. _pictures.Examples.Select(e => engine.Predict(e).Text)];
        });
        engines.Should().AllSatisfy(e => e.Should().Equal(engines[0]));
    }

    [Fact]
    public void ShufflingChangesTheOrderAndNoAnswer()
    {
        var data = _ml.Data.Cache(_pictures.Data(_ml));
        var result = Caption(3).Fit(data).Transform(data);
        var shuffled = _ml.Data.ShuffleRows(result, seed: 3);
        Rows(shuffled).Should().BeEquivalentTo(Rows(result));
        Rows(shuffled).Should().NotEqual(Rows(result));

        static List<string> Rows(IDataView data) => [.. Pictures.Texts(data, "Caption").Zip(data.GetColumn<string>("Path"), (c, p) => p + c)];
    }

    [Fact]
    public void ASetOfCursorsGivesTheRowsOfOneCursor()
    {
        var file = System.IO.Path.Combine(_pictures.Folder, "rows.tsv");
        File.WriteAllLines(file, Enumerable.Range(0, 40).Select(i => _pictures.Examples[i % 7].Path));
        var data = _ml.Data.LoadFromTextFile(file, [new TextLoader.Column("Path", DataKind.String, 0)]);
        var result = Caption(4).Fit(data).Transform(data);
        var columns = result.Schema.Where(c => c.Name is "Caption.Ids" or "Path").ToList();
        var expected = Rows(result.GetRowCursor(columns));
        var cursors = result.GetRowCursorSet(columns, 3);
        var found = new Dictionary<DataViewRowId, string>();
        foreach (var cursor in cursors)
            foreach (var (id, row) in Rows(cursor)) found.Add(id, row);
        found.Should().BeEquivalentTo(expected);

        Dictionary<DataViewRowId, string> Rows(DataViewRowCursor cursor)
        {
            using var _ = cursor;
            var rows = new Dictionary<DataViewRowId, string>();
            var getIds = cursor.GetGetter<VBuffer<int>>(columns.Single(c => c.Name == "Caption.Ids"));
            var getId = cursor.GetIdGetter();
            VBuffer<int> ids = default;
            DataViewRowId id = default;
            while (cursor.MoveNext())
            {
                getId(ref id);
                getIds(ref ids);
                rows.Add(id, string.Join(" ", ids.DenseValues()));
            }
            return rows;
        }
    }

    [Fact]
    public void ACursorWithoutOurColumnsReadsNoRowAheadAndNeverRunsTheModel()
    {
        var read = 0;
        var data = _ml.Data.LoadFromEnumerable(_pictures.Examples.Select(e =>
        {
            read++;
            return e;
        }));
        var result = Caption(4).Fit(data).Transform(data);
        _model.Vision.Dispose(); // whatever runs it, fails
        read = 0;
        using (var cursor = result.GetRowCursor([result.Schema["Path"]]))
        {
            cursor.MoveNext().Should().BeTrue();
            read.Should().Be(1);
            cursor.IsColumnActive(result.Schema["Caption"]).Should().BeFalse();
            cursor.Invoking(c => c.GetGetter<ReadOnlyMemory<char>>(result.Schema["Caption"])).Should().Throw<InvalidOperationException>().WithMessage("*Caption*");
        }

        read = 0;
        using (var cursor = result.GetRowCursor([result.Schema["Path"], result.Schema["Caption"]]))
        {
            var getPath = cursor.GetGetter<ReadOnlyMemory<char>>(result.Schema["Path"]);
            ReadOnlyMemory<char> path = default;
            for (var i = 0; cursor.MoveNext(); i++)
            {
                getPath(ref path); // nobody asks for the caption, so no row fails
                path.ToString().Should().Be(_pictures.Examples[i].Path);
                if (i == 0) read.Should().Be(4);
            }
        }
    }

    [Fact]
    public void ImagesThatArePassedOnAreReadOneByOne()
    {
        var data = _pictures.Data(_ml);
        var pipeline = _ml.Transforms.LoadImages("Image", null, "Path").Append(_ml.Transforms.CaptionImages("Caption", "Image", _model, Pictures.Short with { BatchSize = 4 }));
        var result = pipeline.Fit(data).Transform(data);
        var expected = Pictures.Texts(result, "Caption");
        using var cursor = result.GetRowCursor(result.Schema);
        var getImage = cursor.GetGetter<MLImage>(result.Schema["Image"]);
        var getText = cursor.GetGetter<VBuffer<int>>(result.Schema["Caption.Ids"]);
        VBuffer<int> ids = default;
        MLImage image = null!;
        for (var i = 0; cursor.MoveNext(); i++)
        {
            getText(ref ids);
            getImage(ref image);
            image.Width.Should().Be(30 + i);
            expected[i].Should().EndWith($"[{string.Join(", ", ids.DenseValues().ToArray())}]");
        }
        image?.Dispose();
    }

    [Fact]
    public void NoTensorOutlivesItsCursor()
    {
        var data = _pictures.Data(_ml);
        var result = Caption(3).Fit(data).Transform(data);
        Pictures.Texts(result, "Caption");
        Pictures.CollectEarlierTests();
        var before = torch.Tensor.TotalCount;
        Pictures.Texts(result, "Caption");
        using (var cursor = result.GetRowCursor(result.Schema))
        {
            var get = cursor.GetGetter<ReadOnlyMemory<char>>(result.Schema["Caption"]);
            ReadOnlyMemory<char> caption = default;
            for (var i = 0; i < 4; i++) cursor.MoveNext().Should().BeTrue();
            get(ref caption);
            torch.Tensor.TotalCount.Should().Be(before);
        }
        torch.Tensor.TotalCount.Should().Be(before);
    }

    private VisionLanguageEstimator Caption(int batchSize) => _ml.Transforms.CaptionImages("Caption", "Path", _model, Pictures.Short with { BatchSize = batchSize });

    private sealed class Captioned
    {
        [ColumnName("Caption.Text")]
        public string Text { get; set; } = "";
    }
}
