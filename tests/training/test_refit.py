"""`scvae.fit(adata, init=model)`: training that goes on, on more cells."""

import functools

import anndata as ad
import numpy as np
import pytest
import torch

import scvae
from scvae import NetworkConfig, TrainingConfig


def cells(n=400, **options):
    adata = scvae.datasets.simulate(n_cells=n, n_genes=60, n_batches=3, batch_effect=0.6, truth=False, rng=0, **options)
    adata.obs["batch"] = adata.obs["batch"].astype(str)
    return ad.AnnData(adata.X, obs=adata.obs, var=adata.var)


@functools.cache
def _old_and_all(**options):
    everything = cells()
    old = everything[everything.obs["batch"] != "batch_2"].copy()
    options = {"batch_key": "batch", "n_latent": 4, "network": NetworkConfig(width=32)} | options
    model = scvae.fit(old, rng=0, verbose=False, training=TrainingConfig(epochs=30), **options)
    return old, everything, model


def old_and_all(**options):
    """Cells of two batches and of three to write to, and a model of the former."""
    old, everything, model = _old_and_all(**options)
    return old.copy(), everything.copy(), model


@pytest.mark.parametrize("options", [{}, {"beta": (0.5, 5.0)}], ids=["one β", "many β"])
def test_it_goes_on_from_the_weights_and_the_old_cells_are_told_no_worse(options):
    old, everything, model = old_and_all(**options)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    shuffled = everything[:, ::-1].copy()
    more = scvae.fit(shuffled, init=model, rng=1, verbose=False)
    assert more.schema.batch.categories == ("batch_0", "batch_1", "batch_2")
    assert more.schema.batch.mapped == ()
    assert (more.n_latent, more.beta, more.genes.tolist()) == (4, model.beta, model.genes.tolist())
    assert all(torch.equal(model.network.state_dict()[name], tensor) for name, tensor in before.items())
    assert len(more.history) == more.outcome.epochs > 1
    assert more.history["beta"].iloc[0] == more.history["beta"].iloc[-1]
    assert more.training_config.learning_rate < model.training_config.learning_rate
    assert shuffled.obsm["X_scvae"].shape == (400, 4)
    assert more.trained_on != model.trained_on

    def elbo(of):
        return scvae.tl.log_likelihood(old, of, kind="elbo", n_samples=10).mean()

    assert elbo(more) > elbo(model) - 0.5


def test_the_order_of_the_genes_makes_no_difference():
    _, everything, model = old_and_all()
    shuffled = everything[:, np.random.default_rng(0).permutation(60)].copy()
    brief = TrainingConfig(epochs=2)
    for adata in (everything, shuffled):
        scvae.fit(adata, init=model, training=brief, rng=0, verbose=False)
    assert shuffled.obsm["X_scvae"].tobytes() == everything.obsm["X_scvae"].tobytes()


def test_the_training_settings_given_are_used():
    _, everything, model = old_and_all()
    config = TrainingConfig(epochs=2, learning_rate=1e-4, batch_size=50)
    more = scvae.fit(everything, init=model, training=config, rng=0, verbose=False)
    used = more.training_config
    assert (used.epochs, used.learning_rate, used.batch_size, used.warmup) == (2, 1e-4, 50, 0.0)


def test_a_checkpoint_belongs_to_the_weights_it_started_from(tmp_path):
    _, everything, model = old_and_all()
    other = scvae.fit(everything, init=model, training=TrainingConfig(epochs=1), rng=5, verbose=False)
    options = {"training": TrainingConfig(epochs=1), "rng": 0, "verbose": False, "checkpoint": tmp_path / "run.ckpt"}
    first = scvae.fit(everything, init=model, **options)
    again = scvae.fit(everything, init=model, **options)
    assert all(
        torch.equal(tensor, again.network.state_dict()[name]) for name, tensor in first.network.state_dict().items()
    )
    with pytest.raises(ValueError, match=r"belongs to another run: .*start"):
        scvae.fit(everything, init=other, **options)


def test_arguments_that_contradict_the_model_are_refused_in_one_message(digest):
    _, everything, model = old_and_all()
    before = digest(everything)
    with pytest.raises(ValueError, match=r"mask_var.*batch_key='site'.*likelihood='zinb'.*n_latent=7.*beta=2"):
        scvae.fit(
            everything,
            init=model,
            mask_var=np.ones(60, bool),
            batch_key="site",
            likelihood="zinb",
            n_latent=7,
            beta=2.0,
            verbose=False,
        )
    with pytest.raises(ValueError, match=r"network=.*the model has"):
        scvae.fit(everything, init=model, network=NetworkConfig(width=64), verbose=False)
    assert digest(everything) == before


def test_arguments_that_agree_with_the_model_are_taken():
    _, everything, model = old_and_all()
    more = scvae.fit(
        everything,
        init=model,
        batch_key="batch",
        n_latent=4,
        network=NetworkConfig(width=32),
        training=TrainingConfig(epochs=1),
        verbose=False,
    )
    assert more.n_latent == 4


def test_a_model_of_a_layer_can_go_on_from_x():
    adata = cells(120)
    adata.layers["counts"] = adata.X.copy()
    quick = {"verbose": False, "training": TrainingConfig(epochs=2)}
    model = scvae.fit(adata, layer="counts", n_latent=3, network=NetworkConfig(width=16), rng=0, **quick)
    del adata.layers["counts"]
    more = scvae.fit(adata, init=model, layer="X", rng=0, **quick)
    assert more.schema.layer is None
    scvae.tl.embed(adata, more)
