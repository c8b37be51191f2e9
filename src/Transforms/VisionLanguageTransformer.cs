using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Runtime;

namespace MambaVL.Transforms;

/// <summary>A fitted or loaded pipeline step. Any number of cursors and prediction engines, on any threads, may use it at
/// once; they share one copy of the weights.</summary>
public sealed partial class VisionLanguageTransformer : ITransformer, IDisposable
{
    private readonly SharedModel _shared;
    private int _disposed;

    internal VisionLanguageTransformer(IHostEnvironment environment, StepSettings settings, SharedModel shared)
    {
        Host = new StepHost(environment, settings.Kind.ToString());
        (Settings, _shared) = (settings, shared);
        Step = Step.Create(settings, shared.Config);
    }

    /// <summary>The model. It stays this step's, or its maker's; after <see cref="Dispose"/> it may be gone.</summary>
    /// <exception cref="ObjectDisposedException">The step was disposed of.</exception>
    public VisionLanguageModel Model
    {
        get
        {
            ObjectDisposedException.ThrowIf(Volatile.Read(ref _disposed) != 0, this);
            return _shared.Model;
        }
    }

    /// <summary>True: every row is computed by itself.</summary>
    public bool IsRowToRowMapper => true;

    internal StepHost Host { get; }

    internal StepSettings Settings { get; }

    internal Step Step { get; }

    /// <summary>The columns after this step.</summary>
    /// <exception cref="ArgumentOutOfRangeException">A column is missing or of another kind (ML.NET's schema mismatch).</exception>
    public DataViewSchema GetOutputSchema(DataViewSchema inputSchema)
    {
        ArgumentNullException.ThrowIfNull(inputSchema);
        return new BoundStep(this, inputSchema).Output;
    }

    /// <summary>The data with this step's columns. They are computed when a cursor asks for them, in batches.</summary>
    /// <exception cref="ArgumentOutOfRangeException">A column is missing or of another kind (ML.NET's schema mismatch).</exception>
    public IDataView Transform(IDataView input)
    {
        ArgumentNullException.ThrowIfNull(input);
        return new StepDataView(input, new BoundStep(this, input.Schema));
    }

    /// <summary>For a prediction engine: one row at a time.</summary>
    /// <exception cref="ArgumentOutOfRangeException">A column is missing or of another kind (ML.NET's schema mismatch).</exception>
    public IRowToRowMapper GetRowToRowMapper(DataViewSchema inputSchema)
    {
        ArgumentNullException.ThrowIfNull(inputSchema);
        return new StepRowMapper(new BoundStep(this, inputSchema));
    }

    /// <summary>Gives up this step's share of the weights. Those of a loaded pipeline are freed with the last of its steps that
    /// is disposed of; a model that the caller gave stays the caller's. What runs at the moment runs to its end.</summary>
    public void Dispose()
    {
        if (Interlocked.Exchange(ref _disposed, 1) == 0) _shared.Release();
    }

    internal SharedModel.Use UseModel()
    {
        ObjectDisposedException.ThrowIf(Volatile.Read(ref _disposed) != 0, this);
        return _shared.Begin(this);
    }
}
