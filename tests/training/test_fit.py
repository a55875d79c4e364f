"""`fit`: what it writes, what it leaves alone, and how well it recovers what was planted."""

import gc
import warnings
import weakref

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from scipy.spatial.distance import cdist

import scvae
import scvae.training.train
from scvae import NetworkConfig, TrainingConfig
from scvae.data.intake import read_query
from scvae.inference.posterior import posterior_moments
from scvae.model.vae import make_model

HEADS = ["nb", "zinb", "poisson", "bernoulli", "gaussian"]
WRITTEN = {"obsm[X_scvae]", "obsm[X_scvae_var]", "uns"}


def simulated(n_cells=60, n_genes=30, **options):
    return scvae.datasets.simulate(**{"n_cells": n_cells, "n_genes": n_genes, "truth": False, "rng": 0, **options})


def fit(adata, **options):
    defaults = {"rng": 0, "n_latent": 3, "verbose": False}
    defaults |= {"network": NetworkConfig(width=16), "training": TrainingConfig(epochs=4, batch_size=32)}
    return scvae.fit(adata, **defaults | options)


def changed(before, after):
    return {name for name in before | after if before.get(name) != after.get(name)}


# what is written


@pytest.mark.parametrize("likelihood", HEADS)
def test_every_head_learns_and_writes_its_slots(likelihood):
    adata = simulated(150, likelihood=likelihood)
    model = fit(adata, likelihood=likelihood, training=TrainingConfig(epochs=30, batch_size=32))
    mean, variance = adata.obsm["X_scvae"], adata.obsm["X_scvae_var"]
    for values in (mean, variance):
        assert values.dtype == np.float32
        assert values.shape == (150, 3)
        assert np.isfinite(values).all()
    assert (variance > 0).all()
    assert model.outcome.skipped_steps == 0
    assert model.history["validation_elbo"].iloc[-1] > model.history["validation_elbo"].iloc[0]
    assert model.outcome.held_out_elbo == pytest.approx(model.history["validation_elbo"].max(), rel=0.1)


def test_uns_records_the_whole_fit():
    adata = simulated(n_batches=2)
    adata.obs["age"] = np.linspace(20, 60, 60)
    adata.layers["counts"] = adata.X.copy()
    model = fit(adata, layer="counts", batch_key="batch", covariate_keys=("cell_type", "age"), beta=0.7, rng=11)
    record = adata.uns["scvae"]
    params = record["params"]
    assert params["likelihood"] == "nb"
    assert (params["layer"], params["batch_key"], params["size_factor_key"]) == ("counts", "batch", "none")
    assert params["covariate_keys"].tolist() == ["cell_type", "age"]
    assert (params["n_latent"], params["n_genes"], params["beta"]) == (3, len(model.genes), 0.7)
    assert params["network"]["width"] == 16
    assert params["training"]["epochs"] == 4
    assert record["seed"] == 11
    assert record["beta_attained"] == 0.7
    assert record["converged"] is model.outcome.converged
    assert record["reason"] == model.outcome.reason
    assert record["seconds"] > 0
    assert {"scvae", "torch", "anndata", "python"} <= set(record["versions"])
    assert record["threads"] == torch.get_num_threads()
    assert set(record["history"]) == set(model.history)
    for name, values in record["history"].items():
        assert isinstance(values, np.ndarray)
        np.testing.assert_array_equal(values, model.history[name])
    assert len(record["kl_per_dimension"]) == 3


def test_changing_uns_does_not_change_the_model():
    adata = simulated()
    model = fit(adata)
    adata.uns["scvae"]["history"]["epoch"][:] = -1
    adata.uns["scvae"]["versions"]["torch"] = "?"
    assert model.history["epoch"].tolist() == [1, 2, 3, 4]
    assert model.versions["torch"] != "?"


def same(found, expected):
    if isinstance(expected, dict):
        return set(found) == set(expected) and all(same(found[key], value) for key, value in expected.items())
    if isinstance(expected, np.ndarray):
        return np.array_equal(np.asarray(found).astype(expected.dtype), expected, equal_nan=expected.dtype.kind == "f")
    return found == expected or (np.isnan(found) and np.isnan(expected))


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data will no longer be the default:UserWarning")  # of anndata
@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
@pytest.mark.parametrize("options", [{}, {"batch_key": "batch", "covariate_keys": ["cell_type"]}])
def test_everything_written_survives_a_file(tmp_path, kind, options):
    adata = simulated(n_batches=2)
    fit(adata, **options)
    path = tmp_path / f"out.{kind}"
    getattr(adata, f"write_{kind}")(path)
    read = getattr(ad, f"read_{kind}")(path)
    for key in ("X_scvae", "X_scvae_var"):
        assert read.obsm[key].dtype == np.float32
        np.testing.assert_array_equal(read.obsm[key], adata.obsm[key])
    assert same(read.uns["scvae"], adata.uns["scvae"])


def test_key_added_names_every_slot():
    adata = simulated()
    fit(adata)
    first = adata.obsm["X_scvae"].copy()
    fit(adata, key_added="other", rng=1)
    assert {"X_scvae", "X_scvae_var", "X_other", "X_other_var"} <= set(adata.obsm)
    assert {"scvae", "other"} <= set(adata.uns)
    np.testing.assert_array_equal(adata.obsm["X_scvae"], first)


@pytest.mark.parametrize("kind", [lambda value: np.asarray(value)[()], np.asarray, torch.tensor])
def test_numbers_of_numpy_and_torch_are_as_good_as_those_of_python(kind, tmp_path):
    adata = simulated()
    model = fit(adata, n_latent=kind(2), beta=kind(0.5), rng=kind(3))
    assert adata.obsm["X_scvae"].shape == (60, 2)
    assert (model.beta, model.seed) == (0.5, 3)
    assert fit(adata, n_latent=kind(2), init=model).n_latent == 2
    scvae.tl.denoise(adata, model, n_samples=kind(4), interval=kind(0.5), beta=kind(0.5))
    model.save(tmp_path / "model")
    adata.write_h5ad(tmp_path / "out.h5ad")


def test_no_covariates_may_be_none():
    adata = simulated()
    assert fit(adata, covariate_keys=None).schema == fit(adata).schema


# what is left alone


def containers():
    return {
        "csr": lambda x: x,
        "csc": sparse.csc_matrix,
        "csr_array": sparse.csr_array,
        "dense": lambda x: x.toarray(),
        "integers": lambda x: x.astype(np.int32),
    }


@pytest.mark.parametrize("container", containers())
def test_only_the_named_slots_change(digest, container):
    adata = simulated(n_batches=2)
    adata.X = containers()[container](adata.X)
    adata.layers["other"] = adata.X.copy()
    adata.varm["kept"] = np.ones((30, 2))
    before = digest(adata)
    fit(adata, batch_key="batch")
    assert changed(before, digest(adata)) == WRITTEN


def test_a_view_becomes_actual_and_its_parent_stays_as_it_was(digest):
    parent = simulated(100)
    before = digest(parent)
    view = parent[10:70, 3:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(view)
    assert not view.is_view
    assert view.shape == (60, 27)
    assert view.obsm["X_scvae"].shape == (60, 3)
    assert digest(parent) == before
    copied = parent[10:70, 3:].copy()
    fit(copied)
    np.testing.assert_array_equal(view.obsm["X_scvae"], copied.obsm["X_scvae"])


def test_a_backed_file_gives_the_same_numbers_and_is_not_written_to(tmp_path):
    adata = simulated()
    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    content = path.read_bytes()
    backed = ad.read_h5ad(path, backed="r")
    fit(adata)
    fit(backed)
    np.testing.assert_array_equal(backed.obsm["X_scvae"], adata.obsm["X_scvae"])
    backed.file.close()
    assert path.read_bytes() == content


def test_the_global_random_states_are_neither_used_nor_changed():
    results = []
    for seed in (1, 2):
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
        adata = simulated()
        model = fit(adata)
        scvae.tl.log_likelihood(adata, model, n_samples=3)
        assert np.array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
        assert torch.equal(torch.get_rng_state(), before[1])
        results.append(adata.obsm["X_scvae"])
    np.testing.assert_array_equal(*results)


def test_the_model_holds_no_reference_to_the_data():
    adata = simulated()
    model = fit(adata)
    dead = weakref.ref(adata), weakref.ref(adata.X)
    del adata
    gc.collect()
    assert [reference() for reference in dead] == [None, None]
    assert len(model.genes) == 30


ERRORS = {
    "no such layer": ({"layer": "nothing"}, "layers"),
    "no such batch": ({"batch_key": "nothing"}, "nothing"),
    "no such mask": ({"mask_var": "nothing"}, "nothing"),
    "unknown head": ({"likelihood": "nbb"}, "likelihood must be one of"),
    "normalised": ({"layer": "normalised"}, "normalised"),
    "missing batch": ({"batch_key": "holes"}, "missing values"),
    "no latent": ({"n_latent": 0}, "n_latent"),
    "negative beta": ({"beta": -1.0}, "beta"),
    "infinite beta": ({"beta": float("inf")}, "beta"),
    "negative seed": ({"rng": -1}, "seed"),
    "unknown device": ({"device": "abacus"}, "device"),
    "absent device": ({"device": "cuda:99"}, "device"),
    "dispersion without batch": ({"network": NetworkConfig(dispersion="gene-batch")}, "batch_key"),
    "dispersion of poisson": (
        {"network": NetworkConfig(dispersion="gene-batch"), "likelihood": "poisson", "batch_key": "batch"},
        "likelihood='nb'",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
@pytest.mark.parametrize("as_view", [False, True])
def test_an_error_leaves_adata_as_it_was(digest, case, as_view):
    adata = simulated(n_batches=2)
    adata.layers["normalised"] = sparse.csr_matrix(adata.X / adata.X.sum(1))
    adata.obs["holes"] = ["a", None] * 30
    adata = adata[:50] if as_view else adata
    before = digest(adata)
    options, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        fit(adata, **options)
    assert digest(adata) == before


def test_a_failure_of_the_embedding_leaves_adata_as_it_was(monkeypatch, digest):
    adata = simulated()
    before = digest(adata)
    monkeypatch.setattr("scvae.training.results.posterior_moments", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(adata)
    assert digest(adata) == before


@pytest.mark.parametrize("what", [None, np.ones((3, 3)), pd.DataFrame({"gene": [1.0]})], ids=["none", "array", "frame"])
def test_something_else_than_an_anndata_is_refused(what):
    with pytest.raises(TypeError, match="pass an anndata"):
        fit(what)


# repeatability


@pytest.mark.parametrize("likelihood", HEADS)
def test_the_same_seed_gives_identical_bytes(likelihood):
    first, second = (simulated(likelihood=likelihood) for _ in range(2))
    models = [fit(adata, likelihood=likelihood, rng=5) for adata in (first, second)]
    assert first.obsm["X_scvae"].tobytes() == second.obsm["X_scvae"].tobytes()
    assert first.obsm["X_scvae_var"].tobytes() == second.obsm["X_scvae_var"].tobytes()
    assert models[0].history.drop(columns="seconds").equals(models[1].history.drop(columns="seconds"))


def test_another_seed_gives_another_result_and_generators_are_seeds():
    embeddings = []
    for rng in (0, 1, np.random.default_rng(7), np.random.default_rng(7)):
        adata = simulated()
        fit(adata, rng=rng)
        embeddings.append(adata.obsm["X_scvae"])
    assert not np.array_equal(embeddings[0], embeddings[1])
    np.testing.assert_array_equal(embeddings[2], embeddings[3])


def test_a_drawn_seed_is_recorded_and_repeats_the_fit():
    first, second = simulated(), simulated()
    model = fit(first, rng=None)
    fit(second, rng=model.seed)
    np.testing.assert_array_equal(first.obsm["X_scvae"], second.obsm["X_scvae"])
    assert fit(simulated(), rng=None).seed != model.seed


# what the model makes of batches and masks


def test_the_default_mask_is_highly_variable_and_all_genes_stay():
    adata = simulated()
    adata.var["highly_variable"] = [True, False] * 15
    model = fit(adata)
    assert model.genes.tolist() == adata.var_names[::2].tolist()
    assert adata.shape == (60, 30)


@pytest.mark.parametrize("dispersion", ["gene", "gene-batch"])
@pytest.mark.parametrize("encode_conditions", [False, True])
def test_batches_and_covariates_can_be_modelled_in_every_way(dispersion, encode_conditions):
    adata = simulated(n_batches=3)
    adata.obs["age"] = np.linspace(20, 60, 60)
    network = NetworkConfig(width=16, dispersion=dispersion, encode_conditions=encode_conditions)
    model = fit(adata, batch_key="batch", covariate_keys=["cell_type", "age"], network=network)
    assert model.schema.n_conditions == 3 + 5 + 1
    assert np.isfinite(adata.obsm["X_scvae"]).all()
    other = adata.copy()
    other.obs["batch"] = "batch_0"
    scvae.tl.embed(other, model)
    unmoved = np.array_equal(other.obsm["X_scvae"], adata.obsm["X_scvae"])
    assert unmoved is not encode_conditions


def test_a_batch_of_one_cell_warns_and_the_fit_goes_on():
    adata = simulated()
    adata.obs["batch"] = ["alone", *["others"] * 59]
    with pytest.warns(UserWarning, match="'alone'"):
        fit(adata, batch_key="batch")
    assert np.isfinite(adata.obsm["X_scvae"]).all()


# what it recovers


def neighbour_accuracy(embedding, labels, k=15):
    """Share of cells whose type is the most common one among their k nearest other cells."""
    distance = cdist(embedding, embedding)
    np.fill_diagonal(distance, np.inf)
    nearest = np.argsort(distance, axis=1)[:, :k]
    votes = pd.get_dummies(pd.Series(labels)).to_numpy()[nearest].sum(1)
    codes = pd.Categorical(labels, categories=sorted(set(labels))).codes
    return np.mean(votes.argmax(1) == codes)


def test_a_default_fit_recovers_planted_cell_types():
    adata = simulated(400, 200, n_types=5, type_share=0.9, n_latent=10, rng=4)
    model = scvae.fit(adata, rng=0, verbose=False, training=TrainingConfig(epochs=60))
    labels = adata.obs["cell_type"].to_numpy()
    untrained = make_model(model.schema, model.likelihood, model.n_latent, model.network_config, seed=0).eval()
    before, _ = posterior_moments(
        scvae.FittedModel(**{f: getattr(model, f) for f in model.__dataclass_fields__} | {"network": untrained}),
        read_query(adata, model.schema),
    )
    trained = neighbour_accuracy(adata.obsm["X_scvae"], labels)
    assert trained > 0.9
    assert trained > neighbour_accuracy(before, labels) + 0.1


@pytest.mark.slow
def test_a_batch_effect_is_left_to_the_decoder():
    adata = simulated(400, 100, n_types=4, type_share=0.9, n_batches=2, batch_effect=0.6, rng=1)
    accuracy = {}
    for batch_key in (None, "batch"):
        scvae.fit(adata, batch_key=batch_key, rng=0, verbose=False, training=TrainingConfig(epochs=60))
        accuracy[batch_key] = neighbour_accuracy(adata.obsm["X_scvae"], adata.obs["batch"].to_numpy())
    assert accuracy[None] > 0.95
    assert accuracy["batch"] < 0.75  # 0.5 is chance
    assert neighbour_accuracy(adata.obsm["X_scvae"], adata.obs["cell_type"].to_numpy()) > 0.9
