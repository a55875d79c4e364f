"""What β, free bits and a capacity do to the objective."""

import pytest
import torch

from scvae.model.latent.posterior import DiagonalNormal
from scvae.model.objective import Terms, loss

WEIGHT = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
KL = [[0.02, 1.0], [0.08, 2.0], [0.04, 0.0]]  # means over the weighted cells: 0.04 and 1.0
LOG_LIKELIHOOD = [-3.0, -5.0, -7.0]


def terms_and_kl():
    kl = torch.tensor(KL, dtype=torch.float64, requires_grad=True)
    log_likelihood = torch.tensor(LOG_LIKELIHOOD, dtype=torch.float64)
    return Terms(log_likelihood, kl, WEIGHT @ log_likelihood, torch.zeros(3, 2), DiagonalNormal(kl, kl)), kl


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 7.0])
def test_loss_is_the_weighted_negative_elbo_with_the_kl_times_beta(beta):
    terms, _ = terms_and_kl()
    assert loss(terms, WEIGHT, beta=beta).item() == pytest.approx(4.5 + beta * 1.04)


def test_elbo_of_a_cell_is_at_beta_one():
    terms, _ = terms_and_kl()
    assert terms.elbo.tolist() == pytest.approx([-4.02, -7.08, -7.04])


@pytest.mark.parametrize(("floor", "spared"), [(0.0, ()), (0.1, (0,)), (2.0, (0, 1))])
def test_free_bits_spare_the_dimensions_below_the_floor_and_no_others(floor, spared):
    terms, kl = terms_and_kl()
    loss(terms, WEIGHT, beta=2.0, free_bits=floor).backward()
    for dimension in (0, 1):
        expected = torch.zeros(3, dtype=torch.float64) if dimension in spared else 2.0 * WEIGHT
        torch.testing.assert_close(kl.grad[:, dimension], expected)


def test_the_floor_of_free_bits_scales_with_the_weight_of_the_cells():
    terms, kl = terms_and_kl()
    loss(terms, 10 * WEIGHT, beta=1.0, free_bits=0.1).backward()
    assert kl.grad[:, 0].tolist() == [0.0, 0.0, 0.0]
    assert (kl.grad[:, 1] > 0).all()


@pytest.mark.parametrize(("capacity", "sign"), [(0.5, 1.0), (3.0, -1.0)])
def test_capacity_pulls_the_kl_towards_the_target_from_both_sides(capacity, sign):
    terms, kl = terms_and_kl()
    value = loss(terms, WEIGHT, beta=2.0, capacity=capacity)
    value.backward()
    assert value.item() == pytest.approx(4.5 + 2.0 * abs(1.04 - capacity))
    torch.testing.assert_close(kl.grad, sign * 2.0 * WEIGHT[:, None].expand(3, 2))
