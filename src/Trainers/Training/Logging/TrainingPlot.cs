using System.Globalization;
using MambaVL.Checkpoints;
using SkiaSharp;

namespace MambaVL.Training;

/// <summary>How large a <see cref="TrainingPlot"/> is, and what it says.</summary>
public sealed record TrainingPlotOptions
{
    /// <summary>The width in pixels, from 300 to 10,000. Default 1200.</summary>
    public int Width { get; init; } = 1200;

    /// <summary>The height in pixels, from 300 to 10,000. Default 800.</summary>
    public int Height { get; init; } = 800;

    /// <summary>What the validation metric is called. Default "validation metric".</summary>
    public string MetricName { get; init; } = "validation metric";

    internal void Check()
    {
        Side(Width, nameof(Width));
        Side(Height, nameof(Height));
        ArgumentNullException.ThrowIfNull(MetricName);

        static void Side(int value, string name)
        {
            if (value is < 300 or > 10_000) throw new ArgumentException($"{nameof(TrainingPlotOptions)}.{name} is {value}; expected 300 to 10,000 pixels.");
        }
    }
}

/// <summary>Draws how training went: the loss, the validation metric where there is one, and the learning rate, against steps.</summary>
/// <remarks>
/// The loss of each step is light; the dark line over it is the mean of the fiftieth of the steps around each. A loss that is not
/// finite is a red mark on the axis. Any number of points will do: a line is thinned out to what its pixels can show.
/// ScottPlot was tried: 5.1 needs SkiaSharp 3, and ML.NET's images are of SkiaSharp 2.88.
/// </remarks>
public static class TrainingPlot
{
    internal static readonly SKColor Light = new(0xA6, 0xC8, 0xE4), Dark = new(0x0B, 0x4F, 0x94), Metric = new(0x2A, 0x8C, 0x4A),
        Rate = new(0xC8, 0x5A, 0x10), Bad = new(0xD6, 0x27, 0x28);

    private static readonly SKColor Ink = new(0x33, 0x33, 0x33), Grid = new(0xE6, 0xE6, 0xE6);

    private const float TextHeight = 11, Left = 90, Right = 30, Top = 40, Gap = 44, Bottom = 52;

    /// <summary>Draws the points, and writes the picture as PNG: whole, or not at all.</summary>
    /// <param name="path">The file; one that is there is replaced.</param>
    /// <param name="points">In the order of their steps. None: axes alone.</param>
    /// <param name="options">Size and names; the defaults when null.</param>
    /// <exception cref="ArgumentException">The points are not in the order of their steps, or a size is out of its range.</exception>
    /// <exception cref="IOException">The file could not be written. What was there before is unchanged.</exception>
    public static void Save(string path, IReadOnlyList<TrainingPoint> points, TrainingPlotOptions? options = null)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        ArgumentNullException.ThrowIfNull(points);
        options ??= new();
        options.Check();
        for (var i = 1; i < points.Count; i++)
            if (points[i].Step < points[i - 1].Step)
                throw new ArgumentException($"Point {i} is of step {points[i].Step}, after one of step {points[i - 1].Step}; expected the order of the steps.", nameof(points));

        using var bitmap = new SKBitmap(new SKImageInfo(options.Width, options.Height, SKColorType.Rgba8888, SKAlphaType.Opaque));
        using (var canvas = new SKCanvas(bitmap)) Draw(canvas, points, options);
        using var png = bitmap.Encode(SKEncodedImageFormat.Png, 100);
        AtomicFile.Write(path, png.AsSpan());
    }

    private static void Draw(SKCanvas canvas, IReadOnlyList<TrainingPoint> points, TrainingPlotOptions options)
    {
        canvas.Clear(SKColors.White);
        var steps = (First: points.Count == 0 ? 0 : (double)points[0].Step, Last: points.Count == 0 ? 1 : (double)points[^1].Step);
        if (steps.First == steps.Last) steps = (steps.First - 1, steps.Last + 1);
        var loss = points.Select(p => new Value(p.Step, p.Loss)).ToList();
        var metric = points.Where(p => p.Metric is not null).Select(p => new Value(p.Step, p.Metric!.Value)).ToList();
        var rate = points.Select(p => new Value(p.Step, p.LearningRate)).ToList();

        // The loss is what one looks at: it gets what the others leave.
        var height = options.Height - Top - Bottom;
        var small = metric.Count == 0 ? 0.28f * height : 0.22f * height;
        var x = (From: Left, To: options.Width - Right);
        var bottom = options.Height - Bottom;
        var ratePanel = new Panel(canvas, "learning rate", Rate, new(x.From, bottom - small, x.To, bottom), steps, rate);
        ratePanel.Line(rate, Rate, 2);
        if (rate.Count == 1) ratePanel.Dots(rate, Rate);
        ratePanel.StepAxis();
        bottom -= small + Gap;
        if (metric.Count > 0)
        {
            var panel = new Panel(canvas, options.MetricName, Metric, new(x.From, bottom - small, x.To, bottom), steps, metric);
            panel.Line(metric, Metric, 2);
            if (metric.Count <= 100) panel.Dots(metric, Metric);
            bottom -= small + Gap;
        }
        var lossPanel = new Panel(canvas, "loss", Dark, new(x.From, Top, x.To, bottom), steps, loss);
        lossPanel.Line(loss, Light, 1.5f);
        lossPanel.Line(Smoothed(loss), Dark, 2.5f);
        if (loss.Count == 1) lossPanel.Dots(loss, Dark);
        lossPanel.Marks(loss);
        StrokeFont.Draw(canvas, "each step", x.To - 60, Top - 12, TextHeight, Light, SKTextAlign.Right);
        StrokeFont.Draw(canvas, "mean", x.To, Top - 12, TextHeight, Dark, SKTextAlign.Right);
    }

    /// <summary>The mean of the fiftieth of the finite values around each: not those before it alone, which would trail behind.</summary>
    internal static List<Value> Smoothed(IReadOnlyList<Value> values)
    {
        var finite = values.Where(v => double.IsFinite(v.Y)).ToList();
        var sums = new double[finite.Count + 1];
        for (var i = 0; i < finite.Count; i++) sums[i + 1] = sums[i] + finite[i].Y;
        var reach = finite.Count / 100;
        return [.. finite.Select((v, i) =>
        {
            var (from, to) = (Math.Max(0, i - reach), Math.Min(finite.Count, i + reach + 1));
            return new Value(v.Step, (sums[to] - sums[from]) / (to - from));
        })];
    }

    internal readonly record struct Value(long Step, double Y);

    /// <summary>A rectangle with axes, in which lines are drawn.</summary>
    private sealed class Panel
    {
        private readonly SKCanvas _canvas;
        private readonly SKRect _area;
        private readonly (double First, double Last) _steps;
        private readonly double _least, _most;

        public Panel(SKCanvas canvas, string title, SKColor color, SKRect area, (double, double) steps, IReadOnlyList<Value> values)
        {
            (_canvas, _area, _steps) = (canvas, area, steps);
            var (least, most) = (double.PositiveInfinity, double.NegativeInfinity);
            foreach (var (_, y) in values)
                if (double.IsFinite(y)) (least, most) = (Math.Min(least, y), Math.Max(most, y));
            if (least > most) (least, most) = (0, 1);
            // From zero on where that costs less than half of the room.
            if (least > 0 && least < most / 2) least = 0;
            if (least < 0 && most < 0 && most > least / 2) most = 0;
            if (least == most) (least, most) = least == 0 ? (0, 1) : (least - Math.Abs(least) / 2, most + Math.Abs(most) / 2);
            var tick = Ticks.Step(least, most, (int)(area.Height / 45));
            (_least, _most) = (Math.Floor(least / tick + 1e-9) * tick, Math.Ceiling(most / tick - 1e-9) * tick);

            using var grid = Stroke(Grid, 1);
            foreach (var y in Ticks.Between(_least, _most, tick))
            {
                canvas.DrawLine(area.Left, Y(y), area.Right, Y(y), grid);
                StrokeFont.Draw(canvas, Ticks.Text(y, tick, Math.Max(Math.Abs(_least), Math.Abs(_most))), area.Left - 10, Y(y) + TextHeight / 2, TextHeight, Ink, SKTextAlign.Right);
            }
            foreach (var x in StepTicks()) canvas.DrawLine(X(x), area.Top, X(x), area.Bottom, grid);
            using var axis = Stroke(Ink, 1.5f);
            canvas.DrawLine(area.Left, area.Top, area.Left, area.Bottom, axis);
            canvas.DrawLine(area.Left, area.Bottom, area.Right, area.Bottom, axis);
            StrokeFont.Draw(canvas, title, area.Left, area.Top - 12, TextHeight + 2, color);
        }

        /// <summary>The numbers below the lowest panel.</summary>
        public void StepAxis()
        {
            var ticks = StepTicks().ToList();
            var step = ticks.Count > 1 ? ticks[1] - ticks[0] : 1;
            foreach (var x in ticks)
                StrokeFont.Draw(_canvas, Ticks.Text(x, step, ticks.Max(Math.Abs)), X(x), _area.Bottom + 10 + TextHeight, TextHeight, Ink, SKTextAlign.Center);
            StrokeFont.Draw(_canvas, "step", (_area.Left + _area.Right) / 2, _area.Bottom + 22 + 2 * TextHeight, TextHeight + 2, Ink, SKTextAlign.Center);
        }

        // Of all points that fall into one column of pixels the first, the least, the greatest and the last: the same picture.
        public void Line(IReadOnlyList<Value> values, SKColor color, float width)
        {
            using var path = new SKPath();
            var isOpen = false;
            for (var i = 0; i < values.Count;)
            {
                if (!double.IsFinite(values[i].Y))
                {
                    (isOpen, i) = (false, i + 1);
                    continue;
                }
                var column = (int)X(values[i].Step);
                var (first, least, most) = (i, i, i);
                for (; i < values.Count && double.IsFinite(values[i].Y) && (int)X(values[i].Step) == column; i++)
                {
                    if (values[i].Y < values[least].Y) least = i;
                    if (values[i].Y > values[most].Y) most = i;
                }
                To(first);
                To(Math.Min(least, most));
                To(Math.Max(least, most));
                To(i - 1);
            }
            using var paint = Stroke(color, width);
            paint.StrokeJoin = SKStrokeJoin.Round;
            _canvas.DrawPath(path, paint);

            void To(int i)
            {
                var point = At(values[i]);
                if (isOpen) path.LineTo(point);
                else path.MoveTo(point);
                isOpen = true;
            }
        }

        public void Dots(IReadOnlyList<Value> values, SKColor color)
        {
            using var paint = new SKPaint { Color = color, IsAntialias = true };
            foreach (var value in values)
                if (double.IsFinite(value.Y)) _canvas.DrawCircle(At(value), 4, paint);
        }

        /// <summary>Where there is no value that could be drawn.</summary>
        public void Marks(IReadOnlyList<Value> values)
        {
            using var paint = Stroke(Bad, 2);
            var last = float.NegativeInfinity;
            foreach (var (step, y) in values)
            {
                if (double.IsFinite(y) || X(step) - last < 1) continue;
                last = X(step);
                _canvas.DrawLine(last, _area.Bottom - 12, last, _area.Bottom, paint);
            }
        }

        private SKPoint At(Value value) => new(X(value.Step), Y(value.Y));

        private float X(double step) => (float)(_area.Left + (step - _steps.First) / (_steps.Last - _steps.First) * _area.Width);

        private float Y(double y) => (float)(_area.Bottom - (y - _least) / (_most - _least) * _area.Height);

        private IEnumerable<double> StepTicks()
            => Ticks.Between(_steps.First, _steps.Last, Math.Max(1, Ticks.Step(_steps.First, _steps.Last, (int)(_area.Width / 110))));

        private static SKPaint Stroke(SKColor color, float width) => new() { Color = color, Style = SKPaintStyle.Stroke, StrokeWidth = width, IsAntialias = true };
    }
}

/// <summary>Round numbers on an axis.</summary>
internal static class Ticks
{
    /// <summary>From tick to tick: 1, 2 or 5 times a power of ten, so that there are about as many as asked for.</summary>
    public static double Step(double from, double to, int count)
    {
        var rough = (to - from) / Math.Max(count, 1);
        var power = Math.Pow(10, Math.Floor(Math.Log10(rough)));
        return (rough / power) switch { <= 1.0001 => 1, <= 2.0001 => 2, <= 5.0001 => 5, _ => 10 } * power;
    }

    /// <summary>The multiples of a step within a range.</summary>
    public static IEnumerable<double> Between(double from, double to, double step)
    {
        for (var i = Math.Ceiling(from / step - 1e-9); i <= to / step + 1e-9; i++) yield return i * step;
    }

    /// <summary>A tick's number: as many digits as tell it from its neighbours.</summary>
    /// <param name="value">The number.</param>
    /// <param name="step">The distance to its neighbours.</param>
    /// <param name="most">The greatest on the axis, which decides about the notation of all.</param>
    public static string Text(double value, double step, double most)
    {
        var invariant = CultureInfo.InvariantCulture;
        if (value == 0) return "0";
        if (most >= 1e6) return (value / 1e6).ToString("0.####", invariant) + "M";
        if (most >= 1e4) return (value / 1e3).ToString("0.####", invariant) + "k";
        if (most < 0.01) return value.ToString("0.###e-0", invariant);
        return value.ToString("f" + Math.Clamp((int)Math.Ceiling(-Math.Log10(step) - 1e-9), 0, 6).ToString(invariant), invariant);
    }
}
