using MambaVL.Prompts;
using Microsoft.ML;

namespace MambaVL.Samples.Scenes;

/// <summary>A tokeniser for the texts of a data set.</summary>
internal static class SceneTokenizer
{
    // The words of scenes are few: these rows have all of them many times over.
    private const int RowsRead = 100_000;

    /// <summary>Learns it from the prompts and answers of the first rows.</summary>
    public static Tokenizer Train(MLContext ml, IDataView data, int vocabulary)
        => BytePairTrainer.Train(
            ml.Data.CreateEnumerable<Row>(ml.Data.TakeRows(data, RowsRead), reuseRowObject: true).SelectMany(row => Of(row).Turns.Select(t => t.Text)),
            new() { VocabularySize = vocabulary });

    private static Conversation Of(Row row) => Enum.Parse<VisionTask>(row.Task) switch
    {
        VisionTask.Captioning => Conversation.Caption(row.Target, row.Question.Length > 0 ? row.Question : null),
        VisionTask.QuestionAnswering => Conversation.Ask(row.Question, row.Target),
        VisionTask.MultipleChoice => Conversation.Choose(row.Question, row.Choices, Array.IndexOf(row.Choices, row.Target)),
        VisionTask.Grounding => Conversation.Locate(row.Question, new BoundingBox(0, 0, 1, 1)), // of numbers nothing is learnt
        VisionTask.ImageTextMatch => Conversation.Match(row.Question, row.Target == "True"),
        _ => Conversation.Chat([new(row.Question.Length > 0 ? row.Question : row.Target), new(row.Target, FromModel: true)]),
    };

    private sealed class Row
    {
        public string Task { get; set; } = "";

        public string Question { get; set; } = "";

        public string[] Choices { get; set; } = [];

        public string Target { get; set; } = "";
    }
}
