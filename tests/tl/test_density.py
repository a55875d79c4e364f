"""The density of the cells of a fit: in the model, in its file, and in what the tools make of it."""

import dataclasses
import functools

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import integrate, sparse, stats

import scvae
from scvae import NetworkConfig, TrainingConfig
from scvae.inference.cells import read_cells
from scvae.inference.posterior import posterior_moments
from tests.diagnostics.models import NOISE, linear_normal

SHORT = {"n_latent": 4, "rng": 0, "verbose": False}


@functools.cache
def fitted():
    """Four types, well apart, in two batches."""
    adata = scvae.datasets.simulate(
        n_cells=600, n_genes=100, n_types=4, n_batches=2, type_share=0.97, signal=1.0, inverse_dispersion=10.0,
        mean_library=3000.0, truth=False, rng=0,
    )  # fmt: skip
    model = scvae.fit(adata, batch_key="batch", network=NetworkConfig(width=32), **SHORT)
    return adata, model


def test_cells_in_clusters_are_likelier_under_the_density_than_under_the_prior():
    adata, model = fitted()
    new = adata[::3].copy()
    plain, dense = (scvae.tl.log_likelihood(new, model, kind=kind, n_samples=50) for kind in ("iw", "density"))
    assert model.density.n_components > 1
    assert dense.mean() > plain.mean() + 0.3
    assert dense.name == "log_likelihood_density"


def test_the_bound_under_the_density_is_log_p_of_x_by_integration():
    """A linear normal model with one latent dimension; cells at ±2, where N(0, 1) has few."""
    loadings = np.array([[1.5], [0.5], [-0.8]], np.float32)
    model, _, _ = linear_normal(loadings, n_cells=20)
    rng = np.random.default_rng(0)
    z = rng.choice([-2.0, 2.0], (500, 1)) + 0.2 * rng.standard_normal((500, 1))
    cells = ad.AnnData((z @ loadings.T + NOISE * rng.standard_normal((500, 3))).astype(np.float32))
    model = scvae.tl.fit_density(cells, model)
    assert model.density.n_components == 2
    latent = model.density.latent
    grid = np.linspace(-6, 6, 4001)
    log_prior = latent.log_prob(torch.from_numpy(grid[:, None]).float()).numpy().astype(float)
    some = cells[:20].copy()
    square = ((some.X[:, None] - grid[:, None] * loadings[:, 0]) / NOISE) ** 2
    log_joint = log_prior - 0.5 * square.sum(-1) - 3 * np.log(NOISE * np.sqrt(2 * np.pi))
    expected = np.log(integrate.simpson(np.exp(log_joint), x=grid, axis=1))
    found = scvae.tl.log_likelihood(some, model, kind="density", n_samples=3000)
    np.testing.assert_allclose(found, expected, atol=0.05)
    assert found.mean() > scvae.tl.log_likelihood(some, model, n_samples=3000).mean() + 0.5


def test_new_cells_go_with_their_library_sizes_as_the_cells_of_the_fit_do():
    """Two types, one with four times the counts: each new cell has the depth of its type."""
    halves = [
        scvae.datasets.simulate(n_cells=300, n_genes=40, mean_library=m, library_sd=0.2, truth=False, rng=s)
        for m, s in ((80.0, 1), (320.0, 2))
    ]
    halves[1] = halves[1][:, ::-1].copy()  # the same totals by gene in another order: another type
    counts = sparse.vstack([half.X for half in halves]).tocsr()
    adata = ad.AnnData(counts, obs={"kind": np.repeat(["shallow", "deep"], 300)})
    adata.obs_names_make_unique()
    model = scvae.fit(adata, network=NetworkConfig(width=32), **SHORT)
    drawn = scvae.tl.generate(model, n=600)
    assert drawn.uns["scvae"]["drawn"]["source"] == "density of the fit"
    assert drawn.uns["scvae"]["drawn"]["components"] == model.density.n_components
    profiles = [np.ravel(half.X.sum(0)) / half.X.sum() for half in halves]
    score = drawn.X.toarray() @ np.log((profiles[1] + 1e-4) / (profiles[0] + 1e-4))
    library = np.ravel(drawn.X.sum(1))
    assert np.median(library[score > 0]) / np.median(library[score < 0]) == pytest.approx(4.0, rel=0.25)
    for is_deep, half in zip((score < 0, score > 0), halves, strict=True):
        assert stats.ks_2samp(library[is_deep], np.ravel(half.X.sum(1))).statistic < 0.2


def test_a_batch_has_its_own_shares_of_the_types():
    adata, _ = fitted()
    types = adata.obs["cell_type"].astype(str)
    lopsided = adata[~((types == "type_1") & (adata.obs["batch"] == adata.obs["batch"].cat.categories[0]))].copy()
    model = scvae.fit(lopsided, batch_key="batch", network=NetworkConfig(width=32), **SHORT)
    names = lopsided.obs["batch"].cat.categories
    labelled = lopsided.obsm["X_scvae"], lopsided.obs["cell_type"].astype(str).to_numpy()
    for name in names:
        drawn = scvae.tl.generate(model, n=500, batch=name)
        distance = ((drawn.obsm["X_scvae"][:, None] - labelled[0]) ** 2).sum(-1)
        nearest = labelled[1][distance.argmin(1)]
        real = (lopsided.obs["cell_type"][lopsided.obs["batch"] == name] == "type_1").mean()
        assert (nearest == "type_1").mean() == pytest.approx(real, abs=0.08)


def test_a_file_keeps_the_density_to_the_bit(tmp_path):
    _, model = fitted()
    again = scvae.load(model.save(tmp_path / "model.safetensors"))
    for name, tensor in model.density.tensors().items():
        assert torch.equal(again.density.tensors()[name], tensor)
    assert (again.density.beta, again.density.n_latent) == (1.0, 4)
    first, second = (scvae.tl.generate(m, n=20).X.toarray() for m in (model, again))
    np.testing.assert_array_equal(first, second)


def test_odd_and_rare_cells_lie_where_few_do():
    adata, model = fitted()
    cells = adata.copy()
    rng = np.random.default_rng(0)
    shuffled = cells[:20].copy()
    shuffled.X = sparse.csr_matrix(rng.permuted(shuffled.X.toarray(), axis=1))
    both = ad.concat([cells, shuffled], index_unique="-")
    scvae.tl.density(both, model)
    density = both.obs["scvae_density"].to_numpy()
    assert (density[600:, None] > density[:600]).mean() < 0.25
    mean, _ = posterior_moments(model, read_cells(both, model, None))
    np.testing.assert_allclose(density, model.density.latent.log_prob(torch.from_numpy(mean)), rtol=1e-5)


def test_a_model_without_a_density_says_how_to_add_one(tmp_path):
    adata, model = fitted()
    earlier = dataclasses.replace(model, density=None)
    earlier = scvae.load(earlier.save(tmp_path / "model.safetensors"))
    for refused in (
        lambda: scvae.tl.log_likelihood(adata, earlier, kind="density"),
        lambda: scvae.tl.density(adata.copy(), earlier),
    ):
        with pytest.raises(ValueError, match=r"has no density of its cells.*scvae.tl.fit_density\(adata, model\)"):
            refused()
    assert scvae.tl.generate(earlier, n=5).uns["scvae"]["drawn"]["source"] == "prior"
    added = scvae.tl.fit_density(adata, earlier)
    assert earlier.density is None
    bound, of_fit = (scvae.tl.log_likelihood(adata, m, kind="density", n_samples=20).mean() for m in (added, model))
    assert bound == pytest.approx(of_fit, abs=0.3)


def test_the_density_of_a_range_of_beta_is_that_at_one_beta():
    adata = fitted()[0][:200].copy()
    training = TrainingConfig(epochs=5)
    model = scvae.fit(adata, beta=(0.5, 4.0), network=NetworkConfig(width=8), training=training, **SHORT)
    assert model.density.beta == 1.0
    assert np.isfinite(scvae.tl.log_likelihood(adata, model, kind="density", n_samples=3)).all()
    message = r"beta is 2, .* that at β = 1; .*fit_density\(adata, model, beta=2\)"
    for refused in (
        lambda m: scvae.tl.log_likelihood(adata, m, kind="density", beta=2.0),
        lambda m: scvae.tl.generate(m, n=5, beta=2.0),
        lambda m: scvae.tl.density(adata.copy(), m, beta=2.0),
    ):
        with pytest.raises(ValueError, match=message):
            refused(model)
        refused(scvae.tl.fit_density(adata, model, beta=2.0))


def test_a_mapped_batch_is_drawn_with_its_own_shares():
    adata, _ = fitted()
    first, second = adata.obs["batch"].cat.categories
    reference = adata[adata.obs["batch"] == first].copy()
    query = adata[(adata.obs["batch"] == second) & (adata.obs["cell_type"] == "type_1")].copy()
    model = scvae.fit(reference, batch_key="batch", network=NetworkConfig(width=32), metric="latent", **SHORT)
    mapped = scvae.tl.map_query(query, model, verbose=False)
    assert torch.equal(mapped.density.mixture.centre, model.density.mixture.centre)
    shares = []
    for batch in (first, second):
        drawn = scvae.tl.generate(mapped, n=300, batch=batch)
        distance = ((drawn.obsm["X_scvae"][:, None] - reference.obsm["X_scvae"]) ** 2).sum(-1)
        nearest = reference.obs["cell_type"].to_numpy()[distance.argmin(1)]
        shares.append((nearest == "type_1").mean())
    assert shares[0] < 0.4  # one of four types
    assert shares[1] > 0.6
    assert np.isfinite(scvae.tl.log_likelihood(query, mapped, kind="density", n_samples=3)).all()


def test_diagnose_shows_that_the_density_is_nearer_to_the_cells_than_the_prior():
    adata, model = fitted()
    report = scvae.tl.diagnose(adata.copy(), model, n_cells=300)
    told = report.measured.information
    assert told.density_kl + 0.3 < told.marginal_kl
    assert f"{told.density_kl:.2f}" in repr(report)
    without = scvae.tl.diagnose(adata.copy(), dataclasses.replace(model, density=None), n_cells=300)
    assert "no density at this β" in repr(without)


def test_the_density_leaves_adata_alone_but_for_its_slot(digest):
    adata, model = fitted()
    cells = adata.copy()
    before = digest(cells)
    scvae.tl.fit_density(cells, model)
    assert digest(cells) == before
    scvae.tl.density(cells, model)
    after = digest(cells)
    assert {key for key in after if after[key] != before.get(key)} == {"obs"}
