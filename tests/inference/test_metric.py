"""The metric makes distances those of decoded cells, and changes nothing else."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist

import scvae
from scvae import NetworkConfig, TrainingConfig
from scvae.inference import expression_metric
from scvae.inference.cells import read_cells
from scvae.inference.expression_metric import stabilized, with_metric
from scvae.inference.metric import Metric
from scvae.inference.posterior import log_likelihood_bound, posterior_moments
from tests.diagnostics.models import NOISE, linear_normal, set_weights

LOADINGS = np.random.default_rng(5).normal(size=(6, 3)) * [0.5, 3.0, 1.2]
SHORT = TrainingConfig(epochs=8, batch_size=32)


def cells_of_batches():
    return scvae.datasets.simulate(n_cells=160, n_genes=40, n_batches=2, mean_library=200.0, rng=0)


def fitted(adata, **options):
    return scvae.fit(
        adata, n_latent=4, training=SHORT, network=NetworkConfig(width=16), rng=0, verbose=False, **options
    )


@pytest.fixture(scope="module")
def both():
    """The same fit with the metric of expression and with that of the latent space."""
    pairs = []
    for metric in ("expression", "latent"):
        adata = cells_of_batches()
        pairs.append((adata, fitted(adata, batch_key="batch", metric=metric)))
    return pairs


def test_distances_are_those_of_decoded_cells_if_the_exponent_is_a_half(monkeypatch):
    monkeypatch.setattr(expression_metric, "EXPONENT", 0.5)
    monkeypatch.setattr(expression_metric, "UNMOVED", 1e-9)
    model, cells, _ = linear_normal(LOADINGS)
    z, _ = posterior_moments(model, cells)
    ratio = pdist(with_metric(model, cells).written(z)) / pdist(z @ LOADINGS.T / NOISE)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)


def test_the_scales_are_square_roots_of_the_slopes_and_descend():
    model, cells, _ = linear_normal(LOADINGS)
    slopes = np.linalg.svd(LOADINGS / NOISE, compute_uv=False)
    scale = with_metric(model, cells).metric.scale
    np.testing.assert_allclose(scale, np.sqrt(slopes / slopes.mean()), rtol=2e-3)


def test_with_batches_the_scales_are_roots_of_those_without(both):
    (_, model), _ = both
    cells = read_cells(cells_of_batches(), model, None)
    schema = dataclasses.replace(model.schema, batch=None)
    alone = with_metric(dataclasses.replace(model, schema=schema), cells).metric
    scale = np.sqrt(alone.scale)
    np.testing.assert_allclose(model.metric.scale, scale / np.sqrt(np.mean(scale**2)), rtol=1e-6)


def test_a_rotated_or_mirrored_latent_space_is_written_alike():
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    written = []
    model, cells, _ = linear_normal(LOADINGS)
    for loadings in (LOADINGS, LOADINGS @ turn, -LOADINGS[:, ::-1]):
        set_weights(model, loadings.astype(np.float32), NOISE)
        model = with_metric(model, cells)
        written.append(model.written(posterior_moments(model, cells)[0]))
        along = loadings @ model.metric.inverse.T
        assert ((along**3).sum(0) > 0).all()
    for other in written[1:]:  # rounding, and the shrinkage of slopes, which is not the same for every direction
        np.testing.assert_allclose(other, written[0], atol=5e-3)


def test_the_network_and_all_likelihoods_are_those_of_the_latent_metric(both):
    (_, ours), (_, plain) = both
    for name, weight in ours.network.state_dict().items():
        assert torch.equal(weight, plain.network.state_dict()[name])
    cells = read_cells(cells_of_batches(), ours, None)
    bounds = [log_likelihood_bound(model, cells, kind="iw", n_samples=5, seed=0) for model in (ours, plain)]
    np.testing.assert_array_equal(*bounds)
    assert ours.outcome.kl_per_dimension == plain.outcome.kl_per_dimension
    assert ours.digest != plain.digest


def test_without_a_metric_the_moments_of_the_network_are_written_to_the_bit(both):
    _, (adata, model) = both
    mean, variance = posterior_moments(model, read_cells(cells_of_batches(), model, None))
    np.testing.assert_array_equal(adata.obsm["X_scvae"], mean)
    np.testing.assert_array_equal(adata.obsm["X_scvae_var"], variance)
    assert adata.uns["scvae"]["params"]["metric"] == "latent"


def test_means_and_variances_are_those_of_draws(both):
    (adata, model), (plain, _) = both
    matrix = model.metric.matrix
    np.testing.assert_allclose(adata.obsm["X_scvae"], plain.obsm["X_scvae"] @ matrix, atol=1e-5)
    variance = np.stack([np.diag(matrix.T @ np.diag(v) @ matrix) for v in plain.obsm["X_scvae_var"].astype(float)])
    np.testing.assert_allclose(adata.obsm["X_scvae_var"], variance, rtol=1e-5)
    adata = adata.copy()
    scvae.tl.embed(adata, model, n_samples=4000)
    draws = adata.obsm["X_scvae_samples"]
    np.testing.assert_allclose(draws.mean(1), adata.obsm["X_scvae"], atol=0.1)
    np.testing.assert_allclose(draws.var(1), adata.obsm["X_scvae_var"], rtol=0.15)


def test_the_prior_has_the_recorded_standard_deviations_and_no_correlations(both):
    (adata, model), _ = both
    sd = adata.uns["scvae"]["prior_sd"]
    made = scvae.tl.generate(model, n=20_000).obsm["X_scvae"]
    np.testing.assert_allclose(np.cov(made.T), np.diag(sd**2), atol=0.05)
    assert np.mean(sd**2) == pytest.approx(1.0)


def test_a_saved_model_writes_the_same_bits(both, tmp_path):
    (adata, model), _ = both
    loaded = scvae.load(model.save(tmp_path / "model"))
    again = cells_of_batches()
    scvae.tl.embed(again, loaded)
    for slot in ("X_scvae", "X_scvae_var"):
        np.testing.assert_array_equal(again.obsm[slot], adata.obsm[slot])
    assert loaded.digest == model.digest
    assert (
        dataclasses.replace(loaded, metric=None).save(tmp_path / "plain").stat().st_size
        < (tmp_path / "model").stat().st_size
    )


def test_a_query_is_mapped_into_the_coordinates_of_the_reference(both):
    (reference, model), _ = both
    query = cells_of_batches()
    query.obs["batch"] = query.obs["batch"].astype(str).replace("batch_1", "new")
    with pytest.warns(UserWarning, match="are taken for these"):
        mapped = scvae.tl.map_query(query, model, epochs=1, verbose=False)
    np.testing.assert_array_equal(mapped.metric.matrix, model.metric.matrix)
    known = (query.obs["batch"] == "batch_0").to_numpy()
    np.testing.assert_allclose(query.obsm["X_scvae"][known], reference.obsm["X_scvae"][known], atol=1e-6)


def test_a_model_of_many_beta_has_one_metric_for_all():
    adata = cells_of_batches()
    model = fitted(adata, beta=(0.1, 10.0))
    for beta in (0.1, 1.0, 10.0):
        scvae.tl.embed(adata, model, beta=beta)
        z, _ = posterior_moments(model, read_cells(adata, model, None), beta=beta)
        np.testing.assert_allclose(adata.obsm["X_scvae"], z @ model.metric.matrix, atol=1e-5)


def test_further_training_keeps_the_choice_of_metric(both):
    (_, ours), (_, plain) = both
    one_epoch = {"training": TrainingConfig(epochs=1), "batch_key": "batch", "rng": 0, "verbose": False}
    assert scvae.fit(cells_of_batches(), init=plain, **one_epoch).metric is None
    further = scvae.fit(cells_of_batches(), init=ours, **one_epoch)
    assert not np.array_equal(further.metric.matrix, ours.metric.matrix)
    with pytest.raises(ValueError, match="metric='latent' \\(the model has 'expression'\\)"):
        scvae.fit(cells_of_batches(), init=ours, metric="latent", **one_epoch)


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match=r"metric must be one of .* found 'euclid'"):
        fitted(cells_of_batches(), metric="euclid")


def test_a_decoder_that_ignores_z_has_no_metric():
    model, cells, _ = linear_normal(0.0 * LOADINGS)
    assert with_metric(model, cells).metric is None


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "bernoulli", "gaussian"])
def test_the_variance_is_one_on_the_stabilized_scale(likelihood):
    """To first order, by differences: d stabilized / d mean = 1 / sqrt(variance)."""
    adata = scvae.datasets.simulate(n_cells=50, n_genes=12, likelihood=likelihood, truth=False, rng=0)
    model = scvae.fit(adata, likelihood=likelihood, n_latent=2, training=SHORT, rng=0, verbose=False)
    network, cells = model.network.double(), read_cells(adata, model, None)
    batch = cells.batch(np.arange(6))
    batch = dataclasses.replace(batch, library=batch.library.double(), numeric=batch.numeric.double())

    def table(at):
        z = torch.full((6, 2), at, dtype=torch.float64)
        law = network.likelihood.distribution(network.features(z, batch), batch)
        return stabilized(law), law.base if hasattr(law, "base") else law

    with torch.no_grad():
        (low, below), (_, law), (high, above) = (table(0.3 + step) for step in (-1e-5, 0.0, 1e-5))
        torch.testing.assert_close(
            (high - low) / 2e-5, (above.mean - below.mean) / 2e-5 / law.variance.sqrt(), rtol=1e-4, atol=1e-6
        )


def test_many_cells_and_draws_are_multiplied_as_few():
    rng = np.random.default_rng(0)
    metric = Metric(np.linalg.qr(rng.normal(size=(3, 3)))[0] * [2.0, 1.0, 0.5])
    z = rng.standard_normal((70_000, 3)).astype(np.float32)
    np.testing.assert_array_equal(metric.written(z)[-5:], metric.written(z[-5:]))
    np.testing.assert_allclose(metric.written(z).astype(float) @ metric.inverse, z, atol=1e-5)
    np.testing.assert_array_equal(metric.written(z[:6].reshape(2, 3, 3)), metric.written(z[:6]).reshape(2, 3, 3))
