using MambaVL.Cuda;
using TorchSharp;
using static TorchSharp.torch;

namespace MambaVL.Models;

/// <summary>Frozen parameters laid into one matrix, one below the other, with zeros between them and beside them: several
/// products become one, and widths that no fast path takes are padded. The parameters become views of the matrix, so there is
/// no second copy, and whatever is written to them later is in the matrix too; what a checkpoint is written from stays theirs.</summary>
/// <remarks>Any number of threads may ask for the matrix. It is laid out when first asked for, and again when the parameters
/// have moved since, to another device say.</remarks>
/// <param name="rows">Rows of the matrix.</param>
/// <param name="columns">Columns of the matrix; 0 for a vector of <paramref name="rows"/> numbers.</param>
internal sealed class PackedMatrix(long rows, long columns) : IDisposable
{
    private readonly Lock _lock = new();
    private Tensor? _matrix;

    /// <summary>A length at which products are fast: a multiple of 64 where it is not one of 8 (16 bytes of a 16-bit type) already.</summary>
    public static long Padded(long length) => length % 8 == 0 ? length : (length + 63) / 64 * 64;

    /// <summary>The matrix. It stays this object's.</summary>
    /// <param name="like">A tensor of the parameters' type and device.</param>
    /// <param name="parts">Each parameter and the row where it starts; of a parameter with more than two axes, the others follow
    /// each other along the row. All of one type and device, and in the same order at each call.</param>
    public Tensor Get(Tensor like, params ReadOnlySpan<(Tensor Parameter, long Row)> parts)
    {
        if (_matrix is { } matrix && IsCurrent(matrix, like, parts)) return matrix;
        lock (_lock)
        {
            if (_matrix is { } current && IsCurrent(current, like, parts)) return current;
            _matrix?.Dispose();
            return _matrix = Lay(like, parts);
        }
    }

    /// <summary>Gives each parameter memory of its own again, and drops the matrix, if there is one.</summary>
    public void Unpack(params ReadOnlySpan<(Tensor Parameter, long Row)> parts)
    {
        if (_matrix is null) return;
        lock (_lock)
        {
            if (_matrix is not { } matrix) return;
            if (parts.Length > 0 && IsCurrent(matrix, parts[0].Parameter, parts))
            {
                using var scope = NewDisposeScope();
                foreach (var (parameter, _) in parts) Point(parameter, Copy(parameter));
            }
            _matrix = null;
            matrix.Dispose();
        }

        static Tensor Copy(Tensor parameter)
        {
            using var ordinary = inference_mode(false);
            using var noGrad = no_grad();
            return empty(parameter.shape, dtype: parameter.dtype, device: parameter.device).copy_(parameter);
        }
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _matrix?.Dispose();
        _matrix = null;
    }

    private bool IsCurrent(Tensor matrix, Tensor like, ReadOnlySpan<(Tensor Parameter, long Row)> parts)
    {
        if (matrix.dtype != like.dtype || matrix.device_type != like.device_type || matrix.device_index != like.device_index) return false;
        var (first, rowBytes) = (CudaTensor.Pointer(matrix), Math.Max(columns, 1) * matrix.element_size());
        foreach (var (parameter, row) in parts)
            if (CudaTensor.Pointer(parameter) != first + (nint)(row * rowBytes)) return false;
        return true;
    }

    private Tensor Lay(Tensor like, ReadOnlySpan<(Tensor Parameter, long Row)> parts)
    {
        using var ordinary = inference_mode(false); // a matrix made while inferring may be used while other layers train
        using var noGrad = no_grad();
        using var scope = NewDisposeScope();
        var matrix = zeros(columns == 0 ? [rows] : [rows, columns], dtype: like.dtype, device: like.device);
        foreach (var (parameter, row) in parts)
        {
            var view = matrix.as_strided(parameter.shape, Strides(parameter.shape), row * Math.Max(columns, 1));
            view.copy_(parameter);
            Point(parameter, view);
        }
        return matrix.DetachFromDisposeScope();
    }

    // To other memory: the parameter stays the same object, for whoever holds it. In inference mode, for a parameter that was
    // made in it may be changed nowhere else.
    private static void Point(Tensor parameter, Tensor memory)
    {
        using var inferring = inference_mode();
        parameter.set_(memory);
    }

    private long[] Strides(long[] shape)
    {
        var strides = new long[shape.Length];
        for (var (axis, stride) = (shape.Length - 1, 1L); axis >= 0; stride *= shape[axis--]) strides[axis] = stride;
        if (columns > 0) strides[0] = columns;
        return strides;
    }
}
