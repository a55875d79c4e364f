"""A linear decoder with a Gaussian head is factor analysis: it must reach the maximum likelihood that EM finds."""

import anndata
import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.decomposition import FactorAnalysis

import scvae
from scvae import NetworkConfig, TrainingConfig

N_CELLS, N_VARIABLES, N_FACTORS = 1000, 12, 3


def linear_gaussian_cells(seed):
    """x = mean + W z + noise, with units and noise that differ between variables."""
    rng = np.random.default_rng(seed)
    units = np.exp(rng.normal(size=N_VARIABLES))
    loadings = rng.normal(size=(N_VARIABLES, N_FACTORS))
    noise = np.sqrt(rng.uniform(0.3, 1.5, N_VARIABLES)) * rng.normal(size=(N_CELLS, N_VARIABLES))
    x = rng.normal(size=(N_CELLS, N_FACTORS)) @ loadings.T + noise
    return ((x + 3 * rng.normal(size=N_VARIABLES)) * units).astype(np.float32)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_linear_gaussian_fit_reaches_the_maximum_likelihood_of_factor_analysis(seed):
    x = linear_gaussian_cells(seed)
    adata = anndata.AnnData(x)
    model = scvae.fit(
        adata,
        likelihood="gaussian",
        n_latent=N_FACTORS,
        network=NetworkConfig(decoder="linear"),
        training=TrainingConfig(validation_fraction=0.0),
        rng=seed,
        verbose=False,
    )
    loadings = adata.varm["scvae_loadings"].astype(float)
    head = model.network.likelihood
    mean = (head.centre + head.spread * head.output.bias).detach().double().numpy()
    unique = np.exp(2 * head.log_scale().detach().double().numpy())
    reached = multivariate_normal(mean, loadings @ loadings.T + np.diag(unique)).logpdf(x).mean()
    best = FactorAnalysis(N_FACTORS, tol=1e-8, max_iter=5000).fit(x).score(x)
    assert abs(best - reached) / N_VARIABLES < 0.01

    # the encoder can hold this posterior, so the importance-weighted bound ends there too, and the ELBO nearby
    bound = scvae.tl.log_likelihood(adata, model, n_samples=200, rng=0).mean()
    assert abs(bound - reached) / N_VARIABLES < 0.005
    elbo = scvae.tl.log_likelihood(adata, model, kind="elbo", n_samples=50, rng=0).mean()
    assert elbo < bound
    assert (best - elbo) / N_VARIABLES < 0.02
