"""Latents with a discrete part: codes against nearest neighbours by hand, categories against sums and draws."""

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch.distributions import Normal, kl_divergence

from scvae.model.latent import codebook
from scvae.model.latent.categorical import Categorical
from scvae.model.latent.codebook import Codebook
from scvae.model.latent.posterior import DiagonalNormal
from scvae.model.objective import kl_penalty


def drawn(*shape, seed=0, sd=1.0):
    return sd * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def categories(n=3, n_latent=2, **options):
    """Categories that have started, with centres and variances of their own."""
    prior = Categorical(n, n_latent, **options).double()
    prior.started.fill_(1.0)
    with torch.no_grad():
        prior.centre.copy_(drawn(n, n_latent, seed=1))
        prior.log_variance.copy_(drawn(n, n_latent, seed=2, sd=0.5))
    return prior


def codes(n=5, n_latent=2):
    book = Codebook(n, n_latent).double()
    book.started.fill_(1.0)
    book.codes.copy_(drawn(n, n_latent, seed=3))
    book.share.copy_(torch.arange(1, n + 1).double() / (n * (n + 1) / 2))
    return book


POSTERIOR = DiagonalNormal(drawn(6, 2, seed=4), drawn(6, 2, seed=5, sd=0.5))


def test_categories_start_as_the_standard_normal():
    prior = Categorical(4, 2).double()
    np.testing.assert_allclose(
        prior.log_prob(POSTERIOR.mean).detach(), stats.norm.logpdf(POSTERIOR.mean).sum(-1), rtol=1e-12
    )
    normal = Normal(POSTERIOR.mean, POSTERIOR.variance.sqrt())
    expected = kl_divergence(normal, Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(prior.kl(POSTERIOR, POSTERIOR.mean).sum(1), expected.double(), rtol=1e-9, atol=1e-12)
    prior.kl(POSTERIOR, POSTERIOR.mean).sum().backward()
    assert not prior.centre.grad.any()  # or they would have moved alike before the start


def by_hand(prior, posterior):
    """KL of q(z | x) from each category, by torch.distributions."""
    q = Normal(posterior.mean[:, None], posterior.variance.sqrt()[:, None])
    return kl_divergence(q, Normal(prior.centre, (0.5 * prior.log_variance).exp())).sum(-1)


def test_the_divergence_of_categories_is_that_of_y_and_z_at_the_best_q_of_y():
    prior = categories()
    each = by_hand(prior, POSTERIOR).detach()
    found = prior.kl(POSTERIOR, POSTERIOR.mean).sum(1)

    def objective(logits):
        """KL(q(y) q(z | x) || p(y) p(z | y)), by its definition."""
        q = torch.softmax(logits, -1)
        return (q * (q.log() + np.log(3) + each)).sum(1)

    torch.testing.assert_close(found, objective(-each), rtol=1e-9, atol=0)
    for seed in range(20):
        assert (objective(-each + drawn(6, 3, seed=seed)) > found).all()
    np.testing.assert_allclose(prior.membership(POSTERIOR).detach(), special.softmax(-each.numpy(), 1), rtol=1e-9)


def test_the_divergence_is_above_that_from_the_mixture():
    prior = categories()
    draws = POSTERIOR.reparameterize(drawn(20_000, 6, 2))
    from_mixture = (POSTERIOR.log_prob(draws) - prior.log_prob(draws)).mean(0)
    assert (prior.kl(POSTERIOR, draws).sum(1) > from_mixture - 0.02).all()


def gradients(prior, value):
    found = torch.autograd.grad(value, (prior.centre, prior.log_variance), retain_graph=True)
    return torch.cat([slope.flatten() for slope in found])


@pytest.mark.parametrize("relaxation", ["gumbel", "straight_through"])
def test_at_a_small_temperature_the_relaxation_has_the_value_and_gradient_of_the_sum(relaxation):
    """Over many draws of y for one cell; at a high temperature, a mean of weights is not the mean of types."""
    prior = categories(relaxation=relaxation)
    n = 200_000
    one = DiagonalNormal(POSTERIOR.mean[:1], POSTERIOR.log_variance[:1])
    many = DiagonalNormal(one.mean.expand(n, -1), one.log_variance.expand(n, -1))
    exact = prior.kl(one, one.mean).sum()
    slope = gradients(prior, exact)
    prior.temperature.fill_(0.05)
    noise = drawn(n, 3, seed=9)
    found = prior.rate(many, many.mean, noise).sum(1)
    error = float(found.detach().std()) / np.sqrt(n)
    assert float(found.detach().mean()) == pytest.approx(float(exact.detach()), abs=4 * error)
    parts = torch.stack([gradients(prior, part.mean()) for part in found.split(n // 20)])
    errors = parts.std(0) / np.sqrt(20)
    assert (((parts.mean(0) - slope) / errors).abs() < 5).all()
    assert errors.max() < 0.05 * slope.abs().max()


def test_a_relaxation_is_for_training_only():
    prior = categories(relaxation="gumbel")
    prior.eval()
    noise = drawn(6, 3)
    assert prior.n_noise == 3
    assert torch.equal(prior.rate(POSTERIOR, POSTERIOR.mean, noise), prior.kl(POSTERIOR, POSTERIOR.mean))


def test_a_straight_through_draw_is_a_type_with_its_probability():
    """P(y) under the largest of logits and Gumbel noise is softmax(logits)."""
    prior, n = categories(relaxation="straight_through"), 50_000
    one = DiagonalNormal(POSTERIOR.mean[:1].expand(n, -1), POSTERIOR.log_variance[:1].expand(n, -1))
    each = by_hand(prior, one)[0].detach()
    q = special.softmax(-each.numpy())
    of_type = float((q * np.log(3 * q)).sum())  # KL(q(y) || p(y)), the same at each draw
    rates = prior.rate(one, one.mean, drawn(n, 3)).sum(1).detach()
    chosen = (rates[:, None] - of_type - each).abs().argmin(1)
    torch.testing.assert_close(rates, of_type + each[chosen], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(np.bincount(chosen, minlength=3) / n, q, atol=0.01)


def test_the_temperature_falls_from_one_to_three_tenths():
    prior = categories(relaxation="gumbel")
    seen = []
    for done in (0.0, 0.35, 0.7, 0.9):
        prior.anneal(done)
        seen.append(float(prior.temperature))
    np.testing.assert_allclose(seen, [1.0, np.sqrt(0.3), 0.3, 0.3], rtol=1e-6)


def test_draws_of_the_categories_have_the_mean_and_variance_that_the_prior_names():
    prior = categories()
    z = prior.sample(40_000, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(z.mean(0), prior.mean, atol=0.03)
    np.testing.assert_allclose(z.var(0), prior.variance, rtol=0.05)
    laws = [
        stats.multivariate_normal(c, np.diag(np.exp(v)))
        for c, v in zip(prior.centre.detach().numpy(), prior.log_variance.detach().numpy(), strict=True)
    ]
    expected = special.logsumexp([law.logpdf(z[:50].numpy()) for law in laws], axis=0) - np.log(3)
    np.testing.assert_allclose(prior.log_prob(z[:50]).detach(), expected, rtol=1e-9)


def test_fewer_dimensions_leave_the_marginal_law():
    prior = categories()
    prior.drop_dimensions(torch.tensor([True, False]))
    z = drawn(5, 1)
    laws = [
        stats.norm(c, np.exp(v / 2))
        for c, v in zip(*(p.detach()[:, 0].numpy() for p in prior.parameters()), strict=True)
    ]
    expected = special.logsumexp([law.logpdf(z[:, 0].numpy()) for law in laws], axis=0) - np.log(3)
    np.testing.assert_allclose(prior.log_prob(z).detach(), expected, rtol=1e-9)


def test_the_decoder_sees_the_nearest_code_and_its_gradient_goes_straight_through():
    book = codes()
    z = drawn(7, 2, seed=6).requires_grad_()
    nearest = np.linalg.norm(z.detach().numpy()[:, None] - book.codes.numpy(), axis=-1).argmin(1)
    seen = book.decoded(z)
    np.testing.assert_allclose(seen.detach(), book.codes[nearest], rtol=1e-12)
    slope = drawn(7, 2, seed=7)
    (seen * slope).sum().backward()
    torch.testing.assert_close(z.grad, slope)


def test_the_commitment_is_a_quarter_of_the_squared_distance_and_pulls_z_alone():
    book = codes()
    z = drawn(7, 2, seed=6).requires_grad_()
    own = book.codes[book.nearest(z.detach())]
    book.penalty(z).sum().backward()
    torch.testing.assert_close(z.grad, 0.5 * (z.detach() - own))


def test_the_rate_of_a_code_is_minus_its_log_probability():
    book = codes()
    posterior = book.inferred(DiagonalNormal(book.codes.clone(), torch.zeros(5, 2).double()))
    share = np.arange(1, 6) / 15
    smooth = (share + 0.01 / 5) / (share + 0.01 / 5).sum()
    np.testing.assert_allclose(book.kl(posterior, posterior.mean).sum(1), -np.log(smooth), rtol=1e-9)
    assert book.perplexity == pytest.approx(np.exp(stats.entropy(share)))
    drawn_codes = book.nearest(book.sample(20_000, torch.Generator().manual_seed(0)))
    np.testing.assert_allclose(np.bincount(drawn_codes) / 20_000, smooth, atol=0.015)
    assert torch.equal(posterior.reparameterize(torch.ones(3, 5, 2).double()), posterior.mean.expand(3, 5, 2))


def test_codes_go_to_the_mean_of_their_cells():
    book = codes(2)
    book.codes.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    book.share.fill_(0.5)
    centre = torch.tensor([[-3.0, 1.0], [2.0, -1.0]]).double()
    for step in range(400):
        z = centre.repeat_interleave(torch.tensor([30, 10]), 0) + 0.1 * drawn(40, 2, seed=step)
        book.follow(z, torch.full((40,), 1 / 40).double(), drawn(40, 2, seed=step))
    torch.testing.assert_close(book.codes, centre, atol=0.02, rtol=0)
    torch.testing.assert_close(book.share, torch.tensor([0.75, 0.25]).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(book.spread, torch.tensor([0.01, 0.01]).double(), atol=2e-3, rtol=0)


def test_until_the_codes_start_the_decoder_sees_z():
    book, z = Codebook(3, 2).double(), drawn(9, 2)
    assert torch.equal(book.decoded(z), z)
    assert not book.penalty(z).any()
    assert [book.wants_start(done) for done in (0.1, 0.15, 0.16, 1.0)] == [False, False, True, True]
    group = torch.tensor([0, 0, 0, 0, 2, 2, 2, 2, 2])
    book.start_at(z, group)
    assert not book.wants_start(1.0)
    torch.testing.assert_close(book.codes, torch.stack([z[:4].mean(0), torch.zeros(2).double(), z[4:].mean(0)]))
    torch.testing.assert_close(book.share, torch.tensor([4 / 9, 0.0, 5 / 9]).double())


def test_categories_start_at_groups_of_cells():
    prior, z = Categorical(2, 2).double(), drawn(9, 2)
    prior.start_at(z, torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1]))
    torch.testing.assert_close(prior.centre[1].detach(), z[4:].mean(0))
    torch.testing.assert_close(prior.log_variance[1].detach().exp(), z[4:].var(0, correction=0) + 0.05)


def test_a_dead_code_starts_again_at_a_cell_of_the_batch_until_late_in_the_training():
    book = codes(3)
    book.codes.copy_(torch.tensor([[0.0, 0.0], [0.1, 0.0], [99.0, 99.0]]))
    book.share.copy_(torch.tensor([0.5, 0.5, 1e-4]))
    z, weight = drawn(20, 2), torch.full((20,), 1 / 20).double()
    book.anneal(codebook.RESTARTS_UNTIL)
    book.follow(z, weight, drawn(20, 2, seed=1))
    assert book.codes[2, 0] == 99.0
    book.anneal(0.0)
    book.follow(z, weight, drawn(20, 2, seed=1))
    first = drawn(20, 2, seed=1)[:, 0].argmin()
    assert torch.equal(book.codes[2], z[first])
    assert float(book.share[2]) == pytest.approx(codebook.REBORN / 3)


def test_a_step_that_is_not_finite_leaves_the_codes_alone():
    book = codes()
    before = {name: tensor.clone() for name, tensor in book.state_dict().items()}
    z = drawn(4, 2)
    z[1, 0] = np.nan
    book.follow(z, torch.full((4,), 0.25).double(), drawn(4, 2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in book.state_dict().items())


def test_free_bits_also_hold_for_the_type():
    """With all centres alike the type tells nothing; free bits then leave it and the unused dimensions alone."""
    prior = categories()
    with torch.no_grad():
        prior.centre.zero_()
        prior.log_variance.zero_()
    summands = prior.kl(POSTERIOR, POSTERIOR.mean)
    assert summands.shape == (6, 3)  # two dimensions and the type
    np.testing.assert_allclose(summands[:, 2].detach(), 0.0, atol=1e-12)
    prior = categories()
    q = special.softmax(-by_hand(prior, POSTERIOR).detach().numpy(), 1)
    np.testing.assert_allclose(
        prior.kl(POSTERIOR, POSTERIOR.mean)[:, 2].detach(), np.log(3) - stats.entropy(q, axis=1), rtol=1e-9
    )
    of_type = prior.kl(POSTERIOR, POSTERIOR.mean).mean(0)[2:]
    assert gradients(prior, kl_penalty(of_type, free_bits=2.0, capacity=None)).abs().max() == 0.0
    assert gradients(prior, kl_penalty(of_type, free_bits=0.01, capacity=None)).abs().max() > 0.0
