"""What numba lacks and the CPU kernels need: work claimed by several threads, short waits, and BLAS products.

Names are registered with LLVM, so that compiled kernels can be cached: the cache holds names and no addresses.
"""

import ctypes
import os

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import get_cython_function_address, intrinsic, overload
from numba.np import arrayobj

from .compiling import INNER

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
DURATION = np.uint32(1 if os.name == "nt" else NAP)


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
    """flat[start : start + n] without a check of the bounds; the code for a slice is ten times as long.

    `flat` is an array, or the address of float32 numbers.
    """
    return types.Array(_kind(flat), 1, "C")(flat, types.intp, types.intp), _view


@intrinsic
def matrix(typing_context, flat, start, n_rows, n_columns):
    """As `vector`, for a matrix stored row by row."""
    return types.Array(_kind(flat), 2, "C")(flat, types.intp, types.intp, types.intp), _view


def item_of(items, i):
    """items[i] of a tuple of equal types; with one item, the compiler knows which."""
    raise NotImplementedError("kernels call this; Python does not")


@overload(item_of, inline="always")  # a call would return arrays without counting its references to them
def _item_of(items, i):
    return _only if len(items) == 1 else _one_of_several


def _only(items, i):
    return items[0]


def _one_of_several(items, i):
    return items[i]


@intrinsic
def int32s(typing_context, address, start, n):
    """As `vector`, for the address of int32 numbers."""
    return types.Array(types.int32, 1, "C")(address, types.intp, types.intp), _view


@intrinsic
def int64s(typing_context, address, start, n):
    """As `vector`, for the address of int64 numbers."""
    return types.Array(types.int64, 1, "C")(address, types.intp, types.intp), _view


@intrinsic
def float64s(typing_context, address, start, n):
    """As `vector`, for the address of float64 numbers."""
    return types.Array(types.float64, 1, "C")(address, types.intp, types.intp), _view


def _kind(flat):
    return flat.dtype if isinstance(flat, types.Array) else types.float32


def _view(context, builder, signature, arguments):
    kind = signature.return_type
    item = context.get_data_type(kind.dtype)
    if isinstance(signature.args[0], types.Array):
        first = cgutils.create_struct_proxy(signature.args[0])(context, builder, arguments[0]).data
    else:
        first = builder.inttoptr(arguments[0], item.as_pointer())
    size = context.get_constant(types.intp, context.get_abi_sizeof(item))
    shape, strides = arguments[2:], [size]
    if len(shape) == 2:
        strides = [builder.mul(shape[1], size), size]
    out = arrayobj.make_array(kind)(context, builder)
    arrayobj.populate_array(out, builder.gep(first, [arguments[1]]), shape, strides, size, None)
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


@intrinsic
def multiply(typing_context, a, transpose_a, b, transpose_b, beta, out):
    """out = a @ b + beta out for float32 matrices in rows, each of which may be a block of columns of a larger one.

    Rows of `a` and `b` are contiguous; with transpose_a or transpose_b the transposed matrix is a factor.
    """
    return types.void(a, types.boolean, b, types.boolean, types.float32, out), _sgemm


def _sgemm(context, builder, signature, arguments):
    integer, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
    a, b, out = (cgutils.create_struct_proxy(signature.args[i])(context, builder, arguments[i]) for i in (0, 2, 5))
    (rows, columns), (m, n) = (cgutils.unpack_tuple(builder, matrix.shape, 2) for matrix in (a, out))

    def place(value):
        slot = cgutils.alloca_once(builder, value.type)
        builder.store(value, slot)
        return builder.bitcast(slot, pointer)

    def stride(matrix):  # between rows, in numbers; that of an empty matrix may be less than BLAS accepts
        size = builder.ashr(cgutils.unpack_tuple(builder, matrix.strides, 2)[0], ir.IntType(64)(2))
        for least in (cgutils.unpack_tuple(builder, matrix.shape, 2)[1], size.type(1)):
            size = builder.select(builder.icmp_signed(">", size, least), size, least)
        return place(builder.trunc(size, integer))

    def letter(transposed):
        flag = builder.icmp_unsigned("!=", transposed, transposed.type(0))
        return flag, place(builder.select(flag, ir.IntType(8)(ord("T")), ir.IntType(8)(ord("N"))))

    (is_transposed, of_a), (_, of_b) = letter(arguments[1]), letter(arguments[3])
    sizes = [place(builder.trunc(size, integer)) for size in (n, m, builder.select(is_transposed, rows, columns))]
    one, beta = place(ir.FloatType()(1.0)), place(arguments[4])
    data = [builder.bitcast(matrix.data, pointer) for matrix in (b, a, out)]
    # BLAS counts along columns first, where each matrix looks transposed: out.T = b.T @ a.T
    call = [of_b, of_a, *sizes, one, data[0], stride(b), data[1], stride(a), beta, data[2], stride(out)]
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [pointer] * len(call)), "scvae_sgemm"
    )
    empty = builder.icmp_signed("==", builder.mul(m, n), m.type(0))
    with builder.if_then(builder.not_(empty)):
        builder.call(function, call)
    return context.get_dummy_value()
