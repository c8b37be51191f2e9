using SkiaSharp;

namespace MambaVL.Training;

/// <summary>Letters and digits drawn as lines. A system need not have a font (Debian's container images have none, and Skia
/// then writes nothing at all), and a picture looks the same everywhere.</summary>
internal static class StrokeFont
{
    /// <summary>The height of a capital, in the units of the glyphs.</summary>
    private const float CapitalHeight = 6;

    private const float LetterSpace = 2, WordSpace = 4;

    // Each glyph is a few lines, each line pairs of digits x y: y = 0 at a capital's top, 2 at a small letter's, 6 on the
    // baseline, 8 at the lowest. A line of one point is a dot.
    private static readonly Dictionary<char, string> Glyphs = new()
    {
        ['0'] = "102031352616050110", ['1'] = "011016", ['2'] = "01103041420646", ['3'] = "011030414233 13334445361605",
        ['4'] = "36300444", ['5'] = "400002324345361605", ['6'] = "413010010516364544331304", ['7'] = "004016",
        ['8'] = "13020110304142331304051636454433", ['9'] = "423313020110304145361605",
        ['.'] = "06", [','] = "1607", [':'] = "03 06", ['-'] = "0333", ['+'] = "0343 2125", ['/'] = "0640", ['='] = "0242 0444", ['<'] = "310335", ['>'] = "013305",
        ['_'] = "0747", ['('] = "10010516", [')'] = "00111506", ['%'] = "4006 01 45", ['#'] = "1006 3026 0242 0444",
        ['a'] = "4332120305163645 4246", ['b'] = "0006 0312324345361605", ['c'] = "4332120305163645", ['d'] = "4046 4332120305163645",
        ['e'] = "04444332120305163645", ['f'] = "30201116 0232", ['g'] = "4332120305163645 4247381807", ['h'] = "0006 0312324346",
        ['i'] = "0206 00", ['j'] = "121708 10", ['k'] = "0006 320436", ['l'] = "0006", ['m'] = "0206 0312223336 3342526366",
        ['n'] = "0206 0312324346", ['o'] = "123243453616050312", ['p'] = "0208 0312324345361605", ['q'] = "4248 4332120305163645",
        ['r'] = "0206 031232", ['s'] = "43321203143445361605", ['t'] = "10152636 0232", ['u'] = "0205163645 4246", ['v'] = "022642",
        ['w'] = "0216335662", ['x'] = "0246 0642", ['y'] = "0205163645 4247381807", ['z'] = "02420646",
        ['A'] = "060110304146 0343", ['B'] = "06003041423303 3344453606", ['C'] = "4130100105163645", ['D'] = "06003041453606",
        ['E'] = "40000646 0333", ['F'] = "400006 0333", ['G'] = "41301001051636454323", ['H'] = "0006 4046 0343", ['I'] = "0020 0626 1016",
        ['J'] = "4045361605", ['K'] = "0006 400346", ['L'] = "000646", ['M'] = "0600234046", ['N'] = "06004640", ['O'] = "103041453616050110",
        ['P'] = "06003041423303", ['Q'] = "103041453616050110 2446", ['R'] = "06003041423303 2346", ['S'] = "413010010213334445361605",
        ['T'] = "0040 2026", ['U'] = "000516364540", ['V'] = "002640", ['W'] = "0016325660", ['X'] = "0046 0640", ['Y'] = "002340 2326",
        ['Z'] = "00400646",
    };

    private const string Unknown = "0040460600";

    /// <summary>How wide a text is in pixels, if its capitals are <paramref name="height"/> pixels high.</summary>
    public static float Width(string text, float height)
        => text.Length == 0 ? 0 : (text.Sum(Advance) - LetterSpace) * height / CapitalHeight;

    /// <summary>Draws a text.</summary>
    /// <param name="canvas">On what.</param>
    /// <param name="text">What; characters that the font lacks become boxes.</param>
    /// <param name="x">The left edge in pixels; or the right edge, or the middle, as <paramref name="align"/> says.</param>
    /// <param name="baseline">Where the letters stand, in pixels.</param>
    /// <param name="height">The height of a capital in pixels.</param>
    /// <param name="color">Of the lines.</param>
    /// <param name="align">What of the text stands at x.</param>
    public static void Draw(SKCanvas canvas, string text, float x, float baseline, float height, SKColor color, SKTextAlign align = SKTextAlign.Left)
    {
        var unit = height / CapitalHeight;
        x -= align switch { SKTextAlign.Right => Width(text, height), SKTextAlign.Center => Width(text, height) / 2, _ => 0 };
        using var path = new SKPath();
        foreach (var c in text)
        {
            foreach (var line in (c == ' ' ? "" : Glyphs.GetValueOrDefault(c, Unknown)).Split(' ', StringSplitOptions.RemoveEmptyEntries))
            {
                path.MoveTo(Point(line, 0));
                if (line.Length == 2) path.LineTo(Point(line, 0));
                for (var i = 2; i < line.Length; i += 2) path.LineTo(Point(line, i));
            }
            x += Advance(c) * unit;
        }
        using var paint = new SKPaint
        {
            Color = color, Style = SKPaintStyle.Stroke, StrokeWidth = unit * 0.85f, IsAntialias = true,
            StrokeCap = SKStrokeCap.Round, StrokeJoin = SKStrokeJoin.Round,
        };
        canvas.DrawPath(path, paint);

        SKPoint Point(string line, int i) => new(x + (line[i] - '0') * unit, baseline + (line[i + 1] - '0' - CapitalHeight) * unit);
    }

    private static float Advance(char c)
    {
        if (c == ' ') return WordSpace;
        var glyph = Glyphs.GetValueOrDefault(c, Unknown);
        var right = 0;
        for (var (i, isX) = (0, true); i < glyph.Length; i++)
        {
            if (glyph[i] == ' ') continue;
            if (isX) right = Math.Max(right, glyph[i] - '0');
            isX = !isX;
        }
        return right + LetterSpace;
    }
}
