"""How the CPU kernels are compiled: the decorator of those that Python calls, and the options of their parts."""

import functools
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler


class _Part(JITCodeLibrary):
    """The code of a function that only kernels call: optimised and emitted with each of them, but not alone."""

    @property
    def codegen(self) -> Any:
        return SimpleNamespace(set_env=lambda *_: None)  # there is no code yet that could have an environment

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        return 0


class _PartCompiler(Compiler):
    """Numba's compiler with a `_Part` to put the code in; saves a quarter of the time."""

    def __init__(self, typingctx, targetctx, library, *arguments):  # type: ignore[no-untyped-def]
        super().__init__(typingctx, targetctx, library or _Part(targetctx.codegen(), "part"), *arguments)


# options of functions that only kernels call; a call of one of them from Python ends the process
INNER = {"pipeline_class": _PartCompiler, "error_model": "numpy", "_nrt": False, "no_cpython_wrapper": True,
         "no_cfunc_wrapper": True}  # fmt: skip
PART = {**INNER, "forceinline": True}
VIEWING = {**INNER, "_nrt": True}
# Contraction and reciprocals are allowed; sums keep the order in which they are written (no "reassoc"), except in SUMS.
STRICT = {"contract", "arcp", "nsz", "nnan"}
SUMS = {"contract", "arcp", "nsz", "nnan", "reassoc"}


@cache
def _sources() -> int:
    """A number that changes with the text of any file of kernels."""
    return functools.reduce(
        lambda number, path: zlib.crc32(path.read_bytes(), number), sorted(Path(__file__).parent.glob("*.py")), 0
    )


class _Cache(FunctionCache):
    """Numba's cache on disk, which is stale if any file of kernels has changed.

    Numba itself looks at the date of the file with the kernel, and not at those of the functions that it calls.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file = IndexDataCacheFile(self.cache_path, self._impl.filename_base, _sources())


def kernel(function: Callable[..., Any]) -> Any:
    """Decorator of a function that Python calls: compiled when it is first called, once on a machine."""
    dispatcher = njit(nogil=True, error_model="numpy")(function)
    dispatcher._cache = _Cache(function)
    return dispatcher
