"""`tl.diagnose`: what it writes, what it leaves alone, and how it reads."""

import functools
import html

import anndata as ad
import numpy as np
import pytest

import scvae
from scvae import NetworkConfig, TrainingConfig


def simulated(**options):
    return scvae.datasets.simulate(**{"n_cells": 120, "n_genes": 40, "truth": False, "rng": 0} | options)


def fitted(adata, **options):
    defaults = {"rng": 0, "n_latent": 3, "verbose": False}
    defaults |= {"network": NetworkConfig(width=16), "training": TrainingConfig(epochs=30, batch_size=16)}
    return scvae.fit(adata, **defaults | options)


@functools.cache
def _case():
    adata = simulated()
    return adata, fitted(adata)


def case():
    """Cells to write to, and their model."""
    adata, model = _case()
    return adata.copy(), model


def test_the_diagnosis_joins_what_the_fit_has_written_and_survives_a_file(tmp_path, digest):
    adata = simulated(n_batches=2)
    model = fitted(adata, batch_key="batch")
    before, record = digest(adata), dict(adata.uns["scvae"])
    found = scvae.tl.diagnose(adata, model)
    assert digest(adata) == before
    assert adata.uns["scvae"]["models"] == record.pop("models") | {"diagnosis": adata.uns["scvae"]["models"]["X_scvae"]}
    assert {key: adata.uns["scvae"][key] for key in record} == record
    assert adata.uns["scvae"].keys() - record.keys() == {"diagnosis", "models"}
    adata.write_h5ad(tmp_path / "out.h5ad")
    stored = ad.read_h5ad(tmp_path / "out.h5ad").uns["scvae"]["diagnosis"]
    assert stored["verdict"] == found.verdict
    assert list(stored["findings"]["name"]) == [finding.name for finding in found.findings]
    np.testing.assert_array_equal(stored["kl_per_dimension"], found.measured.usage.kl)
    assert stored["kl_per_dimension"].shape == (3,)
    assert stored["gene_variance_drawn"].shape == (40,)


def test_cells_without_an_earlier_record_get_one_under_the_name_asked_for():
    adata, model = case()
    other = ad.AnnData(adata.X.copy(), var=adata.var.copy())
    scvae.tl.diagnose(other, model, key_added="mine")
    assert list(other.uns) == ["mine"]
    assert set(other.uns["mine"]) == {"diagnosis", "models", "checksums"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"beta": 2.0}, "β = 1 alone"),
        ({"n_cells": 0}, "n_cells is 0"),
        ({"key_added": "a/b"}, "without '/'"),
        ({"key_added": "taken"}, r"uns\['taken'\] is a str"),
        ({"layer": "raw"}, "no 'raw'"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_written(options, said):
    adata, model = case()
    adata.uns["taken"] = "by another"
    before = {key: repr(value) for key, value in adata.uns.items()}
    with pytest.raises(ValueError, match=said):
        scvae.tl.diagnose(adata, model, **options)
    assert {key: repr(value) for key, value in adata.uns.items()} == before


def test_heads_are_refused_for_other_data_than_counts():
    adata = simulated(likelihood="gaussian")
    model = fitted(adata, likelihood="gaussian")
    with pytest.raises(ValueError, match="compare_heads is for counts"):
        scvae.tl.diagnose(adata, model, compare_heads=True)
    assert "diagnosis" not in adata.uns["scvae"]


def test_the_same_seed_gives_the_same_report_and_the_global_state_stays():
    adata, model = case()
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (repr(scvae.tl.diagnose(adata, model, rng=seed)) for seed in (1, 1, 2))
    assert first == again != other
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_the_report_begins_with_the_verdict_and_gives_cause_and_remedy():
    adata = simulated()
    report = repr(scvae.tl.diagnose(adata, fitted(adata, training=TrainingConfig(epochs=1)))).split("\n")
    assert report[0] == "scvae diagnosis: not converged"
    place = report.index("disease: not converged")
    assert [line.split(":")[0].strip() for line in report[place + 2 : place + 4]] == ["Cause", "Remedy"]
    assert max(map(len, report[place:])) <= 110
    assert len(report) <= 25


def test_the_html_of_the_report_holds_the_same_words():
    adata = simulated()
    found = scvae.tl.diagnose(adata, fitted(adata, training=TrainingConfig(epochs=1)))
    assert found.findings
    shown = found._repr_html_()
    assert all(html.escape(f"{finding.remedy}.") in shown for finding in found.findings)
    assert all(html.escape(value) in shown for value in found._rows().values())


def test_a_model_of_many_betas_is_examined_at_the_one_asked_for():
    adata = simulated(n_cells=200, n_genes=80, signal=1.0)
    model = fitted(adata, beta=(0.1, 10.0))
    low, high = (scvae.tl.diagnose(adata, model, beta=beta).measured for beta in (0.1, 10.0))
    assert (low.beta, high.beta) == (0.1, 10.0)
    assert low.information.kl > 2 * high.information.kl


def test_cells_that_are_all_empty_are_refused():
    adata, model = case()
    empty = adata.copy()
    empty.X.data[:] = 0
    with pytest.raises(ValueError, match="0 cells have a count"):
        scvae.tl.diagnose(empty, model)


def test_an_empty_cell_among_others_is_left_out():
    adata, model = case()
    adata.X.data[: adata.X.indptr[3]] = 0
    assert scvae.tl.diagnose(adata, model).measured.n_cells == 117


def test_overdispersed_counts_are_fitted_best_by_a_head_with_overdispersion():
    adata = simulated(n_cells=200, n_genes=60, inverse_dispersion=0.5)
    found = scvae.tl.diagnose(adata, fitted(adata), compare_heads=True, verbose=False)
    heads = {fit.likelihood: fit for fit in found.heads}
    assert set(heads) == {"nb", "zinb", "poisson"}
    assert heads["nb"].difference <= 2 * heads["nb"].error + 1.0
    assert heads["poisson"].difference > 3 * heads["poisson"].error > 0
    assert [fit.log_likelihood for fit in found.heads] == sorted((f.log_likelihood for f in found.heads), reverse=True)
    assert adata.uns["scvae"]["diagnosis"]["heads"]["zinb"]["log_likelihood"] == heads["zinb"].log_likelihood
