using System.Text;

namespace MambaVL.Prompts;

/// <summary>The printable character that stands for each byte in a byte-level vocabulary (GPT-2's table).</summary>
internal static class ByteAlphabet
{
    private static readonly char[] ToChar = MakeToChar();
    private static readonly Dictionary<char, byte> ToByte = Enumerable.Range(0, 256).ToDictionary(b => ToChar[b], b => (byte)b);

    public static char Char(byte b) => ToChar[b];

    /// <summary>Whether UTF-8 can hold the byte: 13 of the 256 never occur in it, and vocabularies leave them out.</summary>
    public static bool OccursInUtf8(byte b) => b is not (0xC0 or 0xC1 or >= 0xF5);

    /// <summary>The bytes that a token stands for: those of its characters, or, where one of these is not in the
    /// alphabet, the token's own UTF-8. This is what the tokenizers library does, for added tokens too.</summary>
    public static byte[] Bytes(string token)
    {
        var bytes = new byte[token.Length];
        for (var i = 0; i < token.Length; i++)
            if (!ToByte.TryGetValue(token[i], out bytes[i])) return Encoding.UTF8.GetBytes(token);
        return bytes;
    }

    // Printable Latin-1 stands for itself; the other bytes follow from U+0100 on.
    private static char[] MakeToChar()
    {
        var table = new char[256];
        var next = (char)0x100;
        for (var b = 0; b < 256; b++)
            table[b] = b is >= '!' and <= '~' or >= 0xA1 and <= 0xAC or >= 0xAE ? (char)b : next++;
        return table;
    }
}
