"""`tl.denoise`: expected expression."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import scvae
from scvae import NetworkConfig, TrainingConfig
from scvae.model.decoder import LOADING_SD, OFFSET_SD
from tests.diagnostics.models import NOISE, linear_normal
from tests.tl.hardly_trained import case, fit

LOADINGS = np.array([[1.5, 0.0], [0.5, 0.0], [0.0, 0.9], [0.0, -0.4]])  # orthogonal: posteriors are diagonal
SLOTS = ["scvae_denoised", "scvae_denoised_lower", "scvae_denoised_upper"]


def test_a_linear_normal_model_gives_its_posterior_mean_and_its_quantiles():
    model, _, x = linear_normal(LOADINGS, n_cells=40)
    adata = ad.AnnData(x)
    scvae.tl.denoise(adata, model, n_samples=2000, interval=0.9)
    square = (LOADINGS**2).sum(0)
    variance = NOISE**2 / (square + NOISE**2)
    mean = x @ (LOADINGS / (square + NOISE**2)) @ LOADINGS.T
    spread = np.sqrt(LOADINGS**2 @ variance)
    found = {name: adata.layers[name] for name in SLOTS}
    np.testing.assert_allclose(found["scvae_denoised"], mean, atol=5 * spread.max() / np.sqrt(2000))
    edge = stats.norm.ppf(0.95) * spread
    np.testing.assert_allclose(found["scvae_denoised_lower"], mean - edge, atol=0.2 * spread.max())
    np.testing.assert_allclose(found["scvae_denoised_upper"], mean + edge, atol=0.2 * spread.max())


def test_intervals_hold_the_expected_values_that_the_cells_were_drawn_with():
    rng = np.random.default_rng(5)
    z = rng.standard_normal((400, 2))
    x = (z @ LOADINGS.T + NOISE * rng.standard_normal((400, 4))).astype(np.float32)
    model, _, _ = linear_normal(LOADINGS, n_cells=20)
    adata = ad.AnnData(x)
    scvae.tl.denoise(adata, model, n_samples=200, interval=0.8)
    truth = z @ LOADINGS.T
    inside = (adata.layers[SLOTS[1]] <= truth) & (truth <= adata.layers[SLOTS[2]])
    assert abs(inside[:, [0, 2]].mean() - 0.8) < 0.06  # two genes of one dimension each: 800 independent values


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_by_default_each_cell_has_proportions(likelihood):
    adata, model = case(likelihood)
    scvae.tl.denoise(adata, model, n_samples=3)
    found = adata.layers["scvae_denoised"]
    assert found.dtype == np.float32
    assert (found > 0).all()
    np.testing.assert_allclose(found.sum(1), 1.0, rtol=1e-5)


def test_counts_are_expected_at_the_library_size_asked_for():
    adata, model = case()
    scvae.tl.denoise(adata, model, library_size=1e4)
    at_ten_thousand = adata.layers["scvae_denoised"]
    scvae.tl.denoise(adata, model, library_size="observed")
    library = np.asarray(adata.X.sum(1)).reshape(-1, 1)
    np.testing.assert_allclose(at_ten_thousand.sum(1), 1e4, rtol=1e-5)
    np.testing.assert_allclose(adata.layers["scvae_denoised"], at_ten_thousand * library / 1e4, rtol=1e-4)


def test_the_probability_of_a_binary_feature_is_that_at_the_depth_asked_for():
    adata, model = case("bernoulli")
    found = {}
    for depth in (None, 3.0, 6.0, "observed"):
        scvae.tl.denoise(adata, model, library_size=depth, n_samples=0)
        found[depth] = adata.layers["scvae_denoised"].astype(np.float64)
        assert ((found[depth] > 0) & (found[depth] < 1)).all()
    slope = model.network.likelihood.depth_slope.detach().numpy()
    logit = {depth: np.log(value) - np.log1p(-value) for depth, value in found.items()}
    np.testing.assert_allclose(logit[6.0] - logit[3.0], np.log(2) * np.tile(slope, (50, 1)), atol=1e-3)
    depth = np.asarray(adata.X.sum(1)).ravel()[:, None]
    np.testing.assert_allclose(logit["observed"] - logit[3.0], np.log(depth / 3) * slope, atol=1e-3)
    usual = np.exp(np.log(np.maximum(depth, 1)).mean())
    np.testing.assert_allclose(logit[None] - logit[3.0], np.log(usual / 3) * np.tile(slope, (50, 1)), atol=0.05)


def test_the_order_of_the_genes_makes_no_difference():
    adata, model = case()
    order = np.random.default_rng(3).permutation(12)
    shuffled = adata[:, order].copy()
    for which in (adata, shuffled):
        scvae.tl.denoise(which, model, interval=0.9, n_samples=20)
    for slot in SLOTS:
        np.testing.assert_allclose(shuffled.layers[slot], adata.layers[slot][:, order], rtol=1e-5)


def test_a_gene_has_the_same_values_whatever_else_is_asked_for():
    adata, model = case()
    scvae.tl.denoise(adata, model)
    whole = pd.DataFrame(adata.layers["scvae_denoised"], adata.obs_names, adata.var_names)
    genes = ["gene_7", "gene_2"]
    scvae.tl.denoise(adata, model, genes=genes)
    pd.testing.assert_frame_equal(adata.obsm["scvae_denoised"], whole[genes], rtol=1e-5)


def test_an_offset_between_batches_is_taken_out():
    """x = W z + offset of the batch + noise, with just this decoder: moved, a cell keeps its W z."""
    rng = np.random.default_rng(0)
    adata = ad.AnnData(rng.standard_normal((60, 4)).astype(np.float32))
    adata.obs["batch"] = np.repeat(["a", "b", "c"], 20)
    network = NetworkConfig(decoder="linear", minimum_scale=0.0, norm="none", width=4)
    model = fit(adata, likelihood="gaussian", batch_key="batch", network=network)
    offsets = np.array([[0.0, 0, 0, 0], [1, -1, 2, 0], [3, 0, 0, -2]], np.float32)
    with torch.no_grad():
        model.network.likelihood.spread.fill_(1.0)
        model.network.likelihood.output.weight[:, 2:] = torch.from_numpy(offsets.T * LOADING_SD / OFFSET_SD)
    found = {}
    for to in (None, "a", "b", ["b", "c"]):
        scvae.tl.denoise(adata, model, transform_batch=to, n_samples=4)
        found[to if to is None or isinstance(to, str) else "both"] = adata.layers["scvae_denoised"]
    own = offsets[adata.obs["batch"].map({"a": 0, "b": 1, "c": 2}).to_numpy()]
    np.testing.assert_allclose(found["a"], found[None] - own, atol=1e-5)
    np.testing.assert_allclose(found["b"], found["a"] + offsets[1], atol=1e-5)
    np.testing.assert_allclose(found["both"], found["a"] + offsets[1:].mean(0), atol=1e-5)
    some = adata.obs["batch"][20:]
    for both in (some.unique(), pd.Series(some.unique()), pd.Categorical(some.unique()), {"c", "b"}):
        scvae.tl.denoise(adata, model, transform_batch=both, n_samples=4)
        np.testing.assert_allclose(adata.layers["scvae_denoised"], found["both"], atol=1e-5)
    assert np.array_equal(found["a"][:20], found[None][:20])


def test_denoised_proportions_are_closer_to_the_truth_than_the_counts():
    adata = scvae.datasets.simulate(n_cells=500, n_genes=60, n_latent=2, mean_library=300.0, signal=1.0, rng=0)
    model = fit(adata, training=TrainingConfig(), network=NetworkConfig(width=32))
    scvae.tl.denoise(adata, model)
    truth, counts = adata.layers["rho"], adata.X.toarray()
    profile = counts.sum(0) / counts.sum()
    guesses = (adata.layers["scvae_denoised"], profile, counts / counts.sum(1, keepdims=True))
    error = [np.abs(guess - truth).mean() for guess in guesses]
    assert error[0] < 0.7 * min(error[1:])


def test_the_beta_of_a_path_is_honoured():
    adata = scvae.datasets.simulate(n_cells=50, n_genes=12, truth=False, rng=0)
    model = fit(adata, beta=(0.1, 10.0))
    found = []
    for beta in (None, 1.0, 0.1):
        scvae.tl.denoise(adata, model, beta=beta)
        found.append(adata.layers["scvae_denoised"])
        assert adata.uns["scvae"]["denoised"]["beta"] == (beta or 1.0)
    assert np.array_equal(found[0], found[1])
    assert np.abs(found[1] - found[2]).max() > 1e-6
