using System.Text.Json.Nodes;
using MambaVL.Samples.Scenes;
using MambaVL.Transforms;
using Row = MambaVL.Samples.Scenes.Evaluation.Row;

namespace MambaVL.Tests.Scenes;

public class EvaluationTests
{
    private const string Left = "A cat to the left of two dogs on a green background.";

    [Fact]
    public void Captions_are_right_when_they_say_the_same_of_the_objects()
    {
        var captions = Measure(
            Caption("pair", Left, Left),
            Caption("pair", Left, "Two dogs to the right of a cat on a red background."),
            Caption("pair", Left, "A dog to the left of two cats on a green background."),
            Caption("line", "From left to right: a cat, a dog and a car.", "From left to right: a cat, a dog and a car."),
            Caption("line", "From left to right: a cat, a dog and a car.", "nothing that can be read"))["captioning"]!;
        Number(captions, "objectsAndRelation").Should().BeApproximately(3 / 5.0, 1e-9);
        Number(captions, "background").Should().BeApproximately(2 / 3.0, 1e-4);
        Number(captions["byKind"]!["pair"]!, "accuracy").Should().BeApproximately(2 / 3.0, 1e-4);
        Number(captions["byKind"]!["line"]!, "rows").Should().Be(2);
    }

    [Fact]
    public void Captions_of_other_data_have_words_alone()
    {
        var captions = Measure(Caption("", "A man rides a wave.", "A man rides a wave."))["captioning"]!;
        captions["objectsAndRelation"].Should().BeNull();
        Number(captions, "bleu4").Should().BeApproximately(1, 1e-6);
    }

    [Fact]
    public void Answers_and_choices_are_counted_in_all_and_by_kind()
    {
        var result = Measure(
            Answer("QuestionAnswering", "count", "two", "Two"), Answer("QuestionAnswering", "count", "two", "three"), Answer("QuestionAnswering", "color", "red", "red."),
            Answer("MultipleChoice", "what", "cat", "cat"), Answer("MultipleChoice", "what", "cat", ""));
        Number(result, "rows").Should().Be(5);
        Number(result["questionAnswering"]!, "accuracy").Should().BeApproximately(2 / 3.0, 1e-4);
        Number(result["questionAnswering"]!["byKind"]!["count"]!, "accuracy").Should().Be(0.5);
        Number(result["questionAnswering"]!["byKind"]!["color"]!, "accuracy").Should().Be(1);
        Number(result["multipleChoice"]!, "accuracy").Should().Be(0.5);
    }

    [Fact]
    public void Boxes_and_matches_are_measured()
    {
        var result = Measure(
            Box([0, 0, 10, 10], [0, 0, 10, 9]), Box([0, 0, 10, 10], [5, 0, 15, 10]), Box([0, 0, 10, 10], null),
            Answer("ImageTextMatch", "caption", "True", "True"), Answer("ImageTextMatch", "caption", "False", "True"), Answer("ImageTextMatch", "statement", "False", "False"), Answer("ImageTextMatch", "statement", "True", ""));
        Number(result["grounding"]!, "accuracy").Should().BeApproximately(1 / 3.0, 1e-4);
        Number(result["grounding"]!, "meanIou").Should().BeApproximately((0.9 + (1 / 3.0)) / 3, 1e-4);
        Number(result["grounding"]!, "unreadable").Should().BeApproximately(1 / 3.0, 1e-4);
        Number(result["imageTextMatch"]!, "accuracy").Should().Be(0.75);
        Number(result["imageTextMatch"]!, "unreadable").Should().Be(0.25);
    }

    [Fact]
    public void Perfect_answers_to_every_row_of_the_generator_score_one()
    {
        var result = Measure([.. Made.Scenes(Splits.Test, 60).SelectMany((s, i) => s.Rows.Select(r => new Row
        {
            Image = $"{i}", Task = r.Task.ToString(), Kind = r.Kind, Target = r.Target, Answers = r.Target.Length > 0 ? [r.Target] : [], Said = r.Target,
            Box = Edges(r.Box), SaidBox = Edges(r.Box), IsReadable = r.Box is not null,
        }))]);
        Number(result["captioning"]!, "objectsAndRelation").Should().Be(1);
        foreach (var task in (string[])["questionAnswering", "multipleChoice", "grounding", "imageTextMatch"]) Number(result[task]!, "accuracy").Should().Be(1);

        static float[] Edges(PixelBox? box) => BoxColumn.Write(box is { } b ? new(b.X0, b.Y0, b.X1, b.Y1) : null);
    }

    private static JsonObject Measure(params Row[] rows) => Evaluation.Measure(rows);

    private static double Number(JsonNode node, string name) => double.Parse(node[name]!.ToJsonString(), System.Globalization.CultureInfo.InvariantCulture);

    private static Row Caption(string kind, string truth, string said) => Answer("Captioning", kind, truth, said);

    private static Row Answer(string task, string kind, string truth, string said)
        => new() { Image = "a", Task = task, Kind = kind, Target = truth, Answers = [truth], Said = said, Box = BoxColumn.Write(null), SaidBox = BoxColumn.Write(null) };

    private static Row Box(float[] truth, float[]? said)
        => new() { Image = "a", Task = "Grounding", Kind = "name", Box = truth, SaidBox = said ?? BoxColumn.Write(null), IsReadable = said is not null };
}
