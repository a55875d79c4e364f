"""How the package computes: settings of torch and BLAS during a call, all of which are put back afterwards."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from threadpoolctl import ThreadpoolController

from .threads import in_child, in_new_thread, is_forked, of_torch, set_of_call, wanted


class _OfThread(threading.local):
    """What this Python thread is in: a block of `computing`, a `turn`."""

    computes = False
    turn: object = None


class _OfProcess:
    """What the Python threads of a process share: settings, held while any of them computes, and whose turn it is."""

    def __init__(self) -> None:
        self.lock, self.n_computing = threading.Lock(), 0
        self.settings = ExitStack()
        self.turn, self.queue = threading.Lock(), threading.Lock()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds the settings of the process."""
        with self.lock:
            if self.n_computing == 0:
                self.settings.enter_context(_settings_of_process())
            self.n_computing += 1
        try:
            yield
        finally:
            with self.lock:
                self.n_computing -= 1
                if self.n_computing == 0:
                    self.settings.close()

    def take_turn(self, block: object) -> None:
        """Waits for the turn of this thread, which is for a block; threads get it in the order in which they ask."""
        with self.queue:
            self.turn.acquire()
        _here.turn = block

    def end_turn(self, block: object) -> None:
        """Ends the turn of this block, unless it has ended: Ctrl-C may come while `give_way` waits for the next one."""
        if block is not None and _here.turn is block:
            _here.turn = None
            self.turn.release()


_here, _process = _OfThread(), _OfProcess()


@contextmanager
def computing() -> Iterator[None]:
    """A call of a public function, which gives the same result whatever the program has set and whatever ran before.

    torch and BLAS get one thread: their threads wait for each other after every operation, at the price of the
    processor, and on a busy machine for those that have none. The threads of the package share larger pieces of work
    (`scvae.kernels.team`); their number is `wanted`.

    Held for the process while any of its threads is in such a block: one thread for BLAS, float32 as the default type
    and the precision of products, and no search for anomalies. Held for the present thread: one thread for OpenMP
    libraries, and numpy's handling of floating-point errors; gradients are on; inference mode, autocast, default
    devices and other modes of torch functions, and flushing of denormal numbers are off.

    Choices of a library or of determinism stay as they are: `torch.backends.mkldnn.enabled`,
    `torch.use_deterministic_algorithms`, and the settings of cuBLAS.

    Raises
    ------
    RuntimeError
        In a process made by fork, if torch cannot compute there; the message names the start method to use.
    """
    if _here.computes:
        yield
        return
    with _process.held(), _settings_of_thread():
        try:
            yield
        except RuntimeError as error:
            if is_forked() and "fork" in str(error):
                raise RuntimeError(
                    "torch cannot compute in this process, which was made by fork after its parent had used a GPU; "
                    "start processes with multiprocessing.get_context('spawn')"
                ) from error
            raise


@contextmanager
def _settings_of_process() -> Iterator[None]:
    found, kind = of_torch(), torch.get_default_dtype()
    set_of_call(wanted(found))
    torch.set_default_dtype(torch.float32)
    try:
        with (
            _pools("blas").limit(limits=1),
            float32_products(tf32=False),
            torch.autograd.set_detect_anomaly(False),
        ):
            yield
    finally:
        set_of_call(0)
        torch.set_default_dtype(kind)
        if found > 1:
            in_new_thread(lambda: torch.set_num_threads(found))


@contextmanager
def _settings_of_thread() -> Iterator[None]:
    torch.get_num_threads()  # a thread that has not used torch takes torch's number now, and not within the block
    flushes = sys.float_info.min / 2 == 0.0
    with (
        _pools("openmp").limit(limits=1),
        np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"),
        torch.inference_mode(False),
        torch._C.DisableTorchFunction(),
        torch._C._DisableAutocast(),
    ):
        torch.set_num_threads(1)  # of MKL and of new threads, too
        if flushes:
            torch.set_flush_denormal(False)
        _here.computes = True
        try:
            yield
        finally:
            _here.computes = False
            _process.end_turn(_here.turn)  # of a generator that an error has left unfinished
            if flushes:
                torch.set_flush_denormal(True)


@cache
def _pools(kind: str) -> ThreadpoolController:
    """The libraries of this kind that are loaded: "openmp" of torch and scikit-learn, "blas" of numpy and scipy."""
    import scipy.linalg.cython_blas  # noqa: F401  (its library multiplies in the kernels)

    return ThreadpoolController().select(user_api=kind)


@contextmanager
def working_on(device: torch.device, *, tf32: bool = False) -> Iterator[None]:
    """A turn of this thread; makes a CUDA device the current one, with or without TF32 in its products.

    TF32 rounds the factors to 10 bits. This suffices for a training step, but results would not agree with the CPU's.
    """
    with turn():
        if device.type == "cuda":
            with torch.cuda.device(device), float32_products(tf32=tf32):
                yield
        else:
            yield


@contextmanager
def turn() -> Iterator[None]:
    """A block that only one thread at a time is in, because it changes settings of the process or depends on them.

    Such a setting is the precision of products on a GPU: a product in one thread would be rounded as another thread has
    set it. Another is the source of igraph's random numbers.
    """
    if _here.turn is not None:
        yield
        return
    block = object()
    _process.take_turn(block)
    try:
        yield
    finally:
        _process.end_turn(block)


def give_way() -> None:
    """Lets a thread that waits for its turn go first; for use between batches on the CPU, where nothing is set."""
    block = _here.turn
    if block is not None and _process.queue.locked():
        _process.end_turn(block)
        _process.take_turn(block)


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """Sets how torch multiplies float32 matrices, and restores the earlier setting."""
    both: tuple[Any, Any] = torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)
    newer = [setting for setting in both if hasattr(setting, "fp32_precision")]  # from torch 2.9 on
    earlier = [setting.fp32_precision for setting in newer]
    try:
        before: str | None = torch.get_float32_matmul_precision()
    except RuntimeError:  # the caller has used the newer settings, and torch does not allow both
        before = None
    if before is not None:
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
    else:
        for setting in newer:
            setting.fp32_precision = "tf32" if tf32 else "ieee"
    try:
        yield
    finally:
        if before is not None:
            torch.set_float32_matmul_precision(before)
        for setting, precision in zip(newer, earlier, strict=True):  # the older setting has changed them, too
            setting.fp32_precision = precision


def _alone() -> None:
    """Ends what other threads were in when this process was copied by fork: the copy does not have them."""
    _process.lock, _process.turn, _process.queue = threading.Lock(), threading.Lock(), threading.Lock()
    _process.n_computing = int(_here.computes)
    if not _here.computes:
        _process.settings.close()
    _pools.cache_clear()


in_child(_alone)
