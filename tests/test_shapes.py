"""Shapes and types are checked in the suite, though not in every call: `tests/conftest.py` says in which."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from scvae.model.latent.prior import StandardNormal

PRIOR = StandardNormal(2)
CELLS, NO_CELLS = torch.zeros(4, 2), torch.zeros(2)


def test_a_wrong_shape_is_an_error_in_the_first_call_of_a_test():
    with pytest.raises(TypeCheckError):
        PRIOR.log_prob(NO_CELLS)


def test_after_many_calls_a_wrong_shape_is_still_noticed_soon():
    for _ in range(100):
        PRIOR.log_prob(CELLS)
    noticed = 0
    for _ in range(64):
        try:
            PRIOR.log_prob(NO_CELLS)
        except TypeCheckError:
            noticed += 1
    assert noticed == 2
