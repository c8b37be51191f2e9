using CsCheck;
using MambaVL.Prompts;

namespace MambaVL.Tests.Prompts;

public class UnicodeCompositionTests
{
    private static readonly bool RuntimeComposes = "e\u0301".Normalize() == "\u00E9";

    [SkippableFact]
    public void EveryCharacterIsComposedAsTheRuntimeDoes()
    {
        Skip.IfNot(RuntimeComposes, "The runtime has no ICU to compare with (InvariantGlobalization).");
        foreach (var c in Characters())
            foreach (var text in new[] { c, "e" + c, c + "\u0301", c + "\u0323\u0301", "a\u0301" + c, c + "\u1161", c + "\u11A8" })
                if (UnicodeComposition.Compose(text) != text.Normalize())
                    UnicodeComposition.Compose(text).Should().Be(text.Normalize(), "U+{0:X}", char.ConvertToUtf32(c, 0));
    }

    [SkippableFact]
    public void RunsOfMarksAreComposedAsTheRuntimeDoes()
    {
        Skip.IfNot(RuntimeComposes, "The runtime has no ICU to compare with (InvariantGlobalization).");
        Gen.OneOfConst("a", "e", "o", "\u0301", "\u0300", "\u0323", "\u0328", "\u031B", "\u0345", "\u1100", "\u1161", "\u11A8", "가", "각", "Å", "ﬁ",
                "\u05B4", "\u05BC", "\u0327", "\u0344", "\u212B", "\u0958", "\u1D15E", "𝅗𝅥", "x")
            .List[0, 12].Select(string.Concat).Sample(text => UnicodeComposition.Compose(text) == text.Normalize(), iter: 20_000);
    }

    // Blocks that got no new marks since the tables' version, so that a newer ICU agrees; ideographs and Hangul by samples.
    private static IEnumerable<string> Characters() => Enumerable.Range(0, 0x30000)
        .Where(c => c < 0x10D00 || c is >= 0x11000 and < 0x11200 or >= 0x1D100 and < 0x1D300 or >= 0x2F800 and < 0x2FA20)
        .Where(c => c is not (0x897 or 0xECE or >= 0x1ACF and <= 0x1AEB or >= 0xD800 and <= 0xDFFF))
        .Where(c => c is not (>= 0xFDD0 and <= 0xFDEF or 0xFFFE or 0xFFFF)) // string.Normalize throws for some of these
        .Where(c => c % 53 == 0 || c is not (>= 0x3400 and < 0xA000 or >= 0xAC00 and < 0xD7B0))
        .Select(char.ConvertFromUtf32);
}
