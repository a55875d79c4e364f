"""Where random numbers come from."""

from itertools import combinations

import numpy as np
import pytest
import torch

from scvae.common.rng import numpy_generator, seed_of, torch_generator, torch_generators

STREAMS = [(), (0,), (1,), (0, 0), (1, 0), (0, 1), (1, 0, 0), (2, 5)]


def draw_numpy(*arguments):
    return numpy_generator(*arguments).random(4).tolist()


def draw_torch(*arguments):
    return torch.rand(4, generator=torch_generator(*arguments)).tolist()


@pytest.mark.parametrize("draw", [draw_numpy, draw_torch])
def test_a_stream_is_a_function_of_its_numbers_and_no_two_are_alike(draw):
    sources = [(seed, *stream) for seed in (0, 1, 7, 2**32, 2**40 + 1) for stream in STREAMS]
    for source in sources:
        assert draw(*source) == draw(*source)
    for one, other in combinations(sources, 2):
        assert draw(*one) != draw(*other) or one == other, (one, other)


def test_an_integer_is_its_own_seed_and_a_generator_gives_reproducible_ones():
    assert seed_of(12) == 12
    assert [seed_of(kind(12)) for kind in (np.int64, np.array, torch.tensor)] == [12, 12, 12]
    generator, twin = np.random.default_rng(3), np.random.default_rng(3)
    first, second = seed_of(generator), seed_of(generator)
    assert first != second
    assert [seed_of(twin), seed_of(twin)] == [first, second]


def test_without_a_seed_every_call_has_fresh_entropy():
    assert len({seed_of(None) for _ in range(8)}) > 1


@pytest.mark.parametrize("bad", [True, 1.0, "1", np.random.RandomState(0), [1]])
def test_other_kinds_of_seed_are_refused(bad):
    with pytest.raises(TypeError, match=f"found {type(bad).__name__}"):
        seed_of(bad)


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="non-negative seed; found -1"):
        seed_of(-1)


def test_global_random_states_are_not_touched():
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    for source in (None, 5, np.random.default_rng(0)):
        seed = seed_of(source)
        draw_numpy(seed, 1)
        draw_torch(seed, 1)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_generators_of_a_loop_are_functions_of_seed_stream_and_turn():
    def draws(n, *stream):
        return [torch.rand(3, generator=generator) for generator in torch_generators(n, *stream)]

    first, again, shorter, other = draws(5, 7, 1), draws(5, 7, 1), draws(2, 7, 1), draws(5, 7, 2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, shorter, strict=False))
    assert len({tuple(row.tolist()) for row in first + other}) == 10
