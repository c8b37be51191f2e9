namespace MambaVL.Metrics;

/// <summary>Gathers captions and their references, then scores them: CIDEr needs all references first.</summary>
internal sealed class CaptionScorer
{
    private readonly Dictionary<string, int> _numbers = new(StringComparer.Ordinal);
    private readonly List<(int[] Caption, int[][] References)> _rows = [];

    public int Count => _rows.Count;

    /// <summary>Adds a row; each reference has a word at least, the caption may have none.</summary>
    public void Add(IReadOnlyList<string> caption, IReadOnlyList<IReadOnlyList<string>> references)
        => _rows.Add((Numbers(caption), [.. references.Select(Numbers)]));

    public CaptionMetrics Score()
    {
        var cider = new Cider();
        foreach (var (_, references) in _rows) cider.Add(Count(references));

        var corpus = new Bleu();
        var scores = new CaptionScores[_rows.Count];
        for (var i = 0; i < scores.Length; i++)
        {
            var (words, references) = _rows[i];
            var (caption, counted) = (new NGrams(words), Count(references));
            var bleu = Bleu.Of(caption, counted);
            corpus.Add(bleu);
            var b = bleu.Scores();
            scores[i] = new(b[0], b[1], b[2], b[3], RougeL.Score(words, references), cider.Score(caption, counted));
        }
        var all = corpus.Scores();
        return new()
        {
            Bleu1 = all[0], Bleu2 = all[1], Bleu3 = all[2], Bleu4 = all[3],
            RougeL = scores.Average(s => s.RougeL),
            Cider = scores.Average(s => s.Cider),
            PerRow = scores.AsReadOnly(),
        };

        static NGrams[] Count(int[][] sentences) => [.. sentences.Select(s => new NGrams(s))];
    }

    private int[] Numbers(IReadOnlyList<string> words)
    {
        var numbers = new int[words.Count];
        for (var i = 0; i < numbers.Length; i++)
        {
            if (!_numbers.TryGetValue(words[i], out numbers[i]))
                _numbers.Add(words[i], numbers[i] = _numbers.Count + 1);
        }
        return numbers;
    }
}
