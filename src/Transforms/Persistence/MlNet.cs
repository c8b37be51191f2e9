// All of ML.NET's internals that this project uses are named in this file, and nowhere else: saved models, the shapes of
// schemas, cancellation, and the context's settings. docs/persistence.md says why, and how the compiler is given them.

using System.IO.Compression;
using System.Runtime.CompilerServices;
using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Runtime;
using MambaVL.Transforms;

[assembly: LoadableClass(typeof(VisionLanguageTransformer), null, typeof(SignatureLoadModel), "MambaVL pipeline step", VisionLanguageTransformer.LoaderSignature)]

namespace MambaVL.Transforms;

public sealed partial class VisionLanguageTransformer
{
    internal const string LoaderSignature = "MambaVLStep"; // at most 24 characters

    // The high half changes when older readers can no longer read what is written.
    internal const uint FormatVersion = 0x00010001;

    // The assembly by its simple name: with a version in it, a pipeline that a newer one saved could not be loaded.
    private static VersionInfo Version { get; } = new(modelSignature: "MAMBAVLS", verWrittenCur: FormatVersion, verReadableCur: FormatVersion,
        verWeCanReadBack: FormatVersion, loaderAssemblyName: typeof(VisionLanguageTransformer).Assembly.GetName().Name, loaderSignature: LoaderSignature);

    void ICanSaveModel.Save(ModelSaveContext ctx)
    {
        ArgumentNullException.ThrowIfNull(ctx);
        if (!ctx.InRepository) throw new InvalidOperationException("A MambaVL step is saved into a model zip (mlContext.Model.Save), not into a single stream.");
        using var use = UseModel();
        ctx.CheckAtModel();
        ctx.SetVersionInfo(Version);
        ctx.SaveNonEmptyString(Settings.ToJson());
        ctx.SaveNonEmptyString(ModelArchive.Of(ctx.Repository).Save(use.Model, Settings.Weights).ToJson());
    }

    // ML.NET finds this by its name and parameters.
    private static VisionLanguageTransformer Create(IHostEnvironment env, ModelLoadContext ctx)
    {
        if (ctx.Header.ModelSignature != Version.ModelSignature)
            throw new InvalidDataException("This part of the model zip is marked as a MambaVL step, but is none.");
        if (ctx.Header.ModelVerReadable > FormatVersion)
            throw new InvalidDataException($"The model zip was saved by a newer MambaVL.Transforms: its format is {Text(ctx.Header.ModelVerReadable)}, and this version, "
                + $"{typeof(VisionLanguageTransformer).Assembly.GetName().Version}, reads up to {Text(FormatVersion)}. Update the package MambaVL.Transforms.");
        if (!ctx.InRepository) throw new InvalidDataException("A MambaVL step is loaded from a model zip, not from a single stream.");
        var settings = StepSettings.Parse(ctx.LoadNonEmptyString());
        var stored = StoredModel.Parse(ctx.LoadNonEmptyString());
        var shared = ModelArchive.Of(ctx.Repository).Load(stored, new StepHost(env, "Load"));
        try
        {
            return new(env, settings, shared);
        }
        catch
        {
            shared.Release();
            throw;
        }

        static string Text(uint version) => $"{version >> 16}.{version & 0xFFFF}";
    }
}

/// <summary>The model zip that a pipeline is being saved to or loaded from.</summary>
/// <remarks>ML.NET writes each entry to a temporary file, and deflates it from there. Weights are stored as they are, straight
/// into the archive, which is a private field. Should a later ML.NET or .NET have no such fields, entries go the public way:
/// slower, and weights are read into memory instead of mapped.</remarks>
internal static class ModelZip
{
    public static void Write(RepositoryWriter repository, string name, CompressionLevel compression, Action<Stream> write)
    {
        if (Archive(repository) is { } archive)
        {
            // No other entry is open: ML.NET opens one only while it copies a temporary file.
            using var stream = archive.CreateEntry(name, compression).Open();
            write(stream);
        }
        else
        {
            var (folder, file) = Split(name);
            using var entry = repository.CreateEntry(folder, file);
            write(entry.Stream);
        }
    }

    /// <exception cref="InvalidDataException">There is no such entry, or it is damaged.</exception>
    public static void Read(RepositoryReader repository, string name, Action<Stream> read)
    {
        if (Archive(repository)?.GetEntry(name) is { } archived)
        {
            using var stream = archived.Open();
            read(stream);
        }
        else
        {
            var (folder, file) = Split(name);
            using var entry = repository.OpenEntryOrNull(folder, file) ?? throw new InvalidDataException($"The model zip has no entry '{name}'; it is not whole.");
            read(entry.Stream);
        }
    }

    /// <summary>Whether the entry is a range of the file that <see cref="Path(RepositoryReader)"/> names.</summary>
    public static bool IsStored(RepositoryReader repository, string name)
        => Archive(repository)?.GetEntry(name) is { } entry && entry.CompressedLength == entry.Length;

    /// <summary>The zip's own path; null where it is no file, or cannot be known.</summary>
    public static string? Path(RepositoryWriter repository) => FilePath(Archive(repository));

    /// <inheritdoc cref="Path(RepositoryWriter)"/>
    public static string? Path(RepositoryReader repository) => FilePath(Archive(repository));

    /// <summary>Where the next entry's header begins; null where it cannot be known.</summary>
    public static long? Position(RepositoryWriter repository)
        => Archive(repository) is { } archive && Bytes(archive) is { CanSeek: true } stream ? stream.Position : null;

    private static string? FilePath(ZipArchive? archive) => archive is not null && Bytes(archive) is FileStream file ? file.Name : null;

    private static (string Folder, string File) Split(string name) => (name[..name.LastIndexOf('/')], name[(name.LastIndexOf('/') + 1)..]);

    private static ZipArchive? Archive(RepositoryWriter repository) => Field(() => WriterArchive(repository));

    private static ZipArchive? Archive(RepositoryReader repository) => Field(() => ReaderArchive(repository));

    private static Stream? Bytes(ZipArchive archive) => Field(() => ArchiveStream(archive));

    private static T? Field<T>(Func<T> read) where T : class
    {
        try
        {
            return read();
        }
        catch (MissingFieldException)
        {
            return null;
        }
    }

    [UnsafeAccessor(UnsafeAccessorKind.Field, Name = "_archive")]
    private static extern ref ZipArchive WriterArchive(RepositoryWriter repository);

    [UnsafeAccessor(UnsafeAccessorKind.Field, Name = "_archive")]
    private static extern ref ZipArchive ReaderArchive(RepositoryReader repository);

    [UnsafeAccessor(UnsafeAccessorKind.Field, Name = "_archiveStream")]
    private static extern ref Stream ArchiveStream(ZipArchive archive);
}

/// <summary>The models of one model zip: each is written once, and loaded once, however many steps use it.</summary>
internal sealed class ModelArchive
{
    private static readonly ConditionalWeakTable<Repository, ModelArchive> Archives = [];

    private readonly Repository _repository;
    private readonly ModelWriter? _writer;
    private readonly Dictionary<string, SharedModel> _loaded = [];

    private ModelArchive(Repository repository)
    {
        _repository = repository;
        if (repository is RepositoryWriter writer)
            _writer = new((name, compression, write) => ModelZip.Write(writer, name, compression, write), () => ModelZip.Position(writer), ModelZip.Path(writer));
    }

    public static ModelArchive Of(Repository repository) => Archives.GetValue(repository, r => new(r));

    public StoredModel Save(VisionLanguageModel model, WeightStorage weights) => _writer!.Save(model, weights);

    /// <summary>The model; the caller is one of its users, and releases it.</summary>
    public SharedModel Load(StoredModel stored, StepHost host)
    {
        var key = stored.ToJson();
        if (_loaded.TryGetValue(key, out var shared) && shared.TryAdd()) return shared;
        var reader = (RepositoryReader)_repository;
        var model = new ModelReader((name, read) => ModelZip.Read(reader, name, read), name => ModelZip.IsStored(reader, name), ModelZip.Path(reader)).Load(stored, host);
        return _loaded[key] = SharedModel.Own(model);
    }
}

/// <summary>What a step uses of the MLContext.</summary>
internal sealed class StepHost
{
    private readonly IHost _host;

    public StepHost(IHostEnvironment environment, string name)
    {
        Environment = environment;
        _host = environment.Register("MambaVL." + name);
    }

    public IHostEnvironment Environment { get; }

    public bool IsCanceled => _host is ICancelable { IsCanceled: true };

    /// <summary>The GPU that the context names, or null; and whether the CPU will do instead.</summary>
    public (int? Gpu, bool FallBackToCpu) Device => _host is IHostEnvironmentInternal host ? (host.GpuDeviceId, host.FallbackToCpu) : (null, true);

    /// <summary>A folder for files that are gone soon.</summary>
    public string TemporaryFolder => (_host as IHostEnvironmentInternal)?.TempFilePath is { Length: > 0 } folder ? folder : Path.GetTempPath();

    /// <exception cref="OperationCanceledException">The context was cancelled.</exception>
    public void CheckAlive()
    {
        if (IsCanceled) throw new OperationCanceledException("The MLContext was cancelled.");
        StepCancellation.Token.ThrowIfCancellationRequested();
    }

    public void Trace(string message) => Say(c => c.Trace(message));

    public void Info(string message) => Say(c => c.Info(message));

    public void Warning(string message) => Say(c => c.Warning(message));

    public IDisposable StartProgress(string name, string unit, Func<double> done)
    {
        var channel = _host.StartProgressChannel(name);
        channel.SetHeader(new ProgressHeader(unit), entry => entry.SetProgress(0, done()));
        return channel;
    }

    private void Say(Action<IChannel> say)
    {
        using var channel = _host.Start("MambaVL");
        say(channel);
    }
}

/// <summary>Schemas, their shapes and their errors, as ML.NET's own transforms have them.</summary>
internal static class MlNet
{
    public static IHostEnvironment Environment(TransformsCatalog catalog) => CatalogUtils.GetEnvironment(catalog);

    public static void Cancel(MLContext context) => context.CancelExecution();

    public static Exception SchemaMismatch(IHostEnvironment environment, string role, string column)
        => environment.ExceptSchemaMismatch("inputSchema", role, column);

    public static Exception SchemaMismatch(IHostEnvironment environment, string role, string column, string expected, string found)
        => environment.ExceptSchemaMismatch("inputSchema", role, column, expected, found);

    public static IReadOnlyDictionary<string, ColumnFacts> Columns(SchemaShape shape)
        => shape.ToDictionary(c => c.Name, c => new ColumnFacts(c.Name, c.Kind, c.ItemType, 0, null, c.GetTypeString()));

    public static IReadOnlyDictionary<string, ColumnFacts> Columns(DataViewSchema schema)
    {
        var columns = new Dictionary<string, ColumnFacts>();
        foreach (var column in schema.Where(c => !c.IsHidden))
        {
            SchemaShape.GetColumnTypeShape(column.Type, out var kind, out var item, out _);
            var size = column.Type is VectorDataViewType vector ? vector.Size : 0;
            columns[column.Name] = new(column.Name, kind, item, size, Features(column), column.Type.ToString()!);
        }
        return columns;
    }

    public static SchemaShape Append(SchemaShape shape, IEnumerable<DataViewSchema.DetachedColumn> columns)
    {
        var all = shape.ToDictionary(c => c.Name);
        foreach (var column in columns)
        {
            SchemaShape.GetColumnTypeShape(column.Type, out var kind, out var item, out var isKey);
            all[column.Name] = new(column.Name, kind, item, isKey, null);
        }
        return new(all.Values);
    }

    public static DataViewSchema.Annotations SlotNames(string[] names)
    {
        var annotations = new DataViewSchema.Annotations.Builder();
        var (kind, type) = AnnotationUtils.GetSlotNamesPair(names.Length);
        ValueGetter<VBuffer<ReadOnlyMemory<char>>> get = (ref VBuffer<ReadOnlyMemory<char>> value) => value = new(names.Length, [.. names.Select(n => n.AsMemory())]);
        annotations.Add(kind, type, get);
        return annotations.ToAnnotations();
    }

    private static FeatureKind? Features(DataViewSchema.Column column)
    {
        if (column.Annotations.Schema.GetColumnOrNull(Step.FeatureAnnotation) is not { Type: TextDataViewType }) return null;
        ReadOnlyMemory<char> value = default;
        column.Annotations.GetValue(Step.FeatureAnnotation, ref value);
        return Enum.TryParse<FeatureKind>(value.Span, out var kind) && kind != FeatureKind.Auto ? kind : null;
    }
}
