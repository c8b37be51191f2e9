using System.Text;
using System.Text.Json.Nodes;
using CsCheck;
using MambaVL.Prompts;

namespace MambaVL.Tests.Prompts;

public class TokenizerFileTests
{
    /// <summary>Part of the file, what to put there (JSON, or nothing to remove it), and what the message names.</summary>
    public static TheoryData<string, string, string> Changes => new()
    {
        { "model", "", "no 'model'" },
        { "model", "[]", "JSON array*as 'model'*expected a JSON object" },
        { "model.type", "\"WordPiece\"", "WordPiece*BPE" },
        { "model.type", "7", "7*'type' in model" },
        { "model.vocab", "", "no 'vocab'" },
        { "model.vocab", "[\"a\"]", "'vocab'*object" },
        { "model.vocab.a", "-1", "-1*model.vocab[\"a\"]*id" },
        { "model.vocab.a", "1.5", "1.5*id" },
        { "model.vocab.a", "\"7\"", "\"7\"*id" },
        { "model.vocab.a", "99999999999", "99999999999*id" },
        { "model.vocab.a", "2147483647", "2147483647*tokens" },
        { "model.vocab.a", "0", "id 0*several" },
        { "model.merges", "", "no 'merges'" },
        { "model.merges", "{}", "'merges'*array" },
        { "model.merges", "[\"a\"]", "merge 0*two tokens" },
        { "model.merges", "[\"a b c\"]", "\"a b c\"*two tokens" },
        { "model.merges", "[\"a  \"]", "two tokens" },
        { "model.merges", "[[\"a\"]]", "two tokens" },
        { "model.merges", "[[\"a\",7]]", "two tokens" },
        { "model.merges", "[7]", "7 as merge 0" },
        { "model.merges", "[\"Ġ t\",\"nowhere b\"]", "merge 1*'nowhere'" },
        { "model.merges", "[\"z z\"]", "'zz'*not in model.vocab" },
        { "model.unk_token", "\"<unk>\"", "unk_token*<unk>" },
        { "model.end_of_word_suffix", "\"</w>\"", "end_of_word_suffix" },
        { "model.dropout", "0.1", "dropout*0.1" },
        { "model.byte_fallback", "true", "byte_fallback" },
        { "model.ignore_merges", "\"yes\"", "ignore_merges*true or false" },
        { "normalizer", "{\"type\":\"NFKC\"}", "normalizer 'NFKC'*NFC" },
        { "normalizer", "{}", "no 'type' in normalizer" },
        { "normalizer", "7", "7 as normalizer" },
        { "pre_tokenizer", "null", "null as 'pre_tokenizer'" },
        { "pre_tokenizer", "{\"type\":\"Metaspace\"}", "Metaspace*ByteLevel" },
        { "pre_tokenizer.add_prefix_space", "1", "add_prefix_space*true or false" },
        { "decoder", "{\"type\":\"WordPiece\"}", "decoder 'WordPiece'*ByteLevel" },
        { "post_processor", "{\"type\":\"BertProcessing\"}", "post_processor 'BertProcessing'" },
        { "post_processor", "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}}]}", "TemplateProcessing" },
        { "added_tokens", "{}", "added_tokens*array" },
        { "added_tokens", "[7]", "7 as added_tokens[0]" },
        { "added_tokens", "[{\"id\":0}]", "no 'content' in added_tokens[0]" },
        { "added_tokens", "[{\"id\":1,\"content\":\"<|endoftext|>\"}]", "'<|endoftext|>' the id 1*contradicts" },
        { "added_tokens", "[{\"id\":7,\"content\":\"new\"}]", "'new' the id 7*contradicts" },
        { "added_tokens", "[{\"id\":900,\"content\":\"x\\ud800\"}]", "not valid JSON" },
        { "added_tokens", "[{\"id\":900,\"content\":\"n\",\"lstrip\":\"no\"}]", "added_tokens[0].lstrip*true or false" },
        { "added_tokens", "[{\"id\":2000000000,\"content\":\"new\"}]", "2000000000*tokens" },
    };

    [Theory]
    [MemberData(nameof(Changes))]
    public void AWrongPartIsNamed(string part, string json, string message)
    {
        var tree = TinyTokenizer.Tree();
        var names = part.Split('.');
        var parent = names[..^1].Aggregate((JsonNode)tree, (node, name) => node[name]!).AsObject();
        var text = TinyTokenizer.Write(Marked(tree, parent, names[^1], json)).Replace("\"@here\"", json);
        Refused(text, message);

        static JsonNode Marked(JsonObject tree, JsonObject parent, string name, string json)
        {
            if (json.Length == 0) parent.Remove(name);
            else parent[name] = "@here";
            return tree;
        }
    }

    [Theory]
    [InlineData("", "not valid JSON")]
    [InlineData("7", "7 as the file")]
    [InlineData("{", "not valid JSON")]
    [InlineData("{}", "no 'model'*tokenizers library")]
    [InlineData("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1,\"a\":2}}}", "not valid JSON*a*")]
    public void ADamagedFileIsNamed(string json, string message) => Refused(json, message);

    [Fact]
    public void ADeepFileIsRefused() => Refused(new string('[', 100_000), "not valid JSON");

    [Fact]
    public void ALongAddedTokenIsRefused()
    {
        var tree = TinyTokenizer.Tree();
        tree["added_tokens"]!.AsArray().Add(TinyTokenizer.Added(900, new('x', AddedTokens.MaxLength + 1), special: false));
        Refused(TinyTokenizer.Write(tree), "1025 characters");
    }

    [Fact]
    public void AHugeFileIsRefusedUnread()
    {
        var path = Path.Combine(Path.GetTempPath(), $"tokenizer-{Guid.NewGuid():N}.json");
        try
        {
            using (var file = File.Create(path)) file.SetLength(3L << 30);
            var before = GC.GetAllocatedBytesForCurrentThread();
            ((Action)(() => Tokenizer.Load(path))).Should().Throw<InvalidDataException>().WithMessage("*bytes; at most*");
            (GC.GetAllocatedBytesForCurrentThread() - before).Should().BeLessThan(1 << 20);
        }
        finally
        {
            File.Delete(path);
        }
    }

    [Fact]
    public void AMissingFileIsNamed()
        => ((Action)(() => Tokenizer.Load("/no/such/folder"))).Should().Throw<FileNotFoundException>().WithMessage("*/no/such/folder*tokenizer.json*");

    [Fact]
    public void WhatChangesNothingIsAccepted()
    {
        var tree = TinyTokenizer.Tree();
        tree["added_tokens"]!.AsArray().Add(TinyTokenizer.Added(900, "", special: false));
        tree["post_processor"] = JsonNode.Parse("{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"pair\":[]}");
        tree["model"]!.AsObject().Remove("type");
        tree["truncation"] = new JsonObject { ["max_length"] = 7 };
        TinyTokenizer.LoadText("\uFEFF" + TinyTokenizer.Write(tree)).Encode(" the").Should().HaveCount(1);
    }

    // Bytes changed, removed and doubled: a file is read or refused, and nothing else.
    [Fact]
    public void RandomDamageIsReadOrRefused()
    {
        var good = Encoding.UTF8.GetBytes(TinyTokenizer.Json());
        var change = Gen.Select(Gen.Int[0, good.Length - 1], Gen.Int[0, 3], Gen.OneOf(Gen.Byte, Gen.OneOfConst("{}[]\",:0-\\"u8.ToArray())));
        change.Array[1, 4].Sample(changes =>
        {
            var bytes = good.ToList();
            foreach (var (at, kind, value) in changes)
            {
                var i = at % bytes.Count;
                if (kind == 0) bytes[i] = value;
                else if (kind == 1) bytes.RemoveRange(i, Math.Min(value, bytes.Count - i));
                else if (kind == 2) bytes.Insert(i, value);
                else bytes.InsertRange(i, bytes.GetRange(i, Math.Min(64, bytes.Count - i)));
                if (bytes.Count == 0) return;
            }
            var path = Path.Combine(Path.GetTempPath(), $"tokenizer-{Environment.CurrentManagedThreadId}-{Environment.ProcessId}.json");
            File.WriteAllBytes(path, [.. bytes]);
            try
            {
                Tokenizer.Load(path).Encode("the image <|endoftext|>");
            }
            catch (InvalidDataException)
            {
            }
            finally
            {
                File.Delete(path);
            }
        }, iter: 1000);
    }

    private static void Refused(string json, string message)
        => ((Action)(() => TinyTokenizer.LoadText(json))).Should().Throw<InvalidDataException>().WithMessage($"*tokenizer-*.json'*{message}*");
}
