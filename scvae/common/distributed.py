"""Coordination of several processes that train one model: ranks, exchange of records, detection of lost processes.

Everything uses `torch.distributed`. An existing process group (from Lightning Fabric, Ray Train or your own script)
is used as it is; under ``torchrun``, a group is made for the duration of a fit. A single process does none of this.
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple, TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor

logger = logging.getLogger("scvae")  # of the whole package

T = TypeVar("T")

TIMEOUT = "SCVAE_TIMEOUT"  # environment: seconds after which a silent process ends the run
DEFAULT_TIMEOUT = 600.0
ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # set by torchrun
ROLL_CALL_SHARE, LONGEST_ROLL_CALL = 0.25, 10.0  # fraction of the time-out; seconds


class RankError(ConnectionError):
    """A process of the run failed, died or hangs, so the others cannot continue.

    Parameters
    ----------
    message
        Which process, and why.
    missing
        Ranks of the processes that do not answer.
    """

    def __init__(self, message: str, missing: frozenset[int] = frozenset()) -> None:
        super().__init__(message)
        self.missing = missing


class Word(NamedTuple):
    """A message from one process to the others: the text of its error, if it failed, and the content they exchange."""

    error: str | None
    content: Any


@final
class Alone:
    """The only process of an ordinary run, with the methods of `Ranks`: nothing is shared or waited for."""

    rank, world, is_first = 0, 1, True
    failed = False

    def part(self, n: int) -> slice:
        return slice(0, n)

    def gather(self, content: T) -> list[T]:
        return [content]

    def first(self, make: Callable[[], T]) -> T:
        return make()

    def agree(self, properties: dict[str, str]) -> None:
        return

    def all_or_none(self) -> AbstractContextManager[None]:
        return nullcontext()

    def take_from_first(self, tensors: list[Tensor]) -> None:
        return

    def give_up(self, error: Exception) -> None:
        return


@final
class Ranks:
    """The processes of a run, including this one.

    All processes must call every method except `part` in the same order. A process that fails reports its error at the
    next call of the others, which then raises `RankError` there: no process waits for one that has failed.

    Parameters
    ----------
    rank, world
        Number of this process, from 0, and the number of processes.
    control
        A gloo group that exchanges records on the CPU.
    timeout
        Seconds after which a silent process counts as lost.
    """

    def __init__(self, rank: int, world: int, control: Any = None, timeout: float = math.inf) -> None:
        self.rank, self.world, self.control, self.timeout = rank, world, control, timeout
        self.failed = False

    @property
    def is_first(self) -> bool:
        """Whether this process has rank 0, which writes files and shows progress for all."""
        return self.rank == 0

    def part(self, n: int) -> slice:
        """The share of n items for this process, split as by `numpy.array_split`: each item goes to one process."""
        size, more = divmod(n, self.world)
        start = self.rank * size + min(self.rank, more)
        return slice(start, start + size + (self.rank < more))

    def gather(self, content: T) -> list[T]:
        """The contents that all processes pass, in the order of their ranks."""
        return [word.content for word in self._said(Word(None, content))]

    def first(self, make: Callable[[], T]) -> T:
        """Runs `make` in process 0 and returns its result, or raises its error, in all processes."""
        made: T | None = None
        failure: Exception | None = None
        if self.is_first:
            try:
                made = make()
            except Exception as error:  # noqa: BLE001 (after any error, the others must not wait)
                failure = _sendable(error)
        failure = self.gather(failure)[0]
        if failure is not None:
            self.failed = True  # all processes know of it
            raise failure
        parcel = [made]
        self._call(lambda: dist.broadcast_object_list(parcel, src=0, group=self.control))
        return parcel[0]  # type: ignore[return-value]

    def agree(self, properties: dict[str, str]) -> None:
        """Checks that all processes pass the same properties.

        Raises
        ------
        ValueError
            In all processes; the message names the properties that differ and the ranks.
        """
        everyone = self.gather(properties)
        names = sorted({name for of_one in everyone for name in of_one if of_one.get(name) != everyone[0].get(name)})
        if not names:
            return
        self.failed = True
        odd = [str(rank) for rank, of_one in enumerate(everyone) if of_one != everyone[0]]
        raise ValueError(
            f"the processes got different inputs: {', '.join(names)} of rank {', '.join(odd)} differ from those of "
            "rank 0. Pass the same data and arguments in every process, or start without torchrun."
        )

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """A block that ends only when all processes have completed it; if one fails, it raises in all."""
        yield
        self.gather(None)

    def take_from_first(self, tensors: list[Tensor]) -> None:
        """Overwrites the tensors with those of process 0, bit for bit."""
        for tensor in tensors:
            if tensor.numel():
                self._call(partial(dist.broadcast, tensor, src=0))

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """A block of training steps, in which the processes use torch's own collectives.

        Raises
        ------
        RankError
            In place of torch's error if a process does not join a collective; it names the rank of that process.
        """
        try:
            yield
        except (torch.OutOfMemoryError, NotImplementedError):
            self.failed = True  # the others are in a collective, where no message reaches them
            raise
        except RuntimeError as error:
            raise self._lost(error) from error
        except Exception:
            self.failed = True
            raise

    def give_up(self, error: Exception) -> None:
        """Reports the failure of this process to the others at their next call."""
        if self.failed:
            return
        self.failed = True
        with suppress(RankError):
            self._said(Word(f"{type(error).__name__}: {error}", None))

    def _said(self, word: Word) -> list[Word]:
        """The messages of all processes; if one of them reports an error, raises in all."""
        words: list[Any] = [None] * self.world
        self._call(lambda: dist.all_gather_object(words, word, group=self.control))
        wrong = {rank: said.error for rank, said in enumerate(words) if said.error is not None}
        if wrong:
            self.failed = True
            raise RankError("; ".join(f"rank {rank} failed: {text}" for rank, text in wrong.items()))
        return words

    def _call(self, collective: Callable[[], Any]) -> None:
        try:
            collective()
        except RuntimeError as error:
            raise self._lost(error) from error

    def _lost(self, error: RuntimeError) -> RankError:
        """The error that names the processes that do not answer a roll call in torch's address store."""
        self.failed = True
        patience = min(ROLL_CALL_SHARE * self.timeout, LONGEST_ROLL_CALL)
        said = re.sub(r"^\[[^]]*] *|[.] .*", "", str(error).strip().partition("\n")[0])  # without place and advice
        missing = set(range(self.world)) - {self.rank}
        if self.world > 2 or not re.search("closed|reset", said):  # of two processes, the other one is missing
            missing = _missing(self.rank, self.world, patience)
        if not missing:
            return RankError(f"the processes lost their connection, although all of them are alive: {said}")
        who = f"rank {', '.join(map(str, sorted(missing)))}"
        return RankError(
            f"{who} of {self.world} processes does not answer ({said}): it died, hangs or waits for another that does. "
            f"See the output of {who} for the cause and resume from a checkpoint. The environment variable {TIMEOUT} "
            f"sets the time-out in seconds (now {self.timeout:g}).",
            frozenset(missing),
        )


ALONE = Alone()
_known: list[tuple[Any, Ranks]] = []  # the current process group and its ranks: one control group for each
_inside: ContextVar[bool] = ContextVar("inside", default=False)  # whether a block of `process_group` is running
_joins: list[Any] = []  # stores of the groups made here; every process has the same number of them


def ranks() -> Ranks | Alone:
    """The processes of the current process group; `ALONE` if there is no group or it has one process."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ALONE
    group = dist.distributed_c10d._get_default_group()
    if not (_known and _known[0][0] is group):
        timeout = _timeout()
        patience = timedelta(seconds=timeout - min(ROLL_CALL_SHARE * timeout, LONGEST_ROLL_CALL))
        control = dist.new_group(backend="gloo", timeout=patience)
        _known[:] = [(group, Ranks(dist.get_rank(), dist.get_world_size(), control, timeout))]
    return _known[0][1]


@contextmanager
def process_group() -> Iterator[None]:
    """A block in which the processes started by torchrun form one group, unless they already form one.

    Sets the CUDA device of this process to that of its local rank, if there are CUDA devices. An error that leaves the
    block is reported to the other processes.
    """
    if _inside.get():
        yield
        return
    made = dist.is_available() and not dist.is_initialized() and _is_one_of_several()
    token, level, hook = _inside.set(True), logger.level, sys.excepthook
    try:
        if made:
            _initialise()
        ranks().failed = False
        if not ranks().is_first:
            logger.setLevel(logging.ERROR)  # log each line once, from rank 0
        yield
    except Exception as error:
        ranks().give_up(error)
        raise
    finally:
        _inside.reset(token)
        logger.setLevel(level)
        if made and dist.is_initialized():
            _known.clear()
            dist.destroy_process_group()
            sys.excepthook = hook  # each group lets torch add one more rank prefix to every line of a traceback


def is_launched() -> bool:
    """Whether torchrun, or a launcher that sets the same variables, started this process as one of several."""
    try:
        return _is_one_of_several()
    except ValueError:  # which `process_group` raises
        return False


def _is_one_of_several() -> bool:
    """As `is_launched`; raises ValueError if the variables make no sense. Empty variables count as missing."""
    if not all(os.environ.get(name, "").strip() for name in ENVIRONMENT):
        return False
    rank, world, _ = (_number(name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    if rank >= world:
        raise ValueError(
            f"the environment variable RANK is {rank}, but WORLD_SIZE is {world}; unset them, or start with torchrun"
        )
    return world > 1


def _number(name: str) -> int:
    """The number in an environment variable of torchrun."""
    text = os.environ[name].strip()
    if not text.isdecimal():
        raise ValueError(f"the environment variable {name} is {text!r}, not a number; unset it, or start with torchrun")
    return int(text)


def _initialise() -> None:
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    rank, world = _number("RANK"), _number("WORLD_SIZE")
    timeout = _timeout()
    patience = timedelta(seconds=timeout - min(ROLL_CALL_SHARE * timeout, LONGEST_ROLL_CALL))
    # every attempt of torchrun and every group gets its own keys; otherwise, restarted processes or a second fit would
    # read the addresses that earlier processes left in the store
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not _joins:
        place = os.environ["MASTER_ADDR"], _number("MASTER_PORT")
        _joins.append(TCPStore(*place, world, is_master=rank == 0 and not agents, timeout=patience, multi_tenant=True))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    _joins.append(PrefixStore(f"scvae/{attempt}/{len(_joins)}", _joins[0]))
    has_cuda = torch.cuda.is_available()
    if has_cuda:
        local = _number("LOCAL_RANK") if os.environ.get("LOCAL_RANK", "").strip() else rank
        torch.cuda.set_device(local % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if has_cuda and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, store=_joins[-1], rank=rank, world_size=world, timeout=patience)


def _timeout() -> float:
    given = os.environ.get(TIMEOUT, "")
    try:
        seconds = float(given or DEFAULT_TIMEOUT)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"the environment variable {TIMEOUT} is {given!r}; set it to a number of seconds above 0")
    return seconds


def _missing(rank: int, world: int, patience: float) -> set[int]:
    """Ranks that do not answer within `patience` seconds; 0 if the store, which process 0 hosts, is gone."""
    until = time.monotonic() + patience
    try:
        store = dist.distributed_c10d._get_default_store()
        store.set(f"scvae/present/{rank}", "1")
        missing = set(range(world)) - {rank}
        while missing and time.monotonic() < until:
            missing = {other for other in missing if not store.check([f"scvae/present/{other}"])}
            time.sleep(0.05)
    except RuntimeError:
        return {0}
    return missing


def _sendable(error: Exception) -> Exception:
    """The error itself if it is a builtin, which can be pickled; otherwise a RankError with its text."""
    if type(error).__module__ == "builtins":
        return error
    return RankError(f"rank 0 failed: {type(error).__name__}: {error}")
