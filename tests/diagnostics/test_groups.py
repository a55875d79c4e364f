"""Diagnosis of models with codes or categories: every number from sums by hand, every finding from planted faults."""

import copy
import functools

import anndata as ad
import numpy as np
import pytest
import torch
from matplotlib.text import Text
from scipy import special, stats

import scvae
from scvae import NetworkConfig, TrainingConfig
from scvae.diagnostics.gaps import gaps
from scvae.diagnostics.groups import group_use, of_codes
from scvae.inference.cells import read_cells
from scvae.inference.posterior import posterior_moments
from scvae.model.latent.codebook import Codebook

NETWORKS = {
    "categories": NetworkConfig(latent="categorical", n_categories=4),
    "codes": NetworkConfig(latent="quantized", n_codes=8),
}
OPTIONS = {"n_latent": 5, "training": TrainingConfig(epochs=80, batch_size=32), "rng": 0, "verbose": False}
each_kind = pytest.mark.parametrize("kind", NETWORKS)


@functools.cache
def _fitted(kind):
    adata = scvae.datasets.simulate(
        n_cells=240, n_genes=60, n_types=4, type_share=0.95, mean_library=3000.0, signal=1.5, truth=False, rng=0
    )
    return adata, scvae.fit(adata, network=NETWORKS[kind], **OPTIONS)


def fitted(kind):
    """Cells to write to, and a model to change."""
    adata, model = _fitted(kind)
    return adata.copy(), copy.deepcopy(model)


def found(kind, change=lambda prior: None):
    adata, model = fitted(kind)
    with torch.no_grad():
        change(model.network.prior)
    return scvae.tl.diagnose(adata, model, n_cells=100)


@pytest.mark.slow
@each_kind
def test_a_model_that_tells_the_types_apart_is_healthy_and_says_how_groups_are_used(kind, tmp_path):
    adata, model = fitted(kind)
    diagnosis = scvae.tl.diagnose(adata, model)
    assert diagnosis.verdict == "healthy"
    use = diagnosis.measured.groups
    total = len(use.n_cells)
    row = f"{total - use.empty} of {total} in use, perplexity {use.perplexity:.1f}; they tell {use.information:.2f}"
    assert row in repr(diagnosis)
    assert use.told_apart > 3  # of four types
    adata.write_h5ad(tmp_path / "cells.h5ad")
    stored = ad.read_h5ad(tmp_path / "cells.h5ad").uns["scvae"]["diagnosis"]
    parts = stored["mutual_information"] + stored["marginal_kl"]
    assert stored["rate"] == pytest.approx(parts, abs=1e-6)
    stored = stored["groups"]
    assert stored["kind"] == {"codes": "code", "categories": "category"}[kind]
    np.testing.assert_array_equal(stored["n_cells"], use.n_cells)
    axes = scvae.pl.diagnose(adata, show=False)
    assert axes[1].patches[2].get_height() == pytest.approx(parts, abs=1e-6)  # the rate is the sum of its parts
    told = f"they tell {use.information:.2f} of at most"
    assert any(told in text.get_text() for text in axes[0].figure.figure.findobj(Text))


def test_gaps_of_codes_are_those_of_all_codes_decoded():
    adata, model = fitted("codes")
    cells, n = read_cells(adata, model, None), 30
    batch, prior = cells.batch(np.arange(n)), model.network.prior
    with torch.no_grad():
        joint = []
        for log_weight, code in zip(prior.log_weight, prior.codes, strict=True):
            law = model.network.likelihood.distribution(model.network.features(code.repeat(n, 1), batch), batch)
            joint.append((log_weight + law.log_prob(torch.from_numpy(adata.X[:n].toarray())).sum(1)).numpy())
    joint = np.array(joint)
    own = joint[adata.obs["scvae_code"].astype(int).to_numpy()[:n], np.arange(n)]
    measured = gaps(model, cells.taken(np.arange(n)), seed=0)
    assert measured.amortization.value == pytest.approx(float((joint.max(0) - own).mean()), abs=1e-3)
    assert measured.variational.value == pytest.approx(float((special.logsumexp(joint, 0) - own).mean()), abs=1e-3)
    assert measured.optimized_kl == pytest.approx(float(-prior.log_weight[joint.argmax(0)].mean()), rel=1e-5)


def test_what_codes_tell_is_the_entropy_of_their_use():
    book = Codebook(4, 2)
    book.codes.copy_(torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]]))
    book.share.copy_(torch.tensor([0.4, 0.3, 0.2, 0.1]))
    code = np.repeat([0, 1, 2], [50, 30, 20])
    rng = np.random.default_rng(0)
    seen, told = of_codes(book, book.codes.numpy()[code] + rng.uniform(-1, 1, (100, 2)))
    share = np.array([0.4, 0.3, 0.2, 0.1]) + 0.01 / 4
    share /= share.sum()
    np.testing.assert_array_equal(seen, book.codes[code])
    assert told.mutual_information == pytest.approx(stats.entropy([50, 30, 20]))
    assert told.marginal_kl == pytest.approx(stats.entropy([0.5, 0.3, 0.2, 0.0], share))
    assert told.kl == pytest.approx(-np.log(share[code]).mean())
    np.testing.assert_allclose(told.per_dimension.sum(), told.mutual_information, rtol=1e-6)


def test_what_categories_tell_is_the_entropy_that_they_lose():
    adata, model = fitted("categories")
    use = group_use(model, posterior_moments(model, read_cells(adata, model, None)))
    probability = adata.obsm["X_scvae_categories"].astype(float)
    total = stats.entropy(probability.mean(0))
    assert use.information == pytest.approx(total - stats.entropy(probability, axis=1).mean(), abs=1e-5)
    assert use.perplexity == pytest.approx(np.exp(total), rel=1e-5)
    np.testing.assert_array_equal(use.n_cells, np.bincount(probability.argmax(1), minlength=4))


def test_the_rate_of_categories_is_that_of_training():
    adata, model = fitted("categories")
    measured = scvae.tl.diagnose(adata, model).measured
    batch = read_cells(adata, model, None).batch(np.arange(adata.n_obs))
    with torch.no_grad():
        q = model.network.encode(batch)
        expected = model.network.prior.kl(q, q.mean).sum(1).mean()
    assert measured.usage.kl.sum() == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.slow
def test_beta_of_categories_is_tuned_by_a_sweep():
    adata, _ = fitted("categories")
    found = scvae.tune_beta(adata, network=NETWORKS["categories"], method="sweep", betas=[0.3, 5], **OPTIONS)
    assert found.table["rate"][0] > 2 * found.table["rate"][1]
    model = found.models[1]
    kept = model.history.set_index("epoch").loc[model.outcome.best_epoch]
    assert found.table["rate"][1] == pytest.approx(kept["validation_kl"], rel=1e-3)
    assert found.table["elbo"][1] == pytest.approx(kept["validation_elbo"], abs=2)
    assert adata.obs["scvae_category"].notna().all()


def one_far_from_the_others(prior):
    prior.centre[1:] += 100.0


def on_each_other(prior):
    prior.centre.zero_()
    prior.log_variance.zero_()


@pytest.mark.parametrize(
    ("change", "cause"),
    [(one_far_from_the_others, "nearly all cells are in one category"), (on_each_other, "lie on each other")],
)
def test_categories_that_tell_nothing_are_named_with_their_cause(change, cause):
    diagnosis = found("categories", change)
    assert "categories collapsed" in diagnosis.verdict
    assert cause in repr(diagnosis).replace("\n    ", " ")


@pytest.mark.parametrize(("n_far", "severity"), [(2, "remark"), (6, "disease")])
def test_codes_without_cells_are_counted(n_far, severity):
    def change(prior):
        prior.codes[prior.share.argsort()[:n_far]] += 100.0

    findings = {finding.name: finding for finding in found("codes", change).findings}
    assert findings["empty codes"].severity == severity
    assert f"{n_far} of 8 codes" in findings["empty codes"].sentence


def test_codes_that_are_all_alike_are_a_total_collapse():
    diagnosis = found("codes", lambda prior: prior.codes.copy_(prior.codes[:1].expand(8, -1)))
    assert diagnosis.verdict.startswith("total collapse")
    assert "free_bits" not in repr(diagnosis)
    assert "warmup" not in repr(diagnosis)  # they have no effect on codes
