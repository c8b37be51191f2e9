using MambaVL.Models;

namespace MambaVL.Transforms;

/// <summary>One copy of the weights and those who use it: the steps of a pipeline, and what runs at the moment.</summary>
internal sealed class SharedModel
{
    private readonly VisionLanguageModel _model;
    private readonly bool _owned;
    private int _users = 1;

    private SharedModel(VisionLanguageModel model, bool owned) => (_model, _owned, Config) = (model, owned, model.Config);

    /// <summary>A caller's model, which is never disposed of here.</summary>
    public static SharedModel Borrow(VisionLanguageModel model) => new(model, owned: false);

    /// <summary>A loaded model, disposed of with its last user. The maker is the first one.</summary>
    public static SharedModel Own(VisionLanguageModel model) => new(model, owned: true);

    public VisionLanguageConfig Config { get; }

    public VisionLanguageModel Model => _model;

    /// <summary>One user more; false where the last has gone already.</summary>
    public bool TryAdd()
    {
        for (var users = Volatile.Read(ref _users); users > 0; users = Volatile.Read(ref _users))
            if (Interlocked.CompareExchange(ref _users, users + 1, users) == users) return true;
        return false;
    }

    public void Release()
    {
        if (Interlocked.Decrement(ref _users) == 0 && _owned) _model.Dispose();
    }

    /// <summary>The model, for as long as the result is not disposed of.</summary>
    public Use Begin(object user)
    {
        ObjectDisposedException.ThrowIf(!TryAdd(), user);
        return new(this);
    }

    public readonly struct Use(SharedModel shared) : IDisposable
    {
        public VisionLanguageModel Model => shared._model;

        public void Dispose() => shared.Release();
    }
}
