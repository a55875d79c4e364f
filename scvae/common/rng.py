"""All random number generators of the package; none of them reads or changes global random state."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float

from .checks import plain

SMALLEST = 1e-6  # probability in a tail of `even_noise`

SeedLike = int | np.integer | np.random.Generator | None


def seed_of(rng: SeedLike) -> int:
    """An integer seed from a seed, a Generator (which advances by one draw) or None (fresh entropy)."""
    if rng is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(2**32))
    rng = plain(rng)
    if isinstance(rng, bool) or not isinstance(rng, int):
        raise TypeError(f"rng must be an integer seed, a numpy Generator or None; found {type(rng).__name__}.")
    if rng < 0:
        raise ValueError(f"rng must be a non-negative seed; found {rng}.")
    return int(rng)


def numpy_generator(seed: int, *stream: int) -> np.random.Generator:
    """A generator for one purpose, determined by the seed and the numbers of the stream."""
    return np.random.Generator(np.random.Philox(_sequence(seed, stream)))


def torch_generator(seed: int, *stream: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator, seeded as in `numpy_generator`."""
    state = _sequence(seed, stream).generate_state(1, np.uint64)[0]
    return torch.Generator(device=device).manual_seed(int(state >> np.uint64(1)))


def torch_generators(n: int, seed: int, *stream: int, device: torch.device | str = "cpu") -> Iterator[torch.Generator]:
    """One generator, reseeded for each of `n` turns: for loops in which creating a generator each time is too slow."""
    generator = torch.Generator(device=device)
    for state in _sequence(seed, stream).generate_state(n, np.uint64):
        yield generator.manual_seed(int(state >> np.uint64(1)))


def generator_of_rank(generator: torch.Generator, rank: int) -> torch.Generator:
    """A separate generator for each process, derived from the seed of the shared one."""
    return torch_generator(generator.initial_seed(), rank, device=generator.device)


def even_noise(n: int, n_columns: int, seed: int, *stream: int) -> Float[torch.Tensor, "n columns"]:
    """Standard normal numbers, float32, from a scrambled Sobol sequence: they fill space more evenly than draws do."""
    scrambling = int(numpy_generator(seed, *stream).integers(2**31))
    sequence = torch.quasirandom.SobolEngine(n_columns, scramble=True, seed=scrambling)
    uniform = sequence.draw(n, dtype=torch.float64).clamp(SMALLEST, 1.0 - SMALLEST)
    noise: torch.Tensor = torch.special.ndtri(uniform).float()
    return noise


@contextmanager
def igraph_random_state(seed: int) -> Iterator[None]:
    """Lets igraph draw from a seeded generator; afterwards, restores igraph's default, Python's `random`."""
    import igraph

    igraph.set_random_number_generator(random.Random(seed))  # noqa: S311 (clusters need no cryptography)
    try:
        yield
    finally:
        igraph.set_random_number_generator(random)


def _sequence(seed: int, stream: tuple[int, ...]) -> np.random.SeedSequence:
    # numpy pads entropy with zeros, so [seed, 2] and [seed, 2, 0] would give the same sequence; the length differs
    return np.random.SeedSequence(seed, spawn_key=(len(stream), *stream))
