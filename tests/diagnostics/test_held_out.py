"""The cells that a fit held out are known again, and no others are taken for them."""

import numpy as np
import pytest

import scvae
from scvae import NetworkConfig, TrainingConfig
from scvae.data.batches import split
from scvae.data.intake import read_query
from scvae.diagnostics.held_out import judged_cells


def simulated(n_cells=60, **options):
    return scvae.datasets.simulate(**{"n_cells": n_cells, "n_genes": 20, "truth": False, "rng": 0} | options)


def fit(adata, **options):
    training = TrainingConfig(epochs=2, batch_size=32, **options)
    return scvae.fit(adata, rng=5, n_latent=2, network=NetworkConfig(width=8), training=training, verbose=False)


def judged(model, adata):
    return judged_cells(model, read_query(adata, model.schema))


@pytest.fixture(scope="module")
def model():
    return fit(simulated())


def test_cells_of_the_fit_are_judged_where_it_held_them_out(model):
    found = judged(model, simulated())
    expected = split(60, 0.1, 5)[1]
    assert found.positions.tolist() == expected.tolist()
    assert found.role == "held out of the fit"


def test_the_held_out_elbo_of_the_fit_is_that_of_these_cells(model):
    cells = simulated()[judged(model, simulated()).positions].copy()
    elbo = scvae.tl.log_likelihood(cells, model, kind="elbo", n_samples=2000).mean()
    assert elbo == pytest.approx(model.outcome.held_out_elbo, abs=1.5)  # that one is from a single draw a cell


def test_genes_in_another_order_make_no_difference(model):
    adata = simulated()
    shuffled = adata[:, np.random.default_rng(0).permutation(20)].copy()
    assert judged(model, shuffled).role == "held out of the fit"


@pytest.mark.parametrize(
    "change",
    [lambda a: a[::-1], lambda a: a[:59], lambda _: simulated(rng=1)],
    ids=["other order", "fewer cells", "same names, other counts"],
)
def test_any_other_cells_are_judged_altogether(model, change):
    adata = change(simulated()).copy()
    found = judged(model, adata)
    assert found.role == "other cells than those of the fit"
    assert found.positions.tolist() == list(range(adata.n_obs))


def test_a_fit_without_validation_is_judged_on_what_it_saw():
    found = judged(fit(simulated(), validation_fraction=0.0), simulated())
    assert found.role == "trained on"
    assert len(found.positions) == 60


def test_a_saved_model_still_knows_its_cells(model, tmp_path):
    loaded = scvae.load(model.save(tmp_path / "model.safetensors"))
    assert judged(loaded, simulated()).role == "held out of the fit"
