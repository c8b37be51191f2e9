using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Nodes;
using MambaVL.Prompts;

namespace MambaVL.Tests.Prompts;

/// <summary>A tokenizer.json of GPT-NeoX's kind with a few hundred tokens, for tests and tiny models.</summary>
/// <remarks>tests/data/tiny-tokenizer/tokenizer.json is <see cref="Json"/>, word for word; a test compares the two.</remarks>
internal static class TinyTokenizer
{
    public static readonly string Folder = Path.Combine(Fixtures.Repository, "tests/data/tiny-tokenizer");

    public static Tokenizer Load() => Tokenizer.Load(Folder);

    // Learnt on the prompts of the tasks; the last three make ### and && one token each.
    public const string Merges =
        "Ġ t, h e, Ġt he, o n, r e, Ġ a, i on, Ġ i, t ion, e s, e n, Ġ s, l e, Ġ c, r i, o r, m a, r o, p tion, h a, " +
        "e r, Ġi s, Ġ re, Ġ p, Ġ on, Ġ d, v i, vi d, vid e, ro vide, n g, g e, Ġi ma, Ġima ge, Ġd es, Ġdes c, Ġdesc ri, " +
        "Ġ o, Ġ f, Ġ b, w er, u e, s wer, q u, ng le, n swer, ha t, en t, ] ., P rovide, A nswer, Ġt ri, Ġtri a, " +
        "Ġtria ngle, Ġs qu, Ġsqu a, Ġsqua re, Ġs ha, Ġsha p, Ġre g, Ġreg ion, Ġre d, Ġp h, Ġon e, Ġo f, Ġf or, " +
        "Ġdescri ption, Ġc i, Ġci r, Ġcir c, Ġcirc le, Ġc a, Ġca ption, Ġb l, Ġbl ue, Ġa n, Ġan d, Ġ w, Ġ ma, Ġ le, " +
        "Ġ g, Ġ [, Ġ W, t er, s ent, sent en, senten c, sentenc e, s e, o w, l l, i t, i c, es tion, T he, 0 0, " +
        "# #, ## #, & &";

    /// <summary>The file as a tree, for tests that change a part of it.</summary>
    public static JsonObject Tree()
    {
        var vocabulary = new JsonObject { ["<|endoftext|>"] = 0, ["<|padding|>"] = 1 };
        foreach (var c in Enumerable.Range(0, 256).Select(b => ByteAlphabet.Char((byte)b)).Order()) Add(c.ToString());
        var merges = Merges.Split(", ");
        foreach (var merge in merges) Add(merge.Replace(" ", ""));

        var added = new JsonArray(Added(0, "<|endoftext|>", special: true), Added(1, "<|padding|>", special: true));
        foreach (var spaces in new[] { "    ", "   ", "  " }) added.Add(Added(vocabulary.Count + added.Count - 2, spaces, special: false));

        return new()
        {
            ["version"] = "1.0",
            ["truncation"] = null,
            ["padding"] = null,
            ["added_tokens"] = added,
            ["normalizer"] = new JsonObject { ["type"] = "NFC" },
            ["pre_tokenizer"] = ByteLevel(),
            ["post_processor"] = ByteLevel(),
            ["decoder"] = ByteLevel(),
            ["model"] = new JsonObject
            {
                ["type"] = "BPE",
                ["dropout"] = null,
                ["unk_token"] = null,
                ["continuing_subword_prefix"] = null,
                ["end_of_word_suffix"] = null,
                ["fuse_unk"] = false,
                ["vocab"] = vocabulary,
                ["merges"] = new JsonArray([.. merges.Select(m => (JsonNode)m)]),
            },
        };

        void Add(string token) => vocabulary[token] = vocabulary.Count;
    }

    public static JsonObject Added(int id, string content, bool special) => new()
    {
        ["id"] = id, ["content"] = content, ["single_word"] = false, ["lstrip"] = false, ["rstrip"] = false,
        ["normalized"] = !special, ["special"] = special,
    };

    public static string Json() => Write(Tree()) + "\n";

    public static string Write(JsonNode tree) => tree.ToJsonString(
        new JsonSerializerOptions { WriteIndented = true, IndentSize = 1, NewLine = "\n", Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping });

    /// <summary>Loads a changed tree from a temporary file.</summary>
    public static Tokenizer Load(JsonNode tree) => LoadText(Write(tree));

    public static Tokenizer LoadText(string json)
    {
        var path = Path.Combine(Path.GetTempPath(), $"tokenizer-{Guid.NewGuid():N}.json");
        File.WriteAllText(path, json);
        try
        {
            return Tokenizer.Load(path);
        }
        finally
        {
            File.Delete(path);
        }
    }

    private static JsonObject ByteLevel() => new() { ["type"] = "ByteLevel", ["add_prefix_space"] = false, ["trim_offsets"] = true };
}
