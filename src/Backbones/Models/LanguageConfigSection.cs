using System.Globalization;
using System.Text.Json;

namespace MambaVL.Models;

/// <summary>An object of a configuration file. A key is absent (null counts as absent), or of the expected kind and
/// range; else the error names file, key, what was found and what was expected.</summary>
internal readonly struct LanguageConfigSection
{
    private readonly string _file, _prefix;
    private readonly JsonElement _object; // undefined: the section is not there, and every key is absent

    public LanguageConfigSection(string file, JsonElement root) : this(file, "", root)
    {
        if (root.ValueKind != JsonValueKind.Object)
            throw new InvalidDataException($"{file} holds {Show(root)}; expected an object.");
    }

    private LanguageConfigSection(string file, string prefix, JsonElement section)
        => (_file, _prefix, _object) = (file, prefix, section);

    public bool Has(string key) => Find(key) is not null;

    public bool IsText(string key, string value) => Find(key) is { ValueKind: JsonValueKind.String } e && e.ValueEquals(value);

    public string? Text(string key)
        => Find(key) is not { } e ? null : e.ValueKind == JsonValueKind.String ? e.GetString() : throw Wrong(key, e, "a text");

    public bool? Flag(string key)
        => Find(key) is not { } e ? null
            : e.ValueKind is JsonValueKind.True or JsonValueKind.False ? e.GetBoolean() : throw Wrong(key, e, "true or false");

    public long? Size(string key, long most, long least = 1)
        => Find(key) is not { } e ? null
            : e.ValueKind == JsonValueKind.Number && e.TryGetInt64(out var value) && value >= least && value <= most ? value
            : throw Wrong(key, e, $"a whole number from {least} to {most}");

    public long RequiredSize(string key, long most)
        => Size(key, most) ?? throw Error($"'{_prefix}{key}' is missing; expected a whole number.");

    public double? Number(string key, double above, double most)
        => Find(key) is not { } e ? null
            : e.ValueKind == JsonValueKind.Number && e.TryGetDouble(out var value) && value > above && value <= most ? value
            : throw Wrong(key, e, string.Create(CultureInfo.InvariantCulture, $"a number above {above}, at most {most}"));

    public LanguageConfigSection Section(string key)
        => Find(key) is not { } e ? new(_file, $"{_prefix}{key}.", default)
            : e.ValueKind == JsonValueKind.Object ? new(_file, $"{_prefix}{key}.", e) : throw Wrong(key, e, "an object");

    /// <summary>Whether a key is absent or an empty list.</summary>
    public bool IsEmptyList(string key)
        => Find(key) is not { } e || (e.ValueKind == JsonValueKind.Array && e.GetArrayLength() == 0);

    /// <summary>Refuses what the models here cannot do.</summary>
    public void MustBe(bool holds, string key, string expected)
    {
        if (!holds) throw Wrong(key, Find(key) ?? default, expected);
    }

    /// <summary>Checks what a key gives against what a tensor has.</summary>
    public void MustAgree(string key, long? value, long actual, string tensor)
    {
        if (value is { } v && v != actual) throw Error($"'{_prefix}{key}' asks for {v}, but '{tensor}' has {actual}.");
    }

    /// <summary>Checks a switch for a bias against whether there is one.</summary>
    public void MustAgree(string key, bool isThere, string tensor)
    {
        if (Flag(key) is { } flag && flag != isThere)
            throw Error($"'{_prefix}{key}' is {(flag ? "true" : "false")}, but the checkpoint has {(isThere ? "a" : "no")} " +
                $"'{tensor}'.");
    }

    /// <summary>The value of one of two names of the same thing; an error where both are there and differ.</summary>
    public double? OneOf(double? value, string key, double? other, string otherKey)
        => value is null || other is null || value == other ? value ?? other
            : throw Error(string.Create(CultureInfo.InvariantCulture,
                $"'{key}' is {value}, but '{otherKey}' is {other}; expected the same."));

    public InvalidDataException Error(string message) => new($"{_file}: {message}");

    private InvalidDataException Wrong(string key, JsonElement e, string expected)
        => Error($"'{_prefix}{key}' is {Show(e)}; expected {expected}.");

    private JsonElement? Find(string key)
        => _object.ValueKind == JsonValueKind.Object && _object.TryGetProperty(key, out var e)
            && e.ValueKind != JsonValueKind.Null ? e : null;

    private static string Show(JsonElement e)
    {
        if (e.ValueKind == JsonValueKind.Undefined) return "absent";
        var text = e.GetRawText();
        return text.Length <= 60 ? text : $"{text[..57]}...";
    }
}
