"""Posterior draws and what the decoder makes of them, against laws that are known."""

import functools

import numpy as np
import pytest
import torch
from scipy.special import roots_hermite, softmax

import scvae
from scvae import NetworkConfig, TrainingConfig
from scvae.inference.cells import read_cells
from scvae.inference.decoding import Target, batch_codes, expression, gene_positions, posterior_draws
from scvae.likelihoods import NAMES
from tests.diagnostics.models import linear_normal

LOADINGS = np.array([[1.5, 0.0], [0.5, -0.6], [0.0, 0.9], [0.3, 0.3]])


@functools.cache
def quick(likelihood="nb", *, n_latent=2, **options):
    """Cells and a model that is hardly trained, neither to be changed: what is tested here holds for any weights."""
    settings = {"n_cells": 40, "n_genes": 12, "n_batches": 3, "truth": False, "mean_library": 60.0, "rng": 0}
    adata = scvae.datasets.simulate(likelihood=likelihood, **settings)
    training = TrainingConfig(epochs=2, batch_size=16)
    network = NetworkConfig(width=8)
    options = {"batch_key": "batch", "network": network, "training": training} | options
    return adata, scvae.fit(adata, likelihood=likelihood, n_latent=n_latent, rng=0, verbose=False, **options)


def drawn(model, cells, **options):
    with torch.no_grad():
        yield from posterior_draws(model, cells, **{"n_samples": 1, "seed": 0} | options)


def test_draws_have_the_mean_and_variance_of_the_posterior():
    model, cells, _ = linear_normal(LOADINGS, n_cells=30)
    mean, variance = scvae.inference.posterior.posterior_moments(model, cells)
    (chunk,) = drawn(model, cells, n_samples=4000)
    z = chunk.z.numpy()
    assert z.shape == (4000, 30, 2)
    error = np.sqrt(variance / 4000)
    assert np.abs((z.mean(0) - mean) / error).max() < 4.5
    np.testing.assert_allclose(z.var(0), variance, rtol=0.12)
    between = np.corrcoef(z.reshape(4000, -1), rowvar=False)[np.triu_indices(60, 1)]
    assert np.abs(between).max() < 0.09  # 1,770 correlations of 4,000 pairs: none is beyond 5.5 standard errors


def test_without_draws_the_posterior_mean_stands_for_them():
    model, cells, _ = linear_normal(LOADINGS, n_cells=30)
    mean, _ = scvae.inference.posterior.posterior_moments(model, cells)
    (chunk,) = drawn(model, cells, n_samples=0)
    np.testing.assert_allclose(chunk.z.numpy(), mean[None], atol=1e-6)


def test_the_draws_of_a_cell_do_not_depend_on_the_size_of_the_chunks(monkeypatch):
    model, cells, _ = linear_normal(LOADINGS, n_cells=150)
    (whole,) = drawn(model, cells, n_samples=3)
    monkeypatch.setattr(scvae.inference.decoding, "TABLE", 4 * 50)
    parts = list(drawn(model, cells, n_samples=3))
    assert [len(part.positions) for part in parts] == [48, 48, 48, 6]
    np.testing.assert_allclose(np.concatenate([part.z.numpy() for part in parts], axis=1), whole.z.numpy(), atol=1e-6)


def test_the_draws_follow_the_seed():
    model, cells, _ = linear_normal(LOADINGS, n_cells=30)
    first, again, other = (next(drawn(model, cells, seed=seed)).z for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("likelihood", NAMES)
def test_a_few_genes_have_the_values_they_have_among_all(likelihood):
    adata, model = quick(likelihood)
    genes = torch.tensor([7, 0, 3])
    for chunk in drawn(model, read_cells(adata, model, None)):
        (few,) = expression(model, chunk, Target(genes=genes))
        (every,) = expression(model, chunk, Target())
        torch.testing.assert_close(few, every[:, genes], rtol=1e-5, atol=1e-7)
        laws = [scvae.inference.decoding.decode(model, chunk.z[0], chunk.batch, which) for which in (genes, None)]
        torch.testing.assert_close(laws[0].mean, laws[1].mean[:, genes], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(laws[0].variance, laws[1].variance[:, genes], rtol=1e-5, atol=1e-7)


def test_expected_counts_are_library_times_the_softmax_of_the_linear_decoder():
    """One latent dimension: the average over its normal posterior by quadrature."""
    linear = NetworkConfig(width=8, decoder="linear")
    adata, model = quick.__wrapped__("poisson", n_latent=1, batch_key=None, network=linear)
    head = model.network.likelihood
    with torch.no_grad():
        head.output.weight.copy_(torch.linspace(-2, 2, 12)[:, None])
        model.network.encoder.log_variance.bias.fill_(np.log(0.5))
    cells = read_cells(adata, model, None)
    mean, variance = scvae.inference.posterior.posterior_moments(model, cells)
    nodes, weights = roots_hermite(60)
    z = mean + np.sqrt(2 * variance) * nodes  # cells x nodes
    weight, bias = (value.detach().double().numpy() for value in (head.output.weight[:, 0], head.output.bias))
    truth = np.einsum("cng,n->cg", softmax(z[:, :, None] * weight + bias, axis=2), weights) / np.sqrt(np.pi)
    (chunk,) = drawn(model, cells, n_samples=4000)
    with torch.no_grad():
        draws = torch.stack(list(expression(model, chunk, Target(library=500.0)))).double().numpy()
    error = draws.std(0) / np.sqrt(len(draws))
    assert np.abs((draws.mean(0) - 500 * truth) / error).max() < 5
    assert np.abs(softmax(mean * weight + bias, axis=1) - truth).max() > 0.01  # the posterior mean would not do


def test_cells_put_into_their_own_batch_stay_as_they_are():
    adata, model = quick()
    cells = read_cells(adata, model, None)
    (chunk,) = drawn(model, cells)
    (own,) = expression(model, chunk, Target(library=1.0))
    for code in range(3):
        (moved,) = expression(model, chunk, Target(library=1.0, batches=(code,)))
        same = torch.from_numpy(cells.codes[:, 0] == code)
        torch.testing.assert_close(moved[same], own[same])
        assert (moved[~same] - own[~same]).abs().max() > 1e-6


def test_several_batches_are_averaged():
    adata, model = quick()
    (chunk,) = drawn(model, read_cells(adata, model, None))
    one, two, both = (next(expression(model, chunk, Target(batches=codes))) for codes in ((0,), (2,), (0, 2)))
    torch.testing.assert_close(both, (one + two) / 2)


def test_of_a_zero_inflated_law_the_counts_before_any_is_lost_are_expected():
    adata, model = quick("zinb")
    (chunk,) = drawn(model, read_cells(adata, model, None))
    (values,) = expression(model, chunk, Target(library=1.0))
    torch.testing.assert_close(values.sum(1), torch.ones(len(values)))
    assert (scvae.inference.decoding.decode(model, chunk.z[0], chunk.batch).mean.sum(1) < chunk.batch.library).all()


def test_genes_are_found_by_name_and_unknown_ones_are_named():
    _, model = quick()
    assert gene_positions(model, [model.genes[5], model.genes[2]], model.genes).tolist() == [5, 2]
    with pytest.raises(ValueError, match="genes has 'CD3E', unknown to the model"):
        gene_positions(model, [model.genes[0], "CD3E"], model.genes)
    with pytest.raises(ValueError, match="more than once"):
        gene_positions(model, [model.genes[0]] * 2, model.genes)
    with pytest.raises(ValueError, match="genes is empty"):
        gene_positions(model, [], model.genes)
    with pytest.raises(TypeError, match="pass a list"):
        gene_positions(model, "gene_1", model.genes)


def test_batches_are_found_by_name_and_unknown_ones_are_named():
    _, model = quick()
    assert batch_codes(model, ["batch_2", "batch_0"], "to") == (2, 0)
    assert batch_codes(model, "batch_1", "to") == (1,)
    with pytest.raises(ValueError, match="to has 'new', unknown to the model; the batches of 'batch' are 'batch_0'"):
        batch_codes(model, ["batch_1", "new"], "to")
    with pytest.raises(ValueError, match="each once"):
        batch_codes(model, ["batch_1", "batch_1"], "to")
    with pytest.raises(ValueError, match="fitted without batch_key"):
        batch_codes(quick(batch_key=None)[1], "batch_1", "to")
