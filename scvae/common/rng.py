"""Random numbers: the only module that makes generators. Nothing here reads or changes global random state."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

SeedLike = int | np.integer | np.random.Generator | None


def seed_of(rng: SeedLike) -> int:
    """One integer from a seed, a Generator (which advances by one draw) or None (fresh entropy)."""
    if rng is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(2**32))
    if isinstance(rng, bool) or not isinstance(rng, int | np.integer):
        raise TypeError(f"rng must be an integer seed, a numpy Generator or None; found {type(rng).__name__}.")
    if rng < 0:
        raise ValueError(f"rng must be a non-negative seed; found {rng}.")
    return int(rng)


def numpy_generator(seed: int, *stream: int) -> np.random.Generator:
    """A generator for one purpose: a pure function of the seed and the stream's numbers."""
    return np.random.Generator(np.random.Philox(_sequence(seed, stream)))


def torch_generator(seed: int, *stream: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Torch's counterpart of `numpy_generator`."""
    state = _sequence(seed, stream).generate_state(1, np.uint64)[0]
    return torch.Generator(device=device).manual_seed(int(state >> np.uint64(1)))


def torch_generators(n: int, seed: int, *stream: int, device: torch.device | str = "cpu") -> Iterator[torch.Generator]:
    """One generator, seeded anew for each of `n` turns: for loops in which making them one by one would be felt."""
    generator = torch.Generator(device=device)
    for state in _sequence(seed, stream).generate_state(n, np.uint64):
        yield generator.manual_seed(int(state >> np.uint64(1)))


def generator_of_rank(generator: torch.Generator, rank: int) -> torch.Generator:
    """A generator of its own for each of several processes, which follows from the seed of one that they share."""
    return torch_generator(generator.initial_seed(), rank, device=generator.device)


@contextmanager
def igraph_random_state(seed: int) -> Iterator[None]:
    """Lets igraph draw from a generator of its own; afterwards it draws from Python's `random` again, its default."""
    import igraph

    igraph.set_random_number_generator(random.Random(seed))  # noqa: S311 (clusters need no cryptography)
    try:
        yield
    finally:
        igraph.set_random_number_generator(random)


def _sequence(seed: int, stream: tuple[int, ...]) -> np.random.SeedSequence:
    # numpy pads its entropy with zeros, so that [seed, 2] and [seed, 2, 0] are one sequence: the length sets them apart
    return np.random.SeedSequence(seed, spawn_key=(len(stream), *stream))
