using System.Text;

namespace MambaVL.Metrics;

/// <summary>The answer normalisation of the VQA challenge's server (EvalAI): before two answers are compared, case,
/// punctuation, articles, number words and missing apostrophes are made alike.</summary>
/// <remarks>
/// The facts are those of EvalAIAnswerProcessor in facebookresearch/mmf, which Mamba-VL's authors evaluate with, and of VQA's
/// own vqaEval.py. Its ways are kept: <c>what's</c> becomes <c>what 's</c> (but <c>whats</c> becomes <c>what's</c>), and
/// <c>none</c> is the number <c>0</c>. Deviation: it removes the first 32 full stops of a text only, by mistake; this, all.
/// </remarks>
public static class AnswerNormalizer
{
    // Commas and question marks are gone before.
    private const string Punctuation = ";/[]\"{}()=+\\_-><@`!";

    private static readonly HashSet<string> s_articles = ["a", "an", "the"];

    private static readonly Dictionary<string, string> s_numbers = new(StringComparer.Ordinal)
    {
        ["none"] = "0", ["zero"] = "0", ["one"] = "1", ["two"] = "2", ["three"] = "3", ["four"] = "4", ["five"] = "5",
        ["six"] = "6", ["seven"] = "7", ["eight"] = "8", ["nine"] = "9", ["ten"] = "10",
    };

    // As it is found > as it is written. Two entries of the reference's table are left out that change nothing (let's and
    // she's), and four that begin with a capital I, which no text has by then (Im, Ive, Id've, I'dve).
    private static readonly Dictionary<string, string> s_contractions = """
        aint>ain't arent>aren't cant>can't couldve>could've couldnt>couldn't couldn'tve>couldn't've
        couldnt've>couldn't've didnt>didn't doesnt>doesn't dont>don't hadnt>hadn't hadnt've>hadn't've
        hadn'tve>hadn't've hasnt>hasn't havent>haven't hed>he'd hed've>he'd've he'dve>he'd've hes>he's howd>how'd
        howll>how'll hows>how's isnt>isn't itd>it'd itd've>it'd've it'dve>it'd've itll>it'll maam>ma'am
        mightnt>mightn't mightnt've>mightn't've mightn'tve>mightn't've mightve>might've mustnt>mustn't mustve>must've
        neednt>needn't notve>not've oclock>o'clock oughtnt>oughtn't ow's'at>'ow's'at 'ows'at>'ow's'at
        'ow'sat>'ow's'at shant>shan't shed've>she'd've she'dve>she'd've shouldve>should've shouldnt>shouldn't
        shouldnt've>shouldn't've shouldn'tve>shouldn't've somebody'd>somebodyd somebodyd've>somebody'd've
        somebody'dve>somebody'd've somebodyll>somebody'll somebodys>somebody's someoned>someone'd
        someoned've>someone'd've someone'dve>someone'd've someonell>someone'll someones>someone's
        somethingd>something'd somethingd've>something'd've something'dve>something'd've somethingll>something'll
        thats>that's thered>there'd thered've>there'd've there'dve>there'd've therere>there're theres>there's
        theyd>they'd theyd've>they'd've they'dve>they'd've theyll>they'll theyre>they're theyve>they've twas>'twas
        wasnt>wasn't wed've>we'd've we'dve>we'd've weve>we've werent>weren't whatll>what'll whatre>what're
        whats>what's whatve>what've whens>when's whered>where'd wheres>where's whereve>where've whod>who'd
        whod've>who'd've who'dve>who'd've wholl>who'll whos>who's whove>who've whyll>why'll whyre>why're whys>why's
        wont>won't wouldve>would've wouldnt>wouldn't wouldnt've>wouldn't've wouldn'tve>wouldn't've yall>y'all
        yall'll>y'all'll y'allll>y'all'll yall'd've>y'all'd've y'alld've>y'all'd've y'all'dve>y'all'd've youd>you'd
        youd've>you'd've you'dve>you'd've youll>you'll youre>you're youve>you've
        """.Split((char[]?)null, StringSplitOptions.RemoveEmptyEntries).Select(e => e.Split('>')).ToDictionary(e => e[0], e => e[1], StringComparer.Ordinal);

    /// <summary>The normalised answer: <c>The two dogs!</c> is <c>2 dogs</c>. It may be empty.</summary>
    /// <param name="answer">Any text; none is an error.</param>
    public static string Normalize(string answer)
    {
        ArgumentNullException.ThrowIfNull(answer);
        var text = answer.ToLowerInvariant().Replace(",", "", StringComparison.Ordinal).Replace("?", "", StringComparison.Ordinal)
            .Replace("'s", " 's", StringComparison.Ordinal).Replace('\n', ' ').Replace('\t', ' ').Trim();
        var words = WithoutPunctuation(text).Split((char[]?)null, StringSplitOptions.RemoveEmptyEntries)
            .Select(word => s_numbers.GetValueOrDefault(word, word))
            .Where(word => !s_articles.Contains(word))
            .Select(word => s_contractions.GetValueOrDefault(word, word));
        return string.Join(' ', words);
    }

    // A mark that stands beside a space anywhere in the text goes, wherever it is in it; one that does not becomes a space.
    // A full stop stays before a digit.
    private static string WithoutPunctuation(string text)
    {
        var marked = text;
        foreach (var mark in Punctuation)
        {
            var besideSpace = text.Contains($"{mark} ", StringComparison.Ordinal) || text.Contains($" {mark}", StringComparison.Ordinal);
            marked = marked.Replace(mark.ToString(), besideSpace ? "" : " ", StringComparison.Ordinal);
        }
        var result = new StringBuilder(marked.Length);
        for (var i = 0; i < marked.Length; i++)
            if (marked[i] != '.' || (i + 1 < marked.Length && char.IsDigit(marked[i + 1]))) result.Append(marked[i]);
        return result.ToString();
    }
}
