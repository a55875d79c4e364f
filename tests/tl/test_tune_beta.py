"""`tune_beta`: the table holds what the public tools give, and the embedding written is that of the β recommended."""

import dataclasses
import inspect
import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import scvae
import scvae.tl._tune_beta
import scvae.training.run
from scvae import NetworkConfig, TrainingConfig
from scvae.common.checks import MissingKeyError
from scvae.data.batches import split
from scvae.data.intake import read_query
from scvae.diagnostics import rate_distortion as measures
from scvae.diagnostics.structure import trustworthiness
from scvae.inference.cells import read_cells
from scvae.inference.posterior import posterior_moments
from scvae.training.refit import fit_next

BETAS = [0.3, 1.0, 3.0]
LABEL_FREE = ["leiden_stability", "graph_agreement", "modularity", "trustworthiness", "n_clusters"]
METHODS = ["path", "sweep"]
SEED = 3


def simulated(n_cells=150, **options):
    defaults = {"n_genes": 40, "n_types": 3, "truth": False, "rng": 0}
    defaults |= {"mean_library": 5000.0, "signal": 2.0, "inverse_dispersion": 10.0}  # few cells must do
    return scvae.datasets.simulate(n_cells=n_cells, **defaults | options)


def tune(adata, **options):
    defaults = {"betas": BETAS, "rng": SEED, "verbose": False}
    if "model" not in options:
        defaults |= {"n_latent": 3, "network": NetworkConfig(width=16)}
        defaults |= {"training": TrainingConfig(epochs=20, batch_size=16)}
    return scvae.tune_beta(adata, **defaults | options)


@pytest.fixture(scope="module", params=METHODS)
def tuned(request):
    """Cells and what was found of them; not to be changed."""
    adata = simulated()
    return adata, tune(adata, method=request.param), request.param


def held_out(adata, model):
    return split(adata.n_obs, model.training_config.validation_fraction, model.seed)[1]


def model_at(path, i):
    return path.models[i] if len(path.models) > 1 else path.model


# the table


def test_one_row_per_beta_obeys_the_identities_of_the_bounds(tuned):
    _, path, _ = tuned
    table = path.table
    assert table["beta"].tolist() == BETAS
    np.testing.assert_allclose(table["elbo"], -(table["distortion"] + table["rate"]))
    np.testing.assert_allclose(table["objective"], table["distortion"] + table["beta"] * table["rate"])
    assert (table["log_likelihood"] >= table["elbo"]).all()
    assert table["rate"].is_monotonic_decreasing
    assert table["active_dimensions"].between(0, 3).all()
    assert (table["mutual_information"] <= np.log(15)).all()  # the cells held out
    assert (table["mutual_information"] <= table["mutual_information_bound"] + 0.05).all()  # the noise of its draws
    assert (table["mutual_information_bound"] <= table["rate"] + 1e-4).all()
    assert table["mutual_information_bound"].is_monotonic_decreasing
    assert np.isfinite(table[LABEL_FREE].to_numpy(dtype=float)).all()
    assert "ari" not in table


def test_likelihoods_are_those_of_the_public_tool_on_the_cells_held_out(tuned):
    adata, path, _ = tuned
    for i, beta in enumerate(BETAS):
        model = model_at(path, i)
        cells = adata[held_out(adata, model)].copy()
        for kind, column in (("iw", "log_likelihood"), ("elbo", "elbo")):
            expected = scvae.tl.log_likelihood(
                cells, model, kind=kind, n_samples=measures.N_SAMPLES, rng=SEED, beta=beta
            ).mean()
            assert path.table[column][i] == pytest.approx(expected, rel=1e-6)
    assert path.judged_on == "15 cells held out of the fit"


def test_rate_and_active_dimensions_follow_from_the_posterior_moments(tuned):
    adata, path, _ = tuned
    for i, beta in enumerate(BETAS):
        model = model_at(path, i)
        cells = adata[held_out(adata, model)].copy()
        moments = posterior_moments(model, read_cells(cells, model, None), beta=beta)
        mean, variance = (moment.astype(float) for moment in moments)
        kl = (mean**2 + variance - 1 - np.log(variance)) / 2
        assert path.table["rate"][i] == pytest.approx(kl.sum(1).mean(), rel=1e-4)
        assert path.table["active_dimensions"][i] == (kl.mean(0) > 0.05).sum()


def test_labels_add_their_columns_and_change_nothing_else(tuned):
    adata, path, method = tuned
    labelled = adata.copy()
    labels = labelled.obs["cell_type"].astype(object)
    labels.iloc[::7] = np.nan
    labelled.obs["known"] = labels
    found = tune(labelled, labels_key="known", method=method)
    pd.testing.assert_frame_equal(found.table[path.table.columns], path.table)
    scores = found.table[["nmi", "ari", "silhouette"]]
    assert scores.notna().all(axis=None)
    assert found.recommended == path.recommended


# what is written


def test_the_embedding_and_the_record_are_written(tuned):
    adata, path, method = tuned
    again = ad.AnnData(adata.X, obs=adata.obs, var=adata.var)
    scvae.tl.embed(again, path.model, beta=path.recommended)
    for key in ("X_scvae", "X_scvae_var"):
        assert adata.obsm[key].dtype == np.float32
        np.testing.assert_array_equal(adata.obsm[key], again.obsm[key])
    record = adata.uns["scvae"]
    pd.testing.assert_frame_equal(record["beta_path"], path.table)
    assert record["beta_path"] is not path.table
    assert record["beta_path_judged_on"] == path.judged_on
    assert path.table.loc[path.table["recommended"], "beta"].tolist() == [path.recommended]
    assert record["seed"] == SEED
    assert path.model.beta == (path.recommended if method == "sweep" else (0.3, 3.0))


def test_the_table_survives_an_h5ad_file_and_is_drawn_from_it(tuned, tmp_path):
    adata, path, _ = tuned
    adata.write_h5ad(tmp_path / "tuned.h5ad")
    read = ad.read_h5ad(tmp_path / "tuned.h5ad")
    pd.testing.assert_frame_equal(
        read.uns["scvae"]["beta_path"].reset_index(drop=True), path.table, check_index_type=False
    )
    scvae.pl.rate_distortion(read, save=tmp_path / "path.png")
    assert (tmp_path / "path.png").stat().st_size > 0


def test_nothing_but_the_slots_changes(digest):
    adata = simulated()
    before, state = digest(adata), np.random.get_state()[1].copy()  # noqa: NPY002
    tune(adata, key_added="mine")
    after = digest(adata)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed == {"obsm[X_mine]", "obsm[X_mine_var]", "uns"}
    assert set(adata.uns) - set(simulated().uns) == {"mine"}
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_the_same_seed_gives_the_same_table_and_bytes(tuned):
    adata, path, method = tuned
    other = simulated()
    again = tune(other, method=method)
    pd.testing.assert_frame_equal(again.table, path.table)
    assert other.obsm["X_scvae"].tobytes() == adata.obsm["X_scvae"].tobytes()


# a model that is there already


def test_a_path_model_is_measured_as_the_one_fitted_on_the_way(tmp_path):
    adata = simulated()
    path = tune(adata)
    path.model.save(tmp_path / "model.safetensors")
    loaded = scvae.load(tmp_path / "model.safetensors")
    again = tune(simulated(), model=loaded, rng=None)
    pd.testing.assert_frame_equal(again.table, path.table)
    assert again.judged_on == "15 cells held out of the fit"
    nine = tune(simulated(), model=loaded, betas=None).table["beta"]
    assert len(nine) == 9
    assert (nine.iloc[0], nine.iloc[-1]) == (0.3, 3.0)


def test_other_cells_are_all_judged_and_the_record_says_so():
    adata = simulated()
    model = tune(adata).model
    for cells in (simulated(80, rng=1), adata[::-1].copy()):
        path = tune(cells, model=model)
        assert path.judged_on == f"{cells.n_obs} cells other cells than those of the fit"


def test_a_fit_that_held_nothing_out_is_judged_on_the_cells_it_saw():
    path = tune(simulated(40), training=TrainingConfig(epochs=3, validation_fraction=0.0))
    assert path.judged_on == "40 cells trained on"


def test_samples_are_capped(monkeypatch):
    monkeypatch.setattr(measures, "JUDGED_CELLS", 7)
    monkeypatch.setattr(measures, "STRUCTURE_CELLS", 60)
    seen = []
    measure = measures.structure
    monkeypatch.setattr(measures, "structure", lambda mean, *a, **k: seen.append(len(mean)) or measure(mean, *a, **k))
    path = tune(simulated())
    assert path.judged_on.startswith("7 cells")
    assert seen == [60] * 3


# several measurements


@pytest.mark.parametrize("method", METHODS)
def test_the_table_of_a_joint_fit_is_what_the_public_tools_give_of_all_that_a_cell_has(method, tmp_path):
    adata = simulated(n_proteins=6)
    adata.obsm["protein"].iloc[::5] = np.nan
    path = tune(adata, method=method, protein_key="protein", protein_likelihood="poisson")
    assert adata.uns["scvae"]["params"]["views"] == {"protein": "poisson"}
    assert path.judged_on == "15 cells held out of the fit"
    for i, beta in enumerate(BETAS):
        model = model_at(path, i)
        cells = adata[held_out(adata, model)].copy()
        bound = scvae.tl.log_likelihood(cells, model, n_samples=measures.N_SAMPLES, rng=SEED, beta=beta).mean()
        assert path.table["log_likelihood"][i] == pytest.approx(bound, rel=1e-6)
    best = model_at(path, BETAS.index(path.recommended))
    scvae.tl.embed(adata, best, beta=path.recommended, key_added="again")
    np.testing.assert_array_equal(adata.obsm["X_scvae"], adata.obsm["X_again"])
    if method == "path":
        with pytest.raises(ValueError, match="protein_key cannot be set for a fitted model"):
            tune(adata, model=path.model, protein_key="protein")
        pd.testing.assert_frame_equal(tune(adata, model=path.model, rng=None).table, path.table)
        with pytest.warns(UserWarning, match="embedded without the view 'protein'"):
            tune(simulated(), model=path.model)


def test_trustworthiness_is_the_mean_over_measurements_of_the_cells_that_have_each():
    adata = simulated(n_proteins=6)
    adata.obsm["protein"].iloc[:100] = np.nan
    model = tune(adata, protein_key="protein").model
    yardstick = measures.make_yardstick(model, read_cells(adata, model, None), None, seed=SEED)
    (rna, everyone), (protein, some) = yardstick.references
    np.testing.assert_array_equal(everyone, np.arange(150))
    np.testing.assert_array_equal(some, np.arange(100, 150))
    z = model.written(posterior_moments(model, yardstick.sampled, beta=1.0)[0])
    expected = (trustworthiness(rna, z) + trustworthiness(protein, z[100:])) / 2
    found, _ = measures.embedding_at(model, yardstick, beta=1.0, seed=SEED)
    assert found.trustworthiness == pytest.approx(expected, rel=1e-6)


# the sweep


def test_a_sweep_goes_down_from_weights_to_weights_and_leaves_earlier_models_alone(monkeypatch):
    steps, next_of = [], scvae.tl._tune_beta.fit_next

    def watched(model, cells, *, beta, **options):
        before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
        after = next_of(model, cells, beta=beta, **options)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.network.state_dict().items())
        steps.append((model.beta, beta))
        return after

    monkeypatch.setattr("scvae.tl._tune_beta.fit_next", watched)
    path = tune(simulated(), method="sweep")
    assert steps == [(3.0, 1.0), (1.0, 0.3)]
    assert [model.beta for model in path.models] == BETAS
    assert [model.outcome.beta_attained for model in path.models] == BETAS
    assert [model.training_config.epochs for model in path.models] == [10, 10, 20]
    assert len({model.trained_on for model in path.models}) == 1


def test_the_next_model_starts_from_the_weights_it_is_given():
    adata = simulated()
    model = tune(adata, method="sweep", betas=[1.0, 2.0]).models[0]
    still = dataclasses.replace(model.training_config, learning_rate=1e-12)
    cells = read_query(adata, model.schema)
    nearly = fit_next(dataclasses.replace(model, training_config=still), cells, beta=2.0, epochs=1, verbose=False)
    for name, tensor in model.network.state_dict().items():
        torch.testing.assert_close(nearly.network.state_dict()[name], tensor, atol=1e-6, rtol=0)
    assert nearly.beta == 2.0


def test_ctrl_c_in_a_sweep_ends_it_and_nothing_is_written(monkeypatch, digest):
    adata = simulated()
    before, train = digest(adata), scvae.training.run.train
    trainings = []

    def interrupted(*arguments, **options):
        trainings.append(arguments[2].final_beta)
        progress = train(*arguments, **options)
        progress.epoch -= 5
        progress.ended = "interrupted"
        return progress

    monkeypatch.setattr("scvae.training.run.train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune(adata, method="sweep")
    assert trainings == [3.0]
    assert digest(adata) == before


# what is refused


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"betas": [1.0]}, "1 different value"),
        ({"betas": [0.0, 1.0]}, "each of betas is 0.0"),
        ({"betas": [1.0, np.inf]}, "each of betas is inf"),
        ({"method": "grid"}, "method must be one of 'path', 'sweep'"),
        ({"labels_key": "cell_typ"}, "did you mean 'cell_type'"),
        ({"labels_key": "alike"}, "1 label(s)"),
        ({"likelihood": "nbb"}, "did you mean 'nb'"),
        ({"method": "sweep", "n_latent": "auto"}, "pass a number to a sweep"),
        ({"method": "sweep", "checkpoint": "run.ckpt"}, "method='sweep' trains several"),
    ],
)
def test_arguments_that_cannot_be_are_refused_and_nothing_is_written(options, said, digest):
    adata = simulated()
    adata.obs["alike"] = "same"
    before = digest(adata)
    with pytest.raises(ValueError, match=re.escape(said)):
        tune(adata, **options)
    assert digest(adata) == before


def test_a_model_that_does_not_fit_the_call_is_refused():
    adata = simulated()
    path = tune(adata).model
    plain = scvae.fit(adata, training=TrainingConfig(epochs=1), network=NetworkConfig(width=8), rng=0, verbose=False)
    with pytest.raises(ValueError, match="trained at β = 1 alone"):
        tune(adata, model=plain)
    with pytest.raises(ValueError, match="10"):
        tune(adata, model=path, betas=[1, 10])
    with pytest.raises(ValueError, match="n_latent cannot be set for a fitted model"):
        tune(adata, model=path, n_latent=4)
    with pytest.raises(ValueError, match="method cannot be set for a fitted model"):
        tune(adata, model=path, method="sweep")


def test_too_few_cells_are_refused():
    with pytest.raises(ValueError, match="10 cells; tune_beta needs at least 20"):
        tune(simulated(10))


def test_a_failure_while_measuring_leaves_adata_as_it_was(monkeypatch, digest):
    adata = simulated()
    before = digest(adata)
    monkeypatch.setattr("scvae.tl._tune_beta.embedding_at", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tune(adata)
    assert digest(adata) == before


def test_a_missing_column_is_a_key_error_too():
    with pytest.raises(MissingKeyError):
        tune(simulated(), batch_key="none")


# how it looks


def test_arguments_shared_with_fit_are_those_of_fit():
    fit, found = (inspect.signature(f).parameters for f in (scvae.fit, scvae.tune_beta))
    assert set(fit) - set(found) == {"beta", "init", "unlabelled", "label_weight", "label_hierarchy"}
    assert set(found) - set(fit) == {"model", "betas", "method"}
    for name in set(fit) & set(found):
        assert found[name].default == fit[name].default
        if name != "adata":  # fit takes files, too
            assert found[name].annotation == fit[name].annotation


def test_the_record_is_shown_with_the_recommendation_marked(tuned):
    _, path, _ = tuned
    text = repr(path)
    marked = [line for line in text.splitlines() if "→" in line]
    assert len(marked) == 1
    assert marked[0].split()[1] == f"{path.recommended:.4g}"
    assert f"recommended β = {path.recommended:g}" in path._repr_html_()
