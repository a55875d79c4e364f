"""A linear decoder with a Gaussian head is factor analysis: it must reach the maximum likelihood that EM finds."""

import anndata
import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.decomposition import FactorAnalysis

import scvae
from scvae import NetworkConfig, TrainingConfig
from scvae.data.intake import read_query
from scvae.diagnostics.gaps import gaps

N_CELLS, N_VARIABLES, N_FACTORS = 1000, 12, 3


def linear_gaussian_cells(seed):
    """x = mean + W z + noise, with units and noise that differ between variables."""
    rng = np.random.default_rng(seed)
    units = np.exp(rng.normal(size=N_VARIABLES))
    loadings = rng.normal(size=(N_VARIABLES, N_FACTORS))
    noise = np.sqrt(rng.uniform(0.3, 1.5, N_VARIABLES)) * rng.normal(size=(N_CELLS, N_VARIABLES))
    x = rng.normal(size=(N_CELLS, N_FACTORS)) @ loadings.T + noise
    return ((x + 3 * rng.normal(size=N_VARIABLES)) * units).astype(np.float32)


@pytest.fixture(scope="module", params=[0, 1])
def fitted(request):
    """Cells, a model of them, and its mean, loadings and unique variances; not to be changed."""
    adata = anndata.AnnData(linear_gaussian_cells(request.param))
    model = scvae.fit(
        adata,
        likelihood="gaussian",
        n_latent=N_FACTORS,
        metric="latent",
        network=NetworkConfig(decoder="linear"),
        training=TrainingConfig(validation_fraction=0.0),
        rng=request.param,
        verbose=False,
    )
    head = model.network.likelihood
    mean = (head.centre + head.spread * head.output.bias).detach().double().numpy()
    unique = np.exp(2 * head.log_scale().detach().double().numpy())
    return adata, model, mean, adata.varm["scvae_loadings"].astype(float), unique


def test_a_linear_gaussian_fit_reaches_the_maximum_likelihood_of_factor_analysis(fitted):
    adata, model, mean, loadings, unique = fitted
    reached = multivariate_normal(mean, loadings @ loadings.T + np.diag(unique)).logpdf(adata.X).mean()
    best = FactorAnalysis(N_FACTORS, tol=1e-8, max_iter=5000).fit(adata.X).score(adata.X)
    assert abs(best - reached) / N_VARIABLES < 0.01

    # the encoder can hold this posterior, so the importance-weighted bound ends there too, and the ELBO nearby
    bound = scvae.tl.log_likelihood(adata, model, n_samples=200, rng=0).mean()
    assert abs(bound - reached) / N_VARIABLES < 0.005
    elbo = scvae.tl.log_likelihood(adata, model, kind="elbo", n_samples=50, rng=0).mean()
    assert elbo < bound
    assert (best - elbo) / N_VARIABLES < 0.02


def test_what_its_elbo_lacks_is_the_amortization_gap_and_the_shape_of_q(fitted):
    adata, model, mean, loadings, unique = fitted
    evidence = multivariate_normal(mean, loadings @ loadings.T + np.diag(unique)).logpdf(adata.X)
    lacking = evidence - scvae.tl.log_likelihood(adata, model, kind="elbo", n_samples=200, rng=0).to_numpy()
    precision = np.eye(N_FACTORS) + loadings.T @ (loadings / unique[:, None])  # of the exact posterior, for every cell
    shape = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])  # of the best diagonal q
    found = gaps(model, read_query(adata, model.schema), seed=0)
    error = np.hypot(found.amortization.error, lacking.std() / np.sqrt(len(lacking)))
    assert lacking.mean() > 5 * error
    assert lacking.mean() == pytest.approx(found.amortization.value + shape, abs=3 * error + 0.02)
