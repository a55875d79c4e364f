"""`tl.diagnose(condition_key=)`: a condition that was absorbed as a batch is named, a clean fit is called clean."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scvae
from scvae import NetworkConfig, TrainingConfig

QUICK = {"network": NetworkConfig(width=32), "training": TrainingConfig(epochs=40), "n_latent": 6, "verbose": False}


def two_types(design, *, effect=0.8, batch_effect=0.5, n=800, n_genes=100, n_batches=2):
    """Cells of two types; a condition changes a third of the genes. `design` gives the batch of a condition."""
    rng = np.random.default_rng(0)
    kind, condition = rng.integers(2, size=n), rng.integers(2, size=n)
    batch = design(condition, rng, n)
    change = np.where(np.arange(n_genes) % 3 == 0, rng.choice([-1, 1], n_genes), 0.0) * effect
    rate = rng.normal(0, 1, n_genes) + kind[:, None] * rng.normal(0, 1, n_genes) + condition[:, None] * change
    rate = rate + batch_effect * rng.normal(size=(n_batches, n_genes))[batch]
    mean = np.exp(rate) / np.exp(rate).sum(1, keepdims=True) * rng.lognormal(7.5, 0.3, n)[:, None]
    obs = {"condition": np.array(["c", "t"])[condition], "batch": [f"b{i}" for i in batch], "one": "x"}
    return ad.AnnData(
        sparse.csr_matrix(rng.poisson(mean).astype(np.float32)),
        obs=pd.DataFrame(obs, index=[f"c{i}" for i in range(n)]),
    )


def crossed(_condition, rng, n):
    return rng.integers(2, size=n)


def confounded(condition, _rng, _n):
    return condition


def nested(condition, rng, n):
    return 3 * condition + rng.integers(3, size=n)


def audited(adata):
    model = scvae.fit(adata, batch_key="batch", rng=0, **QUICK)
    found = scvae.tl.diagnose(adata, model, condition_key="condition", verbose=False)
    return {finding.name: finding for finding in found.findings}, found.measured.correction


def test_a_condition_absorbed_as_a_batch_is_named_and_written(tmp_path):
    adata = two_types(confounded)
    findings, audit = audited(adata)
    assert "each batch has one value of 'condition'" in findings["over-correction"].cause
    assert audit.kept < 0.3
    assert audit.tracked > 0.8
    assert audit.confounded
    assert np.nanmin(audit.removed) > 0.7
    adata.write_h5ad(tmp_path / "cells.h5ad")
    written = ad.read_h5ad(tmp_path / "cells.h5ad").uns["scvae"]["diagnosis"]["correction"]
    assert written["kept"] == audit.kept
    assert "over-correction" in ad.read_h5ad(tmp_path / "cells.h5ad").uns["scvae"]["diagnosis"]["verdict"]


def test_a_fit_with_both_conditions_in_each_batch_is_clean_and_removes_the_batch():
    adata = two_types(crossed)
    cells = adata.X.toarray()
    cells[adata.obs["batch"] == "b1", 1] = 0.0  # a gene without any count in one batch
    adata.X = sparse.csr_matrix(cells)
    findings, audit = audited(adata)
    assert {"over-correction", "differences made by correction"}.isdisjoint(findings)
    assert audit.kept > 0.7
    assert np.nanmedian(audit.removed) > 0.7


def test_conditions_without_an_effect_are_no_larger_than_shuffled_ones():
    adata = two_types(crossed)
    model = scvae.fit(adata, batch_key="batch", rng=0, **QUICK)
    larger = []
    for seed in range(3):
        adata.obs["random"] = np.random.default_rng(seed).permutation(adata.obs["condition"].to_numpy())
        found = scvae.tl.diagnose(adata, model, condition_key="random", n_cells=500, verbose=False)
        assert found.measured.correction.chance > 0
        larger.append(found.measured.correction.condition_size > found.measured.correction.chance)
        assert "over-correction" not in [finding.name for finding in found.findings]
        assert ("no clear differences by random" in str(found)) is not larger[-1]
    assert sum(larger) <= 1
    planted = scvae.tl.diagnose(adata, model, condition_key="condition", n_cells=500, verbose=False).measured.correction
    assert planted.condition_size > 1.5 * planted.chance


@pytest.mark.parametrize(("effect", "named"), [(0.0, False), (0.8, True)])
def test_batches_of_one_condition_are_judged_by_how_much_batches_differ_anyway(effect, named):
    findings, audit = audited(two_types(nested, effect=effect, batch_effect=0.3, n_batches=6, n=1_200))
    assert ("over-correction" in findings) is named
    assert ("condition goes with batches" in findings) is not named
    assert (audit.excess > 3.0) is named


def test_what_cannot_be_audited_is_refused(digest):
    adata = two_types(crossed, n=60, n_genes=20)
    quick = QUICK | {"training": TrainingConfig(epochs=2)}
    model = scvae.fit(adata, rng=0, **quick)
    before = digest(adata)
    for of, key, message in (
        (model, "condition", "models of counts with batch_key"),
        (scvae.fit(adata.copy(), batch_key="batch", rng=0, **quick), "batch", "which is the batch"),
        (scvae.fit(adata.copy(), batch_key="batch", rng=0, **quick), "one", "has a single value"),
        (scvae.fit(adata.copy(), batch_key="batch", rng=0, **quick), "condtion", "did you mean 'condition'"),
    ):
        with pytest.raises(ValueError, match=message):
            scvae.tl.diagnose(adata, of, condition_key=key)
    assert digest(adata) == before
