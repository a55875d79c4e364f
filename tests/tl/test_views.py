"""Tools on a model of RNA and proteins: any of both embeds, each is denoised and ranked, the one predicts the other."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scvae
from scvae.data.batches import split

SHORT = {"n_latent": 4, "rng": 0, "verbose": False, "training": scvae.TrainingConfig(epochs=40)}


@pytest.fixture(scope="module")
def fitted():
    """400 cells of four types in two batches; 10 proteins, which the last 60 cells lack."""
    adata = scvae.datasets.simulate(
        n_cells=400, n_genes=60, n_types=4, n_proteins=10, n_batches=2, batch_effect=0.3, rng=0
    )
    adata.obsm["truth"] = adata.obsm["protein"].copy()
    adata.obsm["protein"].iloc[-60:] = np.nan
    model = scvae.fit(adata, protein_key="protein", batch_key="batch", **SHORT)
    return adata, model


@pytest.fixture
def cells(fitted):
    return fitted[0].copy()


@pytest.fixture
def model(fitted):
    return fitted[1]


def test_the_fit_records_its_views_and_files_hold_them(cells, model, tmp_path):
    assert model.schema.view_names == ("rna", "protein")
    assert cells.uns["scvae"]["params"]["views"] == {"protein": "nb"}
    assert "10 features, nb" in repr(model)
    assert "view protein" in model.card()
    loaded = scvae.load(model.save(tmp_path / "model.safetensors"))
    assert loaded.schema == model.schema
    assert loaded.view_libraries == model.view_libraries
    assert loaded.coverages == model.coverages != (None,)
    scvae.tl.impute(cells, loaded, view="protein", n_samples=20)
    scvae.tl.denoise(cells, loaded, view="protein", n_samples=0)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    read = ad.read_h5ad(tmp_path / "cells.h5ad")
    pd.testing.assert_frame_equal(read.obsm["scvae_protein"], cells.obsm["scvae_protein"])
    again = scvae.tl.embed(read, loaded, copy=True)
    np.testing.assert_array_equal(again.obsm["X_scvae"], cells.obsm["X_scvae"])


def test_cells_are_embedded_by_what_views_names(cells, model):
    scvae.tl.embed(cells, model, views="rna", key_added="rna")
    assert cells.uns["rna"]["cells_with"] == {"rna": 400, "protein": 0}
    alone = cells.copy()
    del alone.obsm["protein"]
    with pytest.warns(UserWarning, match=r"adata.obsm has no 'protein' .*rename the slot"):
        scvae.tl.embed(alone, model, key_added="alone")
    np.testing.assert_array_equal(alone.obsm["X_alone"], cells.obsm["X_rna"])
    # cells without proteins are where their RNA puts them
    np.testing.assert_allclose(cells.obsm["X_rna"][-60:], cells.obsm["X_scvae"][-60:], atol=1e-5)
    assert np.abs(cells.obsm["X_rna"][:-60] - cells.obsm["X_scvae"][:-60]).max() > 0.1
    with pytest.raises(ValueError, match=r"60 cells have no value in the views 'protein'"):
        scvae.tl.embed(cells, model, views="protein")
    stained = cells[:340].copy()
    scvae.tl.embed(stained, model, views="protein", key_added="protein")
    # without RNA: X does not matter
    dark = ad.AnnData(0 * stained.X, stained.obs.copy(), stained.var.copy(), obsm={"protein": stained.obsm["protein"]})
    scvae.tl.embed(dark, model)
    np.testing.assert_allclose(dark.obsm["X_scvae"], stained.obsm["X_protein"], atol=1e-5)
    with pytest.raises(ValueError, match="views must be one of 'rna', 'protein'; found 'adt'"):
        scvae.tl.embed(cells, model, views="adt")


def test_a_second_anndata_takes_the_place_of_the_slot(cells, model, digest):
    proteins = ad.AnnData(cells.obsm["protein"].iloc[340 - 1 :: -1].copy())
    other = cells.copy()
    del other.obsm["protein"]
    scvae.tl.embed(other, model, also={"protein": proteins})
    np.testing.assert_array_equal(other.obsm["X_scvae"], cells.obsm["X_scvae"])
    before = digest(other)
    with pytest.raises(ValueError, match=r"also has 'adt', but the views of the model are 'protein'"):
        scvae.tl.embed(other, model, also={"adt": proteins})
    assert digest(other) == before


def test_the_log_likelihood_of_both_is_more_than_that_of_each(cells, model):
    stained = cells[:340].copy()
    both, rna, protein = (
        scvae.tl.log_likelihood(stained, model, views=views, n_samples=50).mean() for views in (None, "rna", "protein")
    )
    assert both > rna + protein + 0.3  # what the one tells of the other


def test_imputed_proteins_follow_the_true_ones_and_intervals_hold_them(cells, model):
    scvae.tl.impute(cells, model, view="protein", n_samples=100)
    predicted, truth = cells.obsm["scvae_protein"], cells.obsm["truth"]
    pd.testing.assert_frame_equal(predicted.iloc[:340], truth.iloc[:340].astype(np.float32))
    late, mean = truth.iloc[-60:].to_numpy(), predicted.iloc[-60:].to_numpy()
    correlation = [np.corrcoef(np.log1p(late[:, p]), np.log1p(mean[:, p]))[0, 1] for p in range(10)]
    assert np.median(correlation) > 0.4
    lower, upper = (cells.obsm[f"scvae_protein_{end}"].iloc[-60:].to_numpy() for end in ("lower", "upper"))
    assert 0.84 < ((lower <= late) & (late <= upper)).mean() < 0.96
    assert cells.uns["scvae"]["imputed_protein"]["n_cells"] == 60
    scvae.fit(cells, key_added="scvae", **SHORT | {"training": scvae.TrainingConfig(epochs=1)})
    assert "scvae_protein" not in cells.obsm  # it was another model's
    assert "imputed_protein" not in cells.uns["scvae"]


def test_impute_refuses_what_it_cannot_do(cells, model, digest):
    before = digest(cells)
    with pytest.raises(ValueError, match="view is 'rna', the first measurement"):
        scvae.tl.impute(cells, model, view="rna")
    with pytest.raises(ValueError, match="all 340 cells have the view 'protein'; pass all_cells=True"):
        scvae.tl.impute(cells[:340].copy(), model, view="protein")
    with pytest.raises(ValueError, match=r"n_samples.*20"):
        scvae.tl.impute(cells, model, view="protein", n_samples=5)
    assert digest(cells) == before


def test_proteins_are_denoised_and_ranked(cells, model):
    scvae.tl.denoise(cells, model)
    scvae.tl.denoise(cells, model, view="protein", n_samples=0)
    table = cells.obsm["scvae_protein_denoised"]
    assert list(table) == list(cells.obsm["protein"])
    np.testing.assert_allclose(table.sum(1), 1.0, rtol=1e-5)
    assert cells.layers["scvae_denoised"].shape == (400, 60)
    assert {"denoised", "denoised_protein"} <= set(cells.uns["scvae"])
    true = cells.obsm["protein_mean"].to_numpy()
    true = np.log(true / true.sum(1, keepdims=True))
    within = np.log(table.to_numpy()) - np.log(table.to_numpy()).mean(0)
    assert np.corrcoef(within.ravel(), (true - true.mean(0)).ravel())[0, 1] > 0.6
    with pytest.raises(ValueError, match="leave out view, or all_genes"):
        scvae.tl.denoise(cells, model, view="protein", all_genes=True)
    scvae.tl.rank_genes(cells, model, groupby="cell_type", view="protein")
    ranking = cells.uns["rank_genes_groups"]
    assert ranking["params"]["view"] == "protein"
    group = (cells.obs["cell_type"] == "type_0").to_numpy()
    share = np.exp(true[:340])
    change = np.log2(share[group[:340]].mean(0) / share[~group[:340]].mean(0))
    found = pd.Series(ranking["logfoldchanges"]["type_0"], ranking["names"]["type_0"])[list(table)]
    assert np.corrcoef(found, change)[0, 1] > 0.9


def test_a_query_of_rna_alone_is_mapped_and_its_proteins_predicted(cells, model):
    query = scvae.datasets.simulate(
        n_cells=120, n_genes=60, n_types=4, n_proteins=10, n_batches=2, batch_effect=0.3, rng=0
    )
    query.obs["batch"] = "new"
    truth = query.obsm.pop("protein")
    mapped = scvae.tl.map_query(query, model, epochs=20, verbose=False)
    assert mapped.view_libraries[0].n_cells[2] == 0
    scvae.tl.impute(query, mapped, view="protein", n_samples=50)
    correlation = [
        np.corrcoef(np.log1p(truth[name]), np.log1p(query.obsm["scvae_protein"][name]))[0, 1] for name in truth
    ]
    assert np.median(correlation) > 0.4
    # the reference does not change
    before, after = model.network.state_dict(), mapped.network.state_dict()
    for name in ("views.0.values.weight", "views.0.head.log_inverse_dispersion", "encoder.genes.weight"):
        assert (before[name] == after[name]).all()


def test_generated_cells_have_both(model):
    new = scvae.tl.generate(model, n=300, rng=0)
    table = new.obsm["protein"]
    assert list(table) == list(model.schema.views[0].features)
    assert (table.to_numpy() == np.rint(table.to_numpy())).all()
    scvae.tl.embed(new, model, views="rna", key_added="rna")
    scvae.tl.embed(new, model, views="protein", key_added="protein")
    # both are drawn for the same z
    matched = [np.corrcoef(new.obsm["X_rna"][:, d], new.obsm["X_protein"][:, d])[0, 1] for d in range(4)]
    assert max(matched) > 0.4


def test_diagnose_says_what_each_view_adds(cells, model):
    diagnosis = scvae.tl.diagnose(cells, model, n_cells=100)
    assert [share.name for share in diagnosis.views] == ["rna", "protein"]
    assert "view 'protein'" in repr(diagnosis)
    stored = cells.uns["scvae"]["diagnosis"]["views"]
    stained = cells[:340].copy()
    for share in diagnosis.views:
        assert share.n_cells == 340
        assert stored[share.name]["added"] == share.added > 0
        assert 0 < share.distance < 2
        assert share.rate.shape == (4,)
    bound = scvae.tl.log_likelihood(stained, model, kind="elbo", n_samples=20)
    axes = scvae.pl.posterior_predictive(cells, view="protein", show=False)
    assert axes[0].get_title(loc="left").startswith("protein: variance")
    assert len(axes[0].collections[0].get_offsets()) == 10
    assert stored["protein"]["gene_mean"] == pytest.approx(stained.obsm["protein"].mean().to_numpy(), rel=1e-5)
    assert stored["protein"]["gene_mean_drawn"] == pytest.approx(stored["protein"]["gene_mean"], rel=0.15)
    with pytest.raises(ValueError, match="no draws of the view 'adt'; it has those of 'rna', 'protein'"):
        scvae.pl.posterior_predictive(cells, view="adt", show=False)
    reconstructed = sum(share.log_likelihood for share in diagnosis.views)
    assert bound.mean() < reconstructed < bound.mean() + 20.0  # the ELBO is that minus the KL


@pytest.mark.slow
def test_heads_are_compared_measurement_by_measurement_on_the_cells_that_have_it():
    adata = scvae.datasets.simulate(n_cells=160, n_genes=30, n_proteins=6, inverse_dispersion=0.5, rng=0)
    adata.obsm["protein"].iloc[:40] = np.nan
    training = scvae.TrainingConfig(epochs=15, batch_size=16, validation_fraction=0.3)
    quick = {"n_latent": 3, "rng": 0, "verbose": False, "training": training}
    model = scvae.fit(adata, protein_key="protein", **quick)
    found = scvae.tl.diagnose(adata, model, n_cells=40, compare_heads=True, verbose=False)
    heads = {(fit.view, fit.likelihood): fit for fit in found.heads}
    assert {name for view, name in heads if view == "rna"} == {"nb", "zinb", "poisson"}
    assert {name for view, name in heads if view == "protein"} == {"nb", "nb_mixture", "poisson", "gaussian"}
    for view in ("rna", "protein"):
        assert heads[view, "poisson"].difference > 3 * heads[view, "poisson"].error > 0
        assert heads[view, "nb"].difference < heads[view, "poisson"].difference / 3
    # both have the model as it was fitted, judged by all its measurements
    held_out = split(160, 0.3, model.seed)[1]
    bound = scvae.tl.log_likelihood(adata[held_out].copy(), model, n_samples=50, rng=0)
    assert heads["rna", "nb"].log_likelihood == pytest.approx(bound.mean(), rel=1e-5)
    assert heads["protein", "nb"].log_likelihood == pytest.approx(bound[held_out >= 40].mean(), rel=1e-5)
    stored = adata.uns["scvae"]["diagnosis"]["heads"]["protein"]["gaussian"]
    assert stored["log_likelihood"] == heads["protein", "gaussian"].log_likelihood
    assert "heads of 'protein', held out" in repr(found)


def test_draws_of_given_cells_have_the_measurements_that_these_have(cells, model):
    cells.X = cells.X.multiply((np.arange(400) >= 50)[:, None]).tocsr()
    drawn = scvae.tl.sample(cells, model, n_samples=3)
    table = drawn.obsm["protein"]
    assert list(table) == list(cells.obsm["protein"])
    lacking = np.tile(np.arange(400) >= 340, 3)
    np.testing.assert_array_equal((table == 0).all(axis=1), lacking)
    np.testing.assert_array_equal(np.asarray(drawn.X.sum(1)).ravel() == 0, np.tile(np.arange(400) < 50, 3))
    measured = cells.obsm["protein"].iloc[:340].to_numpy()
    again = table.to_numpy()[:400][:340]
    within = [np.corrcoef(np.log1p(measured[:, p]), np.log1p(again[:, p]))[0, 1] for p in range(10)]
    assert np.median(within) > 0.3
    scvae.tl.embed(drawn, model)  # the model reads them again


def test_latent_genes_lists_the_features_of_a_view(cells, model, digest):
    before = digest(cells)
    table = scvae.tl.latent_genes(cells, model, n_genes=3, view="protein")
    assert digest(cells) == before  # but for an entry of the record
    assert list(cells.uns["scvae"]["effects_protein"]["features"]) == list(cells.obsm["protein"])
    assert set(table["gene"]) <= set(cells.obsm["protein"])
    # cells with a larger value have more of the proteins that it raises
    share = np.log1p(cells.obsm["protein"].iloc[:340])
    share = share.sub(share.mean(1), axis=0)
    best = table.loc[table["effect"].abs().idxmax()]
    along = np.corrcoef(cells.obsm["X_scvae"][:340, best["dimension"]], share[best["gene"]])[0, 1]
    assert along * np.sign(best["effect"]) > 0.3
    with pytest.raises(ValueError, match="view must be one of 'rna', 'protein'; found 'adt'"):
        scvae.tl.latent_genes(cells, model, view="adt")


def test_effects_on_a_view_are_drawn_and_go_with_their_model(cells, model, tmp_path):
    with pytest.raises(KeyError, match=r"'effects_protein'; run scvae.tl.latent_genes\(adata, model, view='protein'\)"):
        scvae.pl.loadings(cells, view="protein", show=False)
    with pytest.raises(ValueError, match="view must be one of 'rna', 'protein'; found 'adt'"):
        scvae.pl.loadings(cells, view="adt", show=False)
    table = scvae.tl.latent_genes(cells, model, view="protein")
    cells.write_h5ad(tmp_path / "cells.h5ad")
    read = ad.read_h5ad(tmp_path / "cells.h5ad")
    panel, *_ = scvae.pl.loadings(read, dimensions=[0], n_genes=2, view="protein", show=False)
    ends = table[(table["dimension"] == 0) & (table["rank"] == 1)].sort_values("effect")
    np.testing.assert_allclose([bar.get_width() for bar in panel.patches], ends["effect"], rtol=1e-6)
    scvae.tl.embed(cells, model, views="rna")
    assert "effects_protein" in cells.uns["scvae"]
    scvae.fit(cells, protein_key="protein", **SHORT | {"training": scvae.TrainingConfig(epochs=1)})
    assert "effects_protein" not in cells.uns["scvae"]
