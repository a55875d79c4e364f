"""What numba lacks and the CPU kernels need: work claimed by several threads, short waits, and BLAS products.

Names are registered with LLVM, so that compiled kernels can be cached: the cache holds names and no addresses.
"""

import ctypes
import os

import llvmlite.binding as llvm
import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.extending import get_cython_function_address, intrinsic
from numba.np import arrayobj

# options of functions that only kernels call: wrappers for calls from Python take longer to compile than most of them
INNER = {"cache": True, "error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
SPINS = 20_000  # looks at a counter before a thread sleeps: some hundred microseconds
NAP = 50  # microseconds


# fmt: off
def _sleep_address() -> int:
    """Address of a C function that sleeps: microseconds on Linux and macOS, milliseconds on Windows."""
    library = ctypes.windll.kernel32 if os.name == "nt" else ctypes.CDLL(None)  # type: ignore[attr-defined]
    function = library.Sleep if os.name == "nt" else library.usleep
    return ctypes.cast(function, ctypes.c_void_p).value or 0
# fmt: on


llvm.add_symbol("scvae_sleep", _sleep_address())
llvm.add_symbol("scvae_sgemm", get_cython_function_address("scipy.linalg.cython_blas", "sgemm"))
_sleep = types.ExternalFunction("scvae_sleep", types.int32(types.uint32))
_sgemm = types.ExternalFunction("scvae_sgemm", types.void(*[types.intp] * 13))
DURATION = np.uint32(1 if os.name == "nt" else NAP)
YES, NO = np.uint8(ord("T")), np.uint8(ord("N"))


@intrinsic
def fetch_add(typing_context, array, place, value):
    """array[place] += value for threads that do so at the same time; returns the value before (int64)."""

    def generate(context, builder, signature, arguments):
        pointer = _pointer(context, builder, signature, arguments)
        return builder.atomic_rmw("add", pointer, arguments[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), generate


@intrinsic
def fetch(typing_context, array, place):
    """array[place] (int64), as other threads have left it."""

    def generate(context, builder, signature, arguments):
        return builder.load_atomic(_pointer(context, builder, signature, arguments), "seq_cst", 8)

    return types.int64(array, types.intp), generate


@intrinsic
def vector(typing_context, flat, start, n):
    """flat[start : start + n], without a check of the bounds; the code for a slice is ten times as long."""
    return types.Array(flat.dtype, 1, "C")(flat, types.intp, types.intp), _view


@intrinsic
def matrix(typing_context, flat, start, n_rows, n_columns):
    """As `vector`, for a matrix stored row by row."""
    return types.Array(flat.dtype, 2, "C")(flat, types.intp, types.intp, types.intp), _view


def _view(context, builder, signature, arguments):
    kind = signature.return_type
    flat = cgutils.create_struct_proxy(signature.args[0])(context, builder, arguments[0])
    out = arrayobj.make_array(kind)(context, builder)
    size = context.get_abi_sizeof(context.get_data_type(kind.dtype))
    shape, strides = arguments[2:], [context.get_constant(types.intp, size)]
    if len(shape) == 2:
        strides = [builder.mul(shape[1], strides[0]), *strides]
    data = builder.gep(flat.data, [arguments[1]])
    arrayobj.populate_array(out, data, shape, strides, context.get_constant(types.intp, size), None)
    return out._getvalue()


def _pointer(context, builder, signature, arguments):
    kind = signature.args[0]
    array = cgutils.create_struct_proxy(kind)(context, builder, arguments[0])
    return builder.gep(array.data, [arguments[1]])


@njit(**INNER)
def wait_for(counters, place, value):
    """Waits until counters[place] has reached the value; looks often at first, then sleeps between looks."""
    looks = 0
    while fetch(counters, place) < value:
        looks += 1
        if looks > SPINS:
            _sleep(DURATION)


@njit(forceinline=True, **INNER)
def multiply(a, transpose_a, b, transpose_b, beta, out):
    """out = a @ b + beta out for float32 matrices in rows, each of which may be a block of columns of a larger one.

    Rows of `a` and `b` are contiguous; with transpose_a or transpose_b the transposed matrix is a factor.
    """
    inner = a.shape[0] if transpose_a else a.shape[1]
    # BLAS counts along columns first, where each matrix looks transposed: out.T = b.T @ a.T
    _multiply(
        out.shape[1], out.shape[0], inner, b.ctypes.data, b.strides[0], transpose_b, a.ctypes.data, a.strides[0],
        transpose_a, beta, out.ctypes.data, out.strides[0],
    )  # fmt: skip


@njit(**INNER)
def _multiply(m, n, k, a, a_stride, transpose_a, b, b_stride, transpose_b, beta, c, c_stride):
    """BLAS's sgemm for matrices at these addresses; strides are bytes."""
    if m == 0 or n == 0:
        return
    sizes = np.empty(6, np.int32)
    sizes[0], sizes[1], sizes[2] = m, n, k
    # the stride of an empty matrix may be 0, which BLAS refuses
    sizes[3] = max(a_stride // 4, k if transpose_a else m, 1)
    sizes[4] = max(b_stride // 4, n if transpose_b else k, 1)
    sizes[5] = max(c_stride // 4, m)
    letters = np.empty(2, np.uint8)
    letters[0], letters[1] = YES if transpose_a else NO, YES if transpose_b else NO
    factors = np.empty(2, np.float32)
    factors[0], factors[1] = np.float32(1.0), beta
    size, letter, factor = sizes.ctypes.data, letters.ctypes.data, factors.ctypes.data
    _sgemm(letter, letter + 1, size, size + 4, size + 8, factor, a, size + 12, b, size + 16, factor + 4, c, size + 20)
