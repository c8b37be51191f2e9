using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MambaVL.Models;

/// <summary>A parameter whose gradient has its place in a larger tensor. What lies there counts only while <c>grad</c> is that
/// place: so the place need not be set to zero where the next backward pass writes over it.</summary>
/// <remarks>
/// <code>
/// in place    grad is the place: the gradient since the last step, or zeros
/// released    grad is null: there is no gradient, and the place holds what nobody is to read
/// elsewhere   grad is another tensor: autograd has made one, as it does where it finds none
/// </code>
/// <see cref="FusedMamba"/> brings a gradient from released to in place by writing it there. Whoever reads the larger tensor calls
/// <see cref="Settle"/> before, which does so from either of the other states. Autograd needs to know nothing of all this. While
/// the gradient is in place, only this changes what <c>grad</c> is: another tensor there, or null, would not be noticed.
/// </remarks>
internal sealed class PlacedParameter : Parameter
{
    /// <param name="value">The values; becomes this.</param>
    /// <param name="place">The gradient's memory, of the same type and shape: zeros. It stays the giver's.</param>
    public PlacedParameter(Tensor value, Tensor place) : base(value, requires_grad: true) => Keep(place);

    /// <summary>Where the gradient belongs.</summary>
    public Tensor Place { get; private set; } = null!;

    /// <summary>Whether <c>grad</c> is the place.</summary>
    public bool IsInPlace { get; private set; }

    /// <summary>Whether the gradient came from a pass that writes over the place of a released one, so that releasing it saves
    /// the zeros.</summary>
    public bool IsWritten { get; private set; }

    /// <summary>The gradient was written to its place.</summary>
    /// <param name="anew">Over what lay there, as there was no gradient; false: it was added to one that is in place.</param>
    public void Written(bool anew)
    {
        if (anew) Keep(Place);
        IsWritten = true;
    }

    /// <summary>The gradient was used: there is none any more.</summary>
    public void Release()
    {
        grad = null;
        (IsInPlace, IsWritten) = (false, false);
    }

    /// <summary>Brings the gradient to its place: where there is none, as zeros.</summary>
    public void Settle()
    {
        if (IsInPlace) return;
        using var noGradients = no_grad();
        using (var other = grad)
            if (other is null) Place.zero_();
            else Place.copy_(other);
        Keep(Place);
    }

    private void Keep(Tensor place)
    {
        grad = Place = place;
        IsInPlace = true;
    }
}
