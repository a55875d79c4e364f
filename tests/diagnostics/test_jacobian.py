"""Flat and steep directions of decoders that are known, and derivatives against differences."""

import numpy as np
import pytest
import torch

import scvae
from scvae import NetworkConfig, TrainingConfig
from scvae.diagnostics.jacobian import scaled_jacobian, spectrum
from scvae.inference.cells import read_cells
from scvae.inference.posterior import batches_of
from tests.diagnostics.models import NOISE, linear_normal

LOADINGS = np.array([[1.0, 0.8, 0.0], [0.3, 0.5, 0.0], [0.0, 0.4, 0.0]], dtype=np.float32)


def test_the_spectrum_of_a_linear_decoder_is_that_of_its_loadings():
    model, cells, _ = linear_normal(LOADINGS)
    expected = np.linalg.eigvalsh(LOADINGS.T @ LOADINGS / NOISE**2)[::-1]
    found = spectrum(model, cells)
    np.testing.assert_allclose(found.local, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.shared, expected, rtol=1e-4, atol=1e-4)
    assert found.flat == 1


@pytest.mark.parametrize(
    ("likelihood", "skip"),
    [*((name, "none") for name in ("nb", "zinb", "poisson", "bernoulli", "gaussian")), ("nb", "gated")],
)
def test_derivatives_agree_with_differences_for_every_head_and_past_a_skip(likelihood, skip):
    adata = scvae.datasets.simulate(n_cells=40, n_genes=15, likelihood=likelihood, truth=False, rng=0)
    given = {"network": NetworkConfig(skip=skip), "training": TrainingConfig(epochs=20)}
    model = scvae.fit(adata, likelihood=likelihood, n_latent=3, **given, rng=0, verbose=False)
    network, cells = model.network.double(), read_cells(adata, model, None)
    _, batch = next(batches_of(model, cells, 8))
    z = torch.linspace(-1.0, 1.0, 24, dtype=torch.float64).view(8, 3)

    def law(at):
        return network.likelihood.distribution(network.features(at, batch), batch)

    with torch.no_grad():
        found = scaled_jacobian(network, batch, z)
        step, scale = 1e-5, law(z).variance.rsqrt()
        for k in range(3):
            move = step * torch.nn.functional.one_hot(torch.tensor(k), 3)
            difference = (law(z + move).mean - law(z - move).mean) / (2 * step) * scale
            torch.testing.assert_close(found[k], difference, rtol=1e-4, atol=1e-5)
