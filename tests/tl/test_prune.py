"""`prune` and n_latent="auto": unused dimensions go, and nothing else does."""

import copy
import warnings

import numpy as np
import pytest
import torch

import scvae
import scvae.training.train
from scvae import NetworkConfig, TrainingConfig
from scvae.data.batches import split
from scvae.data.intake import read_query
from scvae.inference.cells import read_cells
from scvae.inference.outcome import in_use
from scvae.inference.posterior import posterior_moments

SEED = 4


def simulated(n_cells=600, **options):
    options = {"n_genes": 80, "n_latent": 2, "n_types": 1, "signal": 1.0, "truth": False, "rng": 0} | options
    return scvae.datasets.simulate(n_cells=n_cells, **options)


def fit(adata, n_latent=12, **options):
    return scvae.fit(adata, **{"n_latent": n_latent, "rng": SEED, "verbose": False} | options)


def held_out_elbo(adata, model):
    """Of the cells held out at the fit, averaged over enough draws to tell a tenth of a nat."""
    _, held_out = split(adata.n_obs, model.training_config.validation_fraction, SEED)
    return scvae.tl.log_likelihood(adata[held_out].copy(), model, kind="elbo", n_samples=200).mean()


@pytest.fixture(scope="module")
def pruned():
    """Data, the wide model and what pruning made of it."""
    adata = simulated()
    wide = fit(adata)
    weights = copy.deepcopy(wide.network.state_dict())
    return adata, wide, weights, scvae.tl.prune(adata, wide, verbose=False)


def test_the_dimensions_left_are_those_with_a_mean_kl_above_a_twentieth_of_a_nat(pruned):
    _, wide, _, narrow = pruned
    used = sum(kl > 0.05 for kl in wide.outcome.kl_per_dimension)
    assert 2 <= used < 12
    assert narrow.n_latent == narrow.network.n_latent == len(narrow.outcome.kl_per_dimension) == used
    assert narrow.outcome.pruned_from == 12
    assert "pruned from 12" in repr(narrow)


def test_the_held_out_elbo_is_unchanged(pruned):
    adata, wide, _, narrow = pruned
    assert held_out_elbo(adata, narrow) > held_out_elbo(adata, wide) - 0.5


@pytest.mark.slow
def test_pruning_costs_pbmc3k_no_more_than_half_a_nat():
    adata = scvae.datasets.pbmc3k()
    genes = np.asarray(adata.X.sum(0)).ravel()
    adata = adata[::4, np.argsort(-genes)[:200]].copy()
    wide = fit(adata, 30)
    narrow = scvae.tl.prune(adata, wide, verbose=False)
    assert wide.outcome.active_dimensions == narrow.n_latent < 30
    assert held_out_elbo(adata, narrow) > held_out_elbo(adata, wide) - 0.5


def test_the_old_model_stays_as_it_was(pruned):
    _, wide, weights, narrow = pruned
    assert wide.n_latent == 12
    assert wide.outcome.pruned_from is None
    for name, tensor in wide.network.state_dict().items():
        assert torch.equal(tensor, weights[name])
    assert not {t.data_ptr() for t in wide.network.state_dict().values()} & {
        t.data_ptr() for t in narrow.network.state_dict().values()
    }


def test_the_record_is_that_of_both_trainings(pruned):
    _, wide, _, narrow = pruned
    n_epochs = wide.outcome.epochs
    assert narrow.history.iloc[:n_epochs].equals(wide.history)
    assert narrow.history["epoch"].tolist() == list(range(1, narrow.outcome.epochs + 1))
    assert narrow.outcome.epochs == n_epochs + round(0.25 * wide.training_config.epochs)
    assert (narrow.history["seconds"].diff().dropna() > 0).all()
    assert n_epochs < narrow.outcome.best_epoch <= narrow.outcome.epochs
    assert (narrow.history["beta"].iloc[n_epochs:] == 1.0).all()
    assert narrow.history["learning_rate"].iloc[n_epochs:].max() < 0.5 * wide.history["learning_rate"].max()
    assert narrow.training_config == wide.training_config
    best = narrow.history["validation_elbo"].iloc[narrow.outcome.best_epoch - 1]
    assert narrow.outcome.held_out_elbo == pytest.approx(best, rel=1e-6)


def test_slots_are_written_as_by_fit_and_the_model_survives_a_file(pruned, tmp_path):
    adata, _, _, narrow = pruned
    assert adata.obsm["X_scvae"].shape == adata.obsm["X_scvae_var"].shape == (600, narrow.n_latent)
    record = adata.uns["scvae"]
    assert (record["params"]["n_latent"], record["pruned_from"]) == (narrow.n_latent, 12)
    assert len(record["kl_per_dimension"]) == narrow.n_latent
    adata.write_h5ad(tmp_path / "pruned.h5ad")
    loaded = scvae.load(narrow.save(tmp_path / "pruned.safetensors"))
    assert loaded.outcome == narrow.outcome
    again = scvae.tl.embed(adata, loaded, copy=True, key_added="again")
    np.testing.assert_array_equal(again.obsm["X_again"], adata.obsm["X_scvae"])


@pytest.mark.parametrize("decoder", ["mlp", "linear"])
def test_a_dimension_that_is_cut_counts_as_its_mean_from_then_on(decoder):
    """The cut itself, before any fine-tuning: the decoder sees the dropped dimensions at the values it was given."""
    adata = simulated(60, n_batches=2)
    network = NetworkConfig(width=16, decoder=decoder)
    model = fit(adata, 5, network=network, batch_key="batch", likelihood="zinb", training=TrainingConfig(epochs=3))
    dropped = torch.tensor([False, True, False, True, False])
    constant = torch.tensor([9.0, 0.7, 9.0, -1.3, 9.0])
    cut = copy.deepcopy(model.network)
    cut.drop_dimensions(dropped, constant)
    batch = read_query(adata, model.schema).batch(np.arange(60))
    z = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    held = torch.where(dropped, constant, z)
    weight = torch.ones(60)
    with torch.no_grad():
        full, narrow = model.network.encode(batch), cut.encode(batch)
        expected = model.network.log_likelihood(held, batch, weight).per_row
        found = cut.log_likelihood(z[:, ~dropped], batch, weight).per_row
    torch.testing.assert_close(narrow.mean, full.mean[:, ~dropped])
    torch.testing.assert_close(narrow.log_variance, full.log_variance[:, ~dropped])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)


def test_loadings_are_pruned_with_the_dimensions():
    adata = simulated()
    wide = fit(adata, 8, network=NetworkConfig(decoder="linear"), training=TrainingConfig(epochs=60))
    assert adata.varm["scvae_loadings"].shape == (80, 8)
    narrow = scvae.tl.prune(adata, wide, epochs=2, verbose=False)
    assert adata.varm["scvae_loadings"].shape == (80, narrow.n_latent)
    assert narrow.n_latent < 8


def test_without_an_unused_dimension_a_copy_is_returned_and_said_to_be_one():
    adata = simulated()
    model = fit(adata, 2, training=TrainingConfig(epochs=40))
    before = adata.obsm["X_scvae"].copy()
    with pytest.warns(UserWarning, match="all 2 latent dimensions are in use"):
        same = scvae.tl.prune(adata, model, verbose=False)
    np.testing.assert_array_equal(adata.obsm["X_scvae"], before)
    assert same.outcome == model.outcome
    assert same.network is not model.network


def test_a_collapsed_model_is_called_one():
    adata = simulated(100)
    model = fit(adata, 4, beta=500.0, training=TrainingConfig(epochs=100))
    assert model.outcome.active_dimensions == 0
    with pytest.warns(UserWarning, match="the posterior has collapsed"):
        narrow = scvae.tl.prune(adata, model, epochs=1, verbose=False)
    assert narrow.n_latent == 1


def test_nothing_is_written_when_the_cells_do_not_suit_the_model(pruned, digest):
    _, wide, _, _ = pruned
    other = simulated(50)
    other.var_names = [f"other_{name}" for name in other.var_names]
    before = digest(other)
    with pytest.raises(ValueError, match="none of the 80 modelled genes"):
        scvae.tl.prune(other, wide, verbose=False)
    with pytest.raises(ValueError, match="does not hold the cells that the model was fitted on"):
        scvae.tl.prune(simulated(50), wide, verbose=False)
    with pytest.raises(ValueError, match="β = 1 alone"):
        scvae.tl.prune(simulated(), wide, beta=2.0, verbose=False)
    with pytest.raises(ValueError, match="epochs"):
        scvae.tl.prune(simulated(50), wide, epochs=0, verbose=False)
    assert digest(other) == before


def test_ctrl_c_while_fine_tuning_keeps_the_cut_model(pruned, monkeypatch):
    adata, wide = pruned[0].copy(), pruned[1]

    def pressed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(scvae.training.train, "epoch_plan", pressed)
    with pytest.warns(UserWarning, match="interrupted after 0 epochs"):
        narrow = scvae.tl.prune(adata, wide, verbose=False)
    assert narrow.n_latent == wide.outcome.active_dimensions < 12
    assert narrow.outcome.best_epoch == wide.outcome.best_epoch
    assert narrow.outcome.beta_attained == 1.0


@pytest.mark.slow
def test_a_model_of_many_beta_drops_what_none_of_them_uses_and_keeps_its_elbo_at_each():
    adata = simulated()
    wide = fit(adata, 12, beta=(0.5, 4.0))
    mean, variance = posterior_moments(wide, read_cells(adata, wide, None), beta=0.5)
    kl = 0.5 * (mean**2 + variance - 1 - np.log(variance))
    _, held_out = split(600, 0.1, SEED)
    narrow = scvae.tl.prune(adata, wide, beta=4.0, verbose=False)
    assert narrow.n_latent == (kl[held_out].mean(0) > 0.05).sum() < 12
    assert narrow.beta == (0.5, 4.0)
    for beta in (0.5, 1.0, 4.0):
        elbo = [
            scvae.tl.log_likelihood(adata[held_out].copy(), model, kind="elbo", n_samples=200, beta=beta).mean()
            for model in (wide, narrow)
        ]
        assert elbo[1] > elbo[0] - 0.5
    at_the_end = scvae.tl.embed(adata, narrow, beta=4.0, copy=True, key_added="again")
    np.testing.assert_array_equal(at_the_end.obsm["X_again"], adata.obsm["X_scvae"])


# the automatic number of dimensions


@pytest.fixture(scope="module")
def automatic():
    adata = simulated()
    return adata, fit(adata, "auto", training=TrainingConfig(epochs=100))


def test_auto_ends_with_the_dimensions_in_use_and_consistent_records(automatic):
    adata, model = automatic
    assert 2 <= model.n_latent < 16
    assert model.outcome.pruned_from == 20
    assert model.n_latent == adata.obsm["X_scvae"].shape[1] == len(model.outcome.kl_per_dimension)
    assert adata.uns["scvae"]["params"]["n_latent"] == model.n_latent
    assert model.outcome.epochs == len(model.history)
    assert in_use(model.outcome.kl_per_dimension).sum() >= model.n_latent - 1


def test_auto_is_not_worse_than_the_wide_fit_it_starts_from(automatic):
    adata, model = automatic
    after_the_wide_fit = model.history["validation_elbo"].iloc[:100].max()
    assert held_out_elbo(adata, model) > after_the_wide_fit - 0.5


def test_auto_goes_on_from_a_checkpoint_to_the_same_numbers(tmp_path):
    training = TrainingConfig(epochs=30)
    whole, resumed = simulated(100), simulated(100)
    model = fit(whole, "auto", training=training, checkpoint=tmp_path / "run.ckpt")
    again = fit(resumed, "auto", training=training, checkpoint=tmp_path / "run.ckpt")
    assert whole.obsm["X_scvae"].tobytes() == resumed.obsm["X_scvae"].tobytes()
    assert model.outcome.kl_per_dimension == again.outcome.kl_per_dimension
    with pytest.raises(ValueError, match="belongs to another run: n_latent"):
        fit(simulated(100), 10, training=training, checkpoint=tmp_path / "run.ckpt")


@pytest.mark.parametrize(("stop", "said"), [(3, 2), (104, 3)])
def test_an_auto_fit_is_not_trained_any_further_after_ctrl_c(monkeypatch, stop, said):
    original, calls = scvae.training.train.epoch_plan, []

    def pressed(*arguments, **options):
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(scvae.training.train, "epoch_plan", pressed)
    with pytest.warns(UserWarning, match=f"interrupted after {said} epochs"):
        model = fit(simulated(300), "auto", training=TrainingConfig(epochs=100))
    assert len(calls) == stop
    assert model.outcome.epochs == len(model.history) == stop - 1
    assert (model.n_latent == 20) is (stop < 100)


@pytest.mark.parametrize("asked", ["automatic", "10", 0, 2.0])
def test_another_number_of_dimensions_is_refused(asked):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises((ValueError, TypeError), match="n_latent"):
            fit(simulated(20), asked)
