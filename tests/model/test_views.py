"""Several measurements of a cell in one network: the ELBO of what it has, and nothing of what it lacks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import sparse, stats

import scvae
from scvae.data.intake import DataKeys, read_fit
from scvae.data.joint import learn_views
from scvae.kernels.block import Dense
from scvae.model.objective import evidence_terms
from scvae.model.turned import TurnedVAE
from scvae.model.vae import make_model
from scvae.training.start import start_heads
from scvae.training.step import LEFT_WITH_ONE, with_less


@pytest.fixture(scope="module")
def cells_and_network():
    """30 cells with RNA and proteins: the first five lack proteins, the next five RNA; a network that knows both."""
    adata = scvae.datasets.simulate(n_cells=30, n_genes=20, n_proteins=6, n_batches=2, rng=0)
    adata.obsm["protein"].iloc[:5] = np.nan
    is_rna = ~np.isin(np.arange(30), np.arange(5, 10))
    adata.X = sparse.csr_matrix(adata.X.toarray() * is_rna[:, None])
    schema, cells = read_fit(adata, DataKeys(batch_key="batch"), kind="counts")
    view = {"protein": scvae.View(obsm="protein", weight=2.0)}
    schema, cells = learn_views(adata, view, {"protein": "counts"}, schema, cells)
    network = make_model(schema, "nb", 3, scvae.NetworkConfig(width=16), seed=0)
    start_heads(network, cells, np.arange(30))
    return cells, network.eval()


def nb(head, features, batch):
    """log NB by scipy, summed over features: proportions x library, inverse dispersion per feature."""
    logits = features @ head.output.weight.detach().numpy().T + head.output.bias.detach().numpy()
    mean = np.exp(logits - logits.max(1, keepdims=True))
    mean *= batch.library.numpy()[:, None] / mean.sum(1, keepdims=True)
    theta = np.exp(head.log_inverse_dispersion.detach().numpy().astype(np.float64))
    return stats.nbinom.logpmf(batch.x.to_dense().numpy(), theta, theta / (theta + mean)).sum(1)


def test_the_elbo_is_that_of_what_each_cell_has(cells_and_network):
    cells, network = cells_and_network
    batch = cells.batch(np.arange(30))
    noise = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    weight = torch.rand(30, generator=torch.Generator().manual_seed(1))
    terms = evidence_terms(network, batch, noise, weight)
    q = terms.posterior
    features = network.features(q.mean + noise * q.variance.sqrt(), batch).detach().numpy().astype(np.float64)
    rna, protein = (
        nb(network.likelihood, features, batch),
        nb(network.views[0].head, features, batch.of_view(batch.views[0])),
    )
    rna[5:10] = 0.0
    protein[:5] = 0.0
    kl = 0.5 * (q.mean.square() + q.variance - q.variance.log() - 1.0).sum(1).detach().numpy()
    np.testing.assert_allclose(terms.elbo.detach().numpy(), rna + protein - kl, rtol=2e-5)
    # the weight of a view counts in training alone
    total = (weight.numpy() * (rna + 2.0 * protein)).sum()
    assert float(terms.weighted_log_likelihood.detach()) == pytest.approx(total, rel=2e-5)


def test_values_of_what_a_cell_lacks_change_neither_posterior_nor_gradient(cells_and_network):
    cells, network = cells_and_network
    batch = cells.batch(np.arange(30))
    view = batch.views[0]
    absurd = view.x.to_dense()
    absurd[:5] = 1000.0
    spoilt = dataclasses.replace(view, x=Dense(absurd))
    found = []
    for some in (view, dataclasses.replace(view, x=Dense(view.x.to_dense())), spoilt):
        network.zero_grad()
        terms = evidence_terms(network, dataclasses.replace(batch, views=(some,)), torch.zeros(30, 3), torch.ones(30))
        (terms.kl.sum() - terms.weighted_log_likelihood).backward()
        gradients = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        found.append((terms.posterior.mean.detach(), gradients))
    for same in found[1:]:
        torch.testing.assert_close(same, found[0], rtol=1e-4, atol=1e-4)


def test_a_turned_network_decodes_the_view_and_keeps_posterior_bound_and_identity(cells_and_network):
    cells, network = cells_and_network
    batch, turned = cells.batch(np.arange(30)), TurnedVAE(network, 0)
    back = cells.turned(0).batch(np.arange(30))
    torch.testing.assert_close(back.x.to_dense(), batch.views[0].x.to_dense())
    assert torch.equal(turned.encode(back).mean, network.encode(batch).mean)
    z = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(30)
    assert torch.equal(turned.log_likelihood(z, back, ones).per_row, network.log_likelihood(z, batch, ones).per_row)
    alone = turned.likelihood.log_prob(turned.features(z, back), back, ones).per_row * back.present
    assert torch.equal(alone, network.log_likelihoods(z, batch, ones)[1].per_row)
    assert turned.state_dict().keys() == network.state_dict().keys()


def test_half_of_the_cells_are_left_with_one_of_what_they_have(cells_and_network):
    cells, _ = cells_and_network
    batch = cells.batch(np.tile(np.arange(30), 100))
    less = with_less(batch, torch.Generator().manual_seed(0))
    before, after = (torch.stack([b.present, b.views[0].present], 1) for b in (batch, less))
    assert not (after & ~before).any()
    assert (after.sum(1) >= 1).all()
    both = before.all(1)
    assert torch.equal(after[~both], before[~both])
    left = after[both].float().mean(0).numpy()
    np.testing.assert_allclose(left, 1.0 - LEFT_WITH_ONE / 2, atol=0.03)
    assert float((after[both].sum(1) == 1).float().mean()) == pytest.approx(LEFT_WITH_ONE, abs=0.03)
