"""Several processes that train one model: who they are, what they share, and how they find out that one is lost.

Everything goes through `torch.distributed`. A process group that exists already (of Lightning Fabric, Ray Train, a
script of one's own) is used as it is; under ``torchrun`` one is made for the time of a fit. On one process nothing
happens at all.
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
ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun tells its processes
ROLL_CALL_SHARE, LONGEST_ROLL_CALL = 0.25, 10.0  # of the time-out, and seconds


class RankError(ConnectionError):
    """In a run of several processes, one of them failed, died or hangs, so that the others cannot go on.

    Parameters
    ----------
    message
        Which process it is, and why.
    missing
        Ranks of the processes that do not answer.
    """

    def __init__(self, message: str, missing: frozenset[int] = frozenset()) -> None:
        super().__init__(message)
        self.missing = missing


class Word(NamedTuple):
    """What a process says to the others: the text of its error, if it failed, and something they asked for."""

    error: str | None
    content: Any


@final
class Alone:
    """The one process of an ordinary run, in the words of `Ranks`: nothing is shared and nobody is waited for."""

    rank, world, is_first = 0, 1, True
    failed = False

    def part(self, n: int) -> slice:
        """All of n things."""
        return slice(0, n)

    def gather(self, content: T) -> list[T]:
        """What this process passes."""
        return [content]

    def first(self, make: Callable[[], T]) -> T:
        """What `make` returns."""
        return make()

    def agree(self, properties: dict[str, str]) -> None:
        """Agrees with itself."""
        return

    def all_or_none(self) -> AbstractContextManager[None]:
        """A block that goes well or raises."""
        return nullcontext()

    def take_from_first(self, tensors: list[Tensor]) -> None:
        """The tensors stay as they are."""
        return

    def give_up(self, error: Exception) -> None:
        """There is nobody to tell."""
        return


@final
class Ranks:
    """The processes of a run, this one among them.

    Every method but `part` has to be called by all processes in the same order. One that fails says so to the others at
    their next call, which then raises `RankError` there: nobody waits for a process that has given up.

    Parameters
    ----------
    rank, world
        Number of this process, from 0, and how many there are.
    control
        A gloo group for records on the CPU.
    timeout
        Seconds after which a silent process is given up.
    """

    def __init__(self, rank: int, world: int, control: Any = None, timeout: float = math.inf) -> None:
        self.rank, self.world, self.control, self.timeout = rank, world, control, timeout
        self.failed = False

    @property
    def is_first(self) -> bool:
        """Whether this process writes files, and shows what all of them do."""
        return self.rank == 0

    def part(self, n: int) -> slice:
        """The share of this process of n things, cut as by `numpy.array_split`: nothing twice, nothing left out."""
        size, more = divmod(n, self.world)
        start = self.rank * size + min(self.rank, more)
        return slice(start, start + size + (self.rank < more))

    def gather(self, content: T) -> list[T]:
        """What each process passes, in the order of their ranks."""
        return [word.content for word in self._said(Word(None, content))]

    def first(self, make: Callable[[], T]) -> T:
        """What `make` returns in process 0, for all; an error that it raises there is raised by all."""
        made: T | None = None
        failure: Exception | None = None
        if self.is_first:
            try:
                made = make()
            except Exception as error:  # noqa: BLE001 (whatever it is, the others must not wait)
                failure = _sendable(error)
        failure = self.gather(failure)[0]
        if failure is not None:
            self.failed = True  # and everybody knows
            raise failure
        parcel = [made]
        self._call(lambda: dist.broadcast_object_list(parcel, src=0, group=self.control))
        return parcel[0]  # type: ignore[return-value]

    def agree(self, properties: dict[str, str]) -> None:
        """Refuses to go on unless all processes pass the same.

        Raises
        ------
        ValueError
            In all processes alike: which properties differ, and where.
        """
        everyone = self.gather(properties)
        names = sorted({name for of_one in everyone for name in of_one if of_one.get(name) != everyone[0].get(name)})
        if not names:
            return
        self.failed = True
        odd = [str(rank) for rank, of_one in enumerate(everyone) if of_one != everyone[0]]
        raise ValueError(
            f"the processes were not given the same: {', '.join(names)} of rank {', '.join(odd)} differ from those of "
            "rank 0. Pass the same data and arguments in every process, or start without torchrun."
        )

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """A block that has gone well in all processes when it ends; otherwise it raises in all."""
        yield
        self.gather(None)

    def take_from_first(self, tensors: list[Tensor]) -> None:
        """Overwrites the tensors with those of process 0, to the last bit."""
        for tensor in tensors:
            if tensor.numel():
                self._call(partial(dist.broadcast, tensor, src=0))

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """A block of training steps, in which the processes meet in torch's own collectives.

        Raises
        ------
        RankError
            In place of the error of a collective that another process did not come to, with its rank.
        """
        try:
            yield
        except (torch.OutOfMemoryError, NotImplementedError):
            self.failed = True  # the others are in a collective, where no word reaches them
            raise
        except RuntimeError as error:
            raise self._lost(error) from error
        except Exception:
            self.failed = True
            raise

    def give_up(self, error: Exception) -> None:
        """Tells the others, who are about to ask, that this process failed."""
        if self.failed:
            return
        self.failed = True
        with suppress(RankError):
            self._said(Word(f"{type(error).__name__}: {error}", None))

    def _said(self, word: Word) -> list[Word]:
        """The word of every process; an error of any of them ends all."""
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
        """The error that names the processes that do not answer a roll call, made by the store of their addresses."""
        self.failed = True
        patience = min(ROLL_CALL_SHARE * self.timeout, LONGEST_ROLL_CALL)
        said = re.sub(r"^\[[^]]*] *|[.] .*", "", str(error).strip().partition("\n")[0])  # without place and advice
        missing = set(range(self.world)) - {self.rank}
        if self.world > 2 or not re.search("closed|reset", said):  # of two, the other one it is
            missing = _missing(self.rank, self.world, patience)
        if not missing:
            return RankError(f"the processes lost each other, though all of them live: {said}")
        who = f"rank {', '.join(map(str, sorted(missing)))}"
        return RankError(
            f"{who} of {self.world} processes died, hangs or waits for one that does: no answer ({said}). The output "
            f"of {who} may say why. A checkpoint resumes the run; {TIMEOUT} (seconds, now {self.timeout:g}) says how "
            "long a process is waited for.",
            frozenset(missing),
        )


ALONE = Alone()
_known: list[tuple[Any, Ranks]] = []  # the ranks of the present process group, whose control group is made once
_inside: ContextVar[bool] = ContextVar("inside", default=False)  # of a block of `process_group`
_joins: list[Any] = []  # stores of the groups made here: their number is the same in all processes


def ranks() -> Ranks | Alone:
    """The processes of the process group that exists; `ALONE` where there is none, or only one."""
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
    """The processes that torchrun has started are one group in this block, unless they are in one already.

    Sets the CUDA device of this process to that of its local rank, where there are devices. An error that leaves the
    block is told to the other processes.
    """
    if _inside.get():
        yield
        return
    made = not (dist.is_available() and dist.is_initialized()) and _is_launched()
    token, level, hook = _inside.set(True), logger.level, sys.excepthook
    try:
        if made:
            _initialise()
        ranks().failed = False
        if not ranks().is_first:
            logger.setLevel(logging.ERROR)  # what is worth a line is said once
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
            sys.excepthook = hook  # torch would write the rank before each line once more for every group


def _is_launched() -> bool:
    """Whether torchrun, or something that sets the same variables, started this process as one of several."""
    return dist.is_available() and all(name in os.environ for name in ENVIRONMENT) and int(os.environ["WORLD_SIZE"]) > 1


def _initialise() -> None:
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    timeout = _timeout()
    patience = timedelta(seconds=timeout - min(ROLL_CALL_SHARE * timeout, LONGEST_ROLL_CALL))
    # every attempt of torchrun and every group gets its own keys: processes started again, or a second fit, would
    # otherwise read the addresses that those before them left in the store
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not _joins:
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        _joins.append(TCPStore(*place, world, is_master=rank == 0 and not agents, timeout=patience, multi_tenant=True))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    _joins.append(PrefixStore(f"scvae/{attempt}/{len(_joins)}", _joins[0]))
    has_cuda = torch.cuda.is_available()
    if has_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)) % torch.cuda.device_count())
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
    """Who does not answer within so many seconds; process 0 where the store itself, which it keeps, is gone."""
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
    """The error itself, or its text where it is of a kind that might not survive the journey."""
    if type(error).__module__ == "builtins":
        return error
    return RankError(f"rank 0 failed: {type(error).__name__}: {error}")
