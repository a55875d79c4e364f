"""The training loop: what it promises about β, batches, weights, failures and interruptions."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import nn

import scvae
import scvae.training.step
import scvae.training.train
from scvae import NetworkConfig, NonFiniteLossError, TrainingConfig
from scvae.data.schema import Schema
from scvae.training.checkpoint import Progress
from scvae.training.evaluation import Evaluation
from scvae.training.recipe import Recipe, make_recipe
from scvae.training.run import convergence
from scvae.training.train import dials_of, out_of_patience

SMALL = NetworkConfig(width=16)


def run_for(epochs):
    return Recipe(epochs, 128, 3e-3, 0.1)


def schema_of(kind):
    return Schema(tuple(f"gene{i}" for i in range(32)), kind, None, None, (), (), None)


def simulated(n_cells=60, n_genes=30, **options):
    return scvae.datasets.simulate(**{"n_cells": n_cells, "n_genes": n_genes, "truth": False, "rng": 0, **options})


def fit(adata, *, rng=0, n_latent=3, **options):
    settings = {name: options.pop(name) for name in TrainingConfig.__dataclass_fields__ if name in options}
    training = TrainingConfig(**{"epochs": 4, "batch_size": 32} | settings)
    options = {"network": SMALL, "verbose": False} | options
    return scvae.fit(adata, rng=rng, n_latent=n_latent, training=training, **options)


# β


@pytest.mark.parametrize("epochs", [1, 2, 7])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("n_cells", [3, 60])
def test_beta_is_attained_exactly_and_recorded(epochs, warmup, n_cells):
    adata = simulated(n_cells)
    model = fit(adata, epochs=epochs, warmup=warmup, beta=2.7, patience=None)
    assert model.history["beta"].iloc[-1] == 2.7
    assert model.outcome.beta_attained == 2.7
    assert adata.uns["scvae"]["beta_attained"] == 2.7
    assert adata.uns["scvae"]["params"]["beta"] == 2.7


def test_beta_rises_linearly_over_the_warmup_and_stays():
    model = fit(simulated(), epochs=10, batch_size=1000, warmup=0.5, beta=4.0, patience=None)  # a step an epoch
    expected = [0.8, 1.6, 2.4, 3.2, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0]
    assert model.history["beta"].tolist() == pytest.approx(expected)


def test_beta_rises_in_cycles_and_ends_at_what_was_asked():
    model = fit(simulated(), epochs=10, batch_size=1000, warmup=0.6, warmup_cycles=2, beta=4.0, patience=None)
    assert model.history["beta"].tolist() == pytest.approx([2.0, 4.0, 4.0, 0.0, 2.0, 4.0, 4.0, 4.0, 4.0, 4.0])
    assert model.outcome.beta_attained == 4.0


def test_epochs_between_two_cycles_are_neither_ranked_nor_counted_as_patience():
    model = fit(simulated(100), epochs=40, warmup=0.9, warmup_cycles=3, patience=0.1, learning_rate=3e-2)
    assert model.outcome.best_epoch > 36
    assert model.outcome.epochs == 40


def test_beta_zero_trains_without_the_kl():
    plain, regular = (fit(simulated(), beta=beta, epochs=40, rng=1) for beta in (0, 1.0))
    assert plain.outcome.beta_attained == 0.0
    assert (plain.history["beta"] == 0.0).all()
    assert plain.history["train_kl"].iloc[-1] > regular.history["train_kl"].iloc[-1]


def test_a_larger_beta_gives_a_smaller_kl():
    kl = [fit(simulated(), beta=beta, epochs=40).history["train_kl"].iloc[-1] for beta in (0.1, 1.0, 20.0)]
    assert kl[0] > kl[1] > kl[2]


def test_free_bits_keep_information_that_a_large_beta_squeezes_out():
    kl = {}
    for free_bits in (0.0, 0.5):
        model = fit(simulated(100), beta=5.0, free_bits=free_bits, epochs=60, learning_rate=1e-2, patience=None)
        kl[free_bits] = model.history["train_kl"].iloc[-1]
    assert kl[0.0] < 0.1
    assert kl[0.5] > 5 * kl[0.0]


def test_capacity_draws_the_kl_to_its_target():
    for target in (1.0, 4.0):
        model = fit(simulated(100), beta=30.0, capacity=target, epochs=80, patience=None)
        assert model.history["train_kl"].iloc[-1] == pytest.approx(target, rel=0.3)


def test_capacity_rises_with_the_warmup():
    def capacities(config):
        return [dials.capacity for dials in dials_of(0, 4, 1.0, make_recipe(replace(config, epochs=1), 100), config)]

    assert capacities(TrainingConfig(capacity=6.0, warmup=0.5)) == [3.0, 6.0, 6.0, 6.0]
    assert capacities(TrainingConfig()) == [None] * 4


# which weights are kept, and when training stops


def module_with(value):
    module = nn.Linear(1, 1)
    nn.init.constant_(module.weight, value)
    return module


def kept_weight(progress):
    return progress.best_weights["weight"].item()


def run_of(objectives, ranked_from):
    """The progress after epochs with these validation objectives."""
    progress = Progress()
    for epoch, value in enumerate(objectives, start=1):
        progress.epoch = epoch
        progress.keep_weights(module_with(epoch), value, ranked=epoch >= ranked_from)
    assert kept_weight(progress) == progress.best_epoch
    return progress


def test_before_beta_is_reached_the_latest_weights_are_kept():
    assert run_of([-1.0, -3.0, -2.0], ranked_from=9).best_epoch == 3


def test_from_then_on_the_best_weights_are_kept_whatever_came_before():
    assert run_of([-1.0, -5.0, -4.0, -3.0, -3.5], ranked_from=3).best_epoch == 4


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, -100 - 0.5 * 13), ({"free_bits": 2.0}, -100 - 0.5 * 14), ({"capacity": 20.0}, -100 - 0.5 * 7)],
)
def test_the_ranking_is_by_the_objective_that_is_trained_at_the_final_beta(settings, expected):
    kl = torch.tensor([1.0, 12.0])
    held_out = Evaluation(log_likelihood=-100.0, kl=13.0, summands=kl, kl_per_dimension=kl, kl_times_beta=None)
    assert held_out.objective(0.5, TrainingConfig(**settings)) == expected


def test_a_model_of_many_betas_is_ranked_by_what_each_cell_pays_at_its_own():
    kl = torch.tensor([13.0])
    held_out = Evaluation(log_likelihood=-100.0, kl=13.0, summands=kl, kl_per_dimension=kl, kl_times_beta=21.0)
    assert held_out.objective(1.0, TrainingConfig()) == -121.0


def test_weights_with_an_undefined_objective_never_replace_ranked_ones():
    assert run_of([-5.0, math.nan, -math.inf, -6.0], ranked_from=1).best_epoch == 1
    assert run_of([math.nan, -6.0, math.nan], ranked_from=1).best_epoch == 2


def test_without_validation_cells_the_last_weights_are_kept():
    progress = run_of([math.nan] * 4, ranked_from=2)
    assert progress.best_epoch == 4
    assert not out_of_patience(replace(progress, epoch=1000), run_for(10), TrainingConfig(patience=0.1))


def test_patience_is_a_fraction_of_the_run_and_counts_from_the_best_ranked_epoch():
    config = TrainingConfig(patience=0.2)
    unranked = Progress(epoch=90, best_epoch=1)
    assert not out_of_patience(unranked, run_for(100), config)
    ranked = Progress(epoch=69, best_epoch=50, best_objective=-1.0)
    assert not out_of_patience(ranked, run_for(100), config)
    assert out_of_patience(replace(ranked, epoch=70), run_for(100), config)
    assert not out_of_patience(replace(ranked, epoch=1000), run_for(100), replace(config, patience=None))


def test_the_model_has_the_weights_of_its_best_epoch_after_beta_was_reached():
    model = fit(simulated(100), epochs=30, learning_rate=3e-2, warmup=0.4, patience=None)
    best = model.outcome.best_epoch
    held_out = model.history["validation_elbo"]
    assert 12 < best <= 30
    assert held_out.iloc[best - 1] == held_out.iloc[12:].max()
    assert model.outcome.held_out_elbo == pytest.approx(held_out.iloc[best - 1], rel=1e-6)


def test_training_stops_early_only_after_beta_was_reached():
    model = fit(simulated(40), epochs=200, learning_rate=3e-2, warmup=0.4, patience=0.02)
    assert 80 < model.outcome.epochs < 200
    assert model.outcome.epochs - model.outcome.best_epoch == 4
    assert model.outcome.beta_attained == 1.0
    assert model.outcome.converged
    assert f"since epoch {model.outcome.best_epoch}" in model.outcome.reason


def test_a_flat_end_counts_as_converged_and_a_steep_one_does_not():
    def said(elbo):
        return convergence(Progress(history={"validation_elbo": elbo, "train_elbo": elbo}), schema_of("counts"))

    assert said([-200.0, -150.0, *[-100.0] * 18])[0]
    assert not said([-300.0 + 5 * epoch for epoch in range(20)])[0]
    assert said([-100.0]) == (False, "1 epochs are too few to tell")


@pytest.mark.parametrize(("fall", "rise", "converged"), [(0.5, 1.0, True), (0.5, -1.0, False), (2.0, 1.0, False)])
def test_a_slight_fall_of_the_held_out_elbo_counts_as_converged_where_training_goes_on(fall, rise, converged):
    history = {"validation_elbo": [-100.0 - fall * (epoch > 18) for epoch in range(20)]}
    history["train_elbo"] = [-90.0 + rise * (epoch > 18) for epoch in range(20)]
    assert convergence(Progress(history=history), schema_of("counts"))[0] == converged


def test_an_elbo_of_real_values_near_zero_may_stand_still_too():
    elbo = [-30.0, -9.0, *[0.01 - 0.004 * (epoch % 2) for epoch in range(18)], -0.03]
    progress = Progress(history={"validation_elbo": elbo, "train_elbo": elbo})
    assert convergence(progress, schema_of("real"))[0]
    assert not convergence(progress, schema_of("counts"))[0]


# sizes


def batch_sizes(monkeypatch, adata, **options):
    sizes, original = [], scvae.training.fused_step.with_draws

    def recorded(network, batch, generator):
        sizes.append(len(batch))
        return original(network, batch, generator)

    monkeypatch.setattr(scvae.training.fused_step, "with_draws", recorded)
    model = fit(adata, **options)
    return sizes, model


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("n_cells", [1, 2, 3, 4, 5])
def test_a_handful_of_cells_can_be_fitted(n_cells, norm):
    adata = simulated(n_cells)
    model = fit(adata, network=NetworkConfig(width=16, norm=norm), epochs=3)
    assert np.isfinite(adata.obsm["X_scvae"]).all()
    assert model.outcome.skipped_steps == 0
    assert math.isnan(model.outcome.held_out_elbo)


@pytest.mark.parametrize("n_cells", [3 * 16 + 1, 4 * 16 + 1])
def test_one_cell_more_than_whole_batches_makes_no_tiny_batch(monkeypatch, n_cells):
    sizes, _ = batch_sizes(monkeypatch, simulated(n_cells), batch_size=16, validation_fraction=0.0, epochs=2)
    assert min(sizes) >= 16
    assert max(sizes) <= 17
    assert sum(sizes) == 2 * n_cells


def test_validation_cells_are_never_trained_on(monkeypatch):
    sizes, model = batch_sizes(monkeypatch, simulated(50), validation_fraction=0.2, epochs=1)
    assert sum(sizes) == 40
    assert np.isfinite(model.history["validation_elbo"]).all()


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "bernoulli", "gaussian"])
def test_one_gene_can_be_fitted(likelihood):
    adata = simulated(40, 1, likelihood=likelihood, mean_library=3.0)
    model = fit(adata, likelihood=likelihood)
    assert np.isfinite(adata.obsm["X_scvae"]).all()
    assert np.isfinite(model.outcome.held_out_elbo)


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "bernoulli"])
def test_cells_without_counts_and_genes_never_seen_do_no_harm(likelihood):
    adata = simulated(50, likelihood=likelihood)
    counts = adata.X.toarray()
    counts[[3, 17, 18]] = 0
    counts[:, [0, 8, 29]] = 0
    adata.X = sparse.csr_matrix(counts)
    model = fit(adata, likelihood=likelihood, epochs=6)
    assert model.outcome.skipped_steps == 0
    assert len(model.genes) == 27
    assert "gene_8" not in model.genes
    assert np.isfinite(adata.obsm["X_scvae"]).all()
    assert np.isfinite(scvae.tl.log_likelihood(adata, model, n_samples=5)).all()


# steps that are not finite


def with_bad_steps(monkeypatch, is_bad):
    """Makes a draw, and with it the loss, of training step number k undefined where is_bad(k)."""
    original, steps = scvae.training.step.with_draws, []

    def sabotaged(*arguments):
        steps.append(len(steps))
        batch, noise = original(*arguments)
        noise[0] *= math.nan if is_bad(steps[-1]) else 1.0
        return batch, noise

    for module in (scvae.training.step, scvae.training.fused_step):
        monkeypatch.setattr(module, "with_draws", sabotaged)


@pytest.mark.parametrize("norm", ["layer", "batch"])  # fused steps and plain ones
def test_a_step_that_is_not_finite_is_skipped_and_counted(monkeypatch, norm):
    with_bad_steps(monkeypatch, lambda step: step in (1, 3, 4))
    adata = simulated()
    model = fit(adata, epochs=5, network=replace(SMALL, norm=norm))
    assert model.outcome.skipped_steps == 3
    assert adata.uns["scvae"]["skipped_steps"] == 3
    assert all(torch.isfinite(p).all() for p in model.network.parameters())
    assert np.isfinite(adata.obsm["X_scvae"]).all()


def test_failures_that_do_not_follow_one_another_do_not_end_the_run(monkeypatch):
    with_bad_steps(monkeypatch, lambda step: step % 5 != 0)  # four in a row at most
    assert fit(simulated(), epochs=10).outcome.skipped_steps == 16


def test_repeated_failures_end_the_run_and_name_the_cell(monkeypatch, digest):
    adata = simulated()
    adata.obs["depth"] = np.arange(1.0, 61.0)
    depth = adata.obs["depth"].to_numpy() * (float(adata.X.sum()) / adata.obs["depth"].sum())
    before, original = digest(adata), scvae.training.step.evidence_terms

    def sabotaged(model, batch, noise, weight, generator=None):
        terms = original(model, batch, noise, weight, generator)
        at_fault = torch.isclose(batch.library, torch.tensor(depth[42], dtype=torch.float32))
        undefined = torch.where(at_fault, math.nan, 1.0)
        return replace(
            terms,
            log_likelihood=terms.log_likelihood * undefined,
            weighted_log_likelihood=terms.weighted_log_likelihood * undefined.sum(),
        )

    monkeypatch.setattr(scvae.training.step, "evidence_terms", sabotaged)
    monkeypatch.setattr(scvae.training.train, "can_be_fused", lambda *_: False)
    with pytest.raises(NonFiniteLossError, match=r"5 steps in a row of epoch 5; first at fault: cell 'cell_42'"):
        fit(adata, size_factor_key="depth", batch_size=100, epochs=9, validation_fraction=0.0)
    assert digest(adata) == before


def test_an_overflowing_gradient_is_said_to_belong_to_no_cell(monkeypatch):
    with_bad_steps(monkeypatch, lambda step: True)
    with pytest.raises(NonFiniteLossError, match=r"no single cell.*learning_rate"):
        fit(simulated(), epochs=9)


# Ctrl-C


def interrupt(monkeypatch, name, call):
    """Presses Ctrl-C in the given call (from 1) of a part of the loop."""
    original, calls = getattr(scvae.training.train, name), []

    def pressed(*args, **options):
        calls.append(name)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(*args, **options)

    monkeypatch.setattr(scvae.training.train, name, pressed)


@pytest.mark.parametrize("part", ["epoch_plan", "evaluate"])
@pytest.mark.parametrize("epoch", [1, 2, 5])
def test_ctrl_c_keeps_the_best_model_and_says_so(monkeypatch, tmp_path, part, epoch):
    adata = simulated()
    interrupt(monkeypatch, part, epoch)
    with pytest.warns(UserWarning, match=f"interrupted after {epoch - 1} epochs; the best model"):
        model = fit(adata, epochs=6)
    assert model.outcome.epochs == epoch - 1
    assert len(model.history) == epoch - 1
    assert not model.outcome.converged
    assert "interrupted" in model.outcome.reason
    assert "interrupted" in repr(model)
    assert np.isfinite(adata.obsm["X_scvae"]).all()
    adata.write_h5ad(tmp_path / "interrupted.h5ad")
    loaded = scvae.load(model.save(tmp_path / "interrupted.safetensors"))
    scvae.tl.embed(adata, loaded, key_added="again")
    np.testing.assert_array_equal(adata.obsm["X_again"], adata.obsm["X_scvae"])


def test_ctrl_c_gives_the_weights_of_the_best_epoch_before_it(monkeypatch):
    options = {"epochs": 8, "warmup": 0.1, "learning_rate": 3e-2, "patience": None}
    whole = fit(simulated(100), **options)
    interrupt(monkeypatch, "epoch_plan", 7)
    with pytest.warns(UserWarning, match="interrupted"):
        model = fit(simulated(100), **options)
    best = int(whole.history["validation_elbo"].iloc[:6].argmax()) + 1
    assert model.outcome.best_epoch == best
    assert model.outcome.held_out_elbo == pytest.approx(whole.history["validation_elbo"].iloc[best - 1], rel=1e-6)


# what is shown


def test_nothing_is_printed_without_verbose(capsys):
    fit(simulated(), verbose=False)
    assert capsys.readouterr() == ("", "")


def test_one_progress_bar_with_the_elbo_is_all_that_is_printed(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(simulated(), verbose=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "4/4" in err
    assert "ELBO" in err
    assert "held out" in err
