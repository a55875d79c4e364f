"""`tl.generate`: new cells like those of the fit, or like given ones."""

import dataclasses
import functools
import json

import anndata as ad
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy import sparse, stats

import scvae
from scvae import NetworkConfig, TrainingConfig
from scvae.data.libraries import LibrarySizes
from tests.diagnostics.models import NOISE, linear_normal

LOADINGS = np.array([[1.5, 0.0], [0.5, 0.0], [0.0, 0.9], [0.0, -0.4]])  # orthogonal: posteriors are diagonal


def fit(adata, **options):
    options = {"training": TrainingConfig(epochs=3, batch_size=32), "network": NetworkConfig(width=8)} | options
    return scvae.fit(adata, **{"n_latent": 2, "rng": 0, "verbose": False} | options)


@functools.cache
def fitted(*, covariates=False):
    """Batch 1 has three times as many cells as batch 0, of three times the library; women are the older ones."""
    adata = scvae.datasets.simulate(n_cells=200, n_genes=15, mean_library=60.0, library_sd=0.3, truth=False, rng=0)
    more = scvae.datasets.simulate(n_cells=200, n_genes=15, mean_library=180.0, library_sd=0.3, truth=False, rng=0)
    adata = ad.concat([adata[:50], more[50:]])
    adata.obs["batch"] = np.repeat(["batch 0", "batch 1"], [50, 150])
    rng = np.random.default_rng(0)
    adata.obs["sex"] = rng.choice(["female", "male"], 200)
    adata.obs["age"] = np.where(adata.obs["sex"] == "female", 70.0, 30.0) + rng.normal(0, 3, 200)
    keys = ["sex", "age"] if covariates else []
    return adata, fit(adata, batch_key="batch", covariate_keys=keys)


def library_of(adata):
    return np.asarray(adata.X.sum(1)).ravel()


# from the model


def test_the_prior_of_a_linear_normal_model_gives_its_marginal_law():
    model, _, _ = linear_normal(LOADINGS, n_cells=20)
    drawn = scvae.tl.generate(dataclasses.replace(model, density=None), n=20_000)
    assert drawn.uns["scvae"]["drawn"]["source"] == "prior"
    covariance = LOADINGS @ LOADINGS.T + NOISE**2 * np.eye(4)
    assert np.abs(drawn.X.mean(0)).max() < 5 * np.sqrt(covariance.max() / 20_000)
    np.testing.assert_allclose(np.cov(drawn.X, rowvar=False), covariance, atol=0.1)
    np.testing.assert_allclose(np.cov(drawn.obsm["X_scvae"], rowvar=False), np.eye(2), atol=0.05)
    noise = drawn.X - drawn.obsm["X_scvae"] @ LOADINGS.T
    np.testing.assert_allclose(noise.std(0), NOISE, rtol=0.03)


@pytest.mark.parametrize("has_density", [True, False])
def test_new_cells_have_the_batches_and_the_library_sizes_of_the_fit(has_density):
    adata, model = fitted()
    model = model if has_density else dataclasses.replace(model, density=None)
    drawn = scvae.tl.generate(model, n=4000)
    share = (drawn.obs["batch"] == "batch 1").mean()
    assert abs(share - 0.75) < 0.03
    for name in ("batch 0", "batch 1"):
        real, new = (library_of(which[(which.obs["batch"] == name).to_numpy()]) for which in (adata, drawn))
        assert np.median(new) == pytest.approx(np.median(real), rel=0.15)


def test_library_sizes_are_drawn_as_they_were_distributed():
    adata, model = fitted()
    codes = np.repeat([0, 1], 3000)
    drawn = model.libraries.at(codes, np.random.default_rng(1).random(6000))
    library = library_of(adata)
    for code, real in enumerate((library[:50], library[50:])):
        assert stats.ks_2samp(drawn[codes == code], real).statistic < 0.06
        assert drawn[codes == code].min() >= real.min() * (1 - 1e-6)
        assert drawn[codes == code].max() <= real.max() * (1 + 1e-6)
    assert model.libraries.n_cells == (50, 150)
    assert LibrarySizes.from_json(json.loads(json.dumps(model.libraries.to_json()))) == model.libraries


def test_a_model_remembers_the_library_sizes_in_its_file_and_one_from_before_says_what_it_lacks(tmp_path):
    adata, model = fitted()
    path = model.save(tmp_path / "model.safetensors")
    assert scvae.load(path).libraries == model.libraries
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    record = json.loads(metadata["record"])
    del record["libraries"]
    save_file(load_file(path), path, metadata | {"record": json.dumps(record)})
    earlier = scvae.load(path)
    with pytest.raises(ValueError, match=r"saved before they were recorded.*pass like="):
        scvae.tl.generate(earlier, n=5)
    assert scvae.tl.generate(earlier, n=5, like=adata).n_obs == 5


def test_a_batch_whose_library_sizes_are_unknown_is_not_made_up():
    _, model = fitted()
    libraries = LibrarySizes((50, 0), (model.libraries.log_quantiles[0], ()))
    model = dataclasses.replace(model, libraries=libraries)
    assert set(scvae.tl.generate(model, n=20).obs["batch"]) == {"batch 0"}
    with pytest.raises(ValueError, match=r"no cells of these batches.*pass like="):
        scvae.tl.generate(model, n=5, batch="batch 1")


def test_of_real_values_no_library_is_kept():
    model, _, _ = linear_normal(LOADINGS, n_cells=20)
    assert model.libraries is None


# like given cells


def test_cells_like_those_of_one_kind_are_of_that_kind():
    """Two kinds at ±3 on the first latent dimension; generated from one, none is like the other."""
    model, _, _ = linear_normal(LOADINGS, n_cells=20)
    rng = np.random.default_rng(0)
    z = rng.standard_normal((600, 2)) * 0.3 + np.array([3.0, 0.0]) * rng.choice([-1, 1], 600)[:, None]
    cells = ad.AnnData((z @ LOADINGS.T + NOISE * rng.standard_normal((600, 4))).astype(np.float32))
    both = scvae.tl.generate(model, n=3000, like=cells)
    posterior = scvae.tl.sample(cells, model, n_samples=5)  # less wide than the cells: the prior draws it in
    np.testing.assert_allclose(np.cov(both.X, rowvar=False), np.cov(posterior.X, rowvar=False), atol=0.7)
    assert (np.abs(both.obsm["X_scvae"][:, 0]) > 1).mean() > 0.97  # the prior has two thirds within 1
    one = scvae.tl.generate(model, n=500, like=cells[z[:, 0] > 0])
    assert (one.obsm["X_scvae"][:, 0] > 1).mean() > 0.97
    assert one.uns["scvae"]["drawn"]["source"] == "given cells"


def test_each_batch_is_drawn_like_its_own_cells():
    adata, model = fitted()
    drawn = scvae.tl.generate(model, n=2000, like=adata)
    assert (drawn.obs["batch"] == "batch 1").mean() == pytest.approx(0.75, abs=0.04)
    for name in ("batch 0", "batch 1"):
        real, new = (library_of(which[(which.obs["batch"] == name).to_numpy()]) for which in (adata, drawn))
        assert np.median(new) == pytest.approx(np.median(real), rel=0.15)
    only = scvae.tl.generate(model, n=200, like=adata, batch="batch 0")
    assert set(only.obs["batch"]) == {"batch 0"}


def test_a_single_cell_is_enough_to_be_like():
    adata, model = fitted()
    drawn = scvae.tl.generate(model, n=300, like=adata[:1])
    assert np.median(library_of(drawn)) == pytest.approx(library_of(adata)[0], rel=0.2)


def test_covariates_are_drawn_together_or_as_given():
    adata, model = fitted(covariates=True)
    drawn = scvae.tl.generate(model, n=400, like=adata)
    women = drawn.obs["sex"] == "female"
    assert 0.2 < women.mean() < 0.8
    assert drawn.obs["age"][women].min() > 50 > drawn.obs["age"][~women].max()
    given = scvae.tl.generate(model, n=3, like=adata, covariates={"sex": ["male", "female", "male"]})
    assert list(given.obs["sex"]) == ["male", "female", "male"]
    alone = scvae.tl.generate(model, n=3, covariates={"sex": "male", "age": 41})
    assert set(alone.obs["sex"]) == {"male"}
    np.testing.assert_allclose(alone.obs["age"], 41.0, rtol=1e-5)


# in common


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "bernoulli", "gaussian"])
@pytest.mark.parametrize("from_cells", [False, True])
def test_the_model_reads_what_it_has_drawn_and_a_file_keeps_it(tmp_path, likelihood, from_cells):
    adata = scvae.datasets.simulate(n_cells=40, n_genes=10, likelihood=likelihood, truth=False, rng=0)
    adata.layers["raw"], adata.X = adata.X, None
    model = fit(adata, likelihood=likelihood, layer="raw")
    drawn = scvae.tl.generate(model, n=50, like=adata if from_cells else None)
    assert drawn.shape == (50, len(model.genes))
    assert sparse.issparse(drawn.X) == (likelihood != "gaussian")
    assert drawn.X.dtype == np.float32
    scvae.tl.embed(drawn, model)
    drawn.write_h5ad(tmp_path / "drawn.h5ad")


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_size_factors_are_drawn_in_place_of_libraries_in_their_own_unit(scale):
    adata = fitted()[0].copy()
    totals = library_of(adata)
    adata.obs["depth"] = scale * totals / totals.mean()
    model = fit(adata, size_factor_key="depth")
    for like in (None, adata):
        drawn = scvae.tl.generate(model, n=2000, like=like)
        low, high = np.quantile(adata.obs["depth"], [0, 1])
        assert drawn.obs["depth"].between(low * (1 - 1e-5), high * (1 + 1e-5)).all()
        assert np.median(drawn.obs["depth"]) == pytest.approx(np.median(adata.obs["depth"]), rel=0.1)
        assert library_of(drawn).mean() == pytest.approx(totals.mean(), rel=0.1)
        scvae.tl.embed(drawn, model)


def test_covariates_follow_the_library_size_that_they_say():
    adata = fitted()[0].copy()
    adata.obs["depth"] = np.log(library_of(adata))
    model = fit(adata, batch_key="batch", covariate_keys="depth")
    drawn = scvae.tl.generate(model, n=1000, like=adata)
    of_batch = [drawn.obs["batch"] == name for name in ("batch 0", "batch 1")]
    for here in of_batch:
        # 15 genes: the counts drawn for one library size have a wide spread, and so correlate less
        assert stats.spearmanr(drawn.obs["depth"][here], library_of(drawn)[here])[0] > 0.2
    medians = [np.exp(drawn.obs["depth"][here]).median() for here in of_batch]
    assert medians[1] / medians[0] == pytest.approx(3.0, rel=0.2)


@pytest.mark.parametrize(
    ("like", "error", "message"),
    [
        (lambda adata: adata[:0].copy(), ValueError, "^like has no cells"),
        (lambda adata: "cells.h5ad", TypeError, "^like is a str"),
        (lambda adata: adata[:, :3].copy(), ValueError, "^like has 3 of the 15 modelled genes"),
    ],
)
def test_what_is_wrong_with_the_given_cells_is_said_of_them(like, error, message):
    adata, model = fitted()
    with pytest.raises(error, match=message):
        scvae.tl.generate(model, n=5, like=like(adata))


def test_the_seed_decides():
    adata, model = fitted()
    for like in (None, adata):
        first, again, other = (scvae.tl.generate(model, n=30, like=like, rng=seed) for seed in (1, 1, 2))
        assert (first.X != again.X).nnz == 0
        assert (first.X != other.X).nnz > 0


def test_the_beta_of_a_path_is_honoured():
    adata = fitted()[0].copy()
    model = fit(adata, beta=(0.1, 10.0))
    drawn = {beta: scvae.tl.generate(model, n=30, like=adata, beta=beta) for beta in (None, 1.0, 0.1)}
    assert np.array_equal(drawn[None].obsm["X_scvae"], drawn[1.0].obsm["X_scvae"])
    assert np.abs(drawn[1.0].obsm["X_scvae"] - drawn[0.1].obsm["X_scvae"]).max() > 1e-6
    assert drawn[0.1].uns["scvae"]["drawn"]["beta"] == 0.1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n": 0}, ValueError, "n is 0"),
        ({"n": 2.0}, TypeError, "n is 2.0"),
        ({"layer": "counts"}, ValueError, "layer has no effect without like"),
        ({"batch": "new"}, ValueError, "batch has 'new', unknown to the model; the batches of 'batch' are 'batch 0'"),
        ({"beta": 3.0}, ValueError, "trained at β = 1 alone"),
        ({"covariates": {}}, ValueError, "but 'sex', 'age' of the new cells is not given"),
        ({"covariates": {"sex": "male"}}, ValueError, "but 'age' of the new cells is not given"),
        ({"covariates": {"sex": "neither", "age": 3}}, ValueError, "has 'neither', unknown to the model; pass one of"),
        ({"covariates": {"sex": "male", "age": "old"}}, ValueError, "is 'old', but the column is numeric"),
        ({"covariates": {"sex": "male", "age": np.nan}}, ValueError, "is not finite"),
        ({"covariates": {"sex": ["male"] * 3, "age": 3}}, ValueError, "has 3 values for 5 cells"),
        ({"covariates": {"size": 3}}, ValueError, "has no 'size'; it has 'sex', 'age'"),
        ({"covariates": {"batch": "batch 0"}}, ValueError, "which is the model's batch column; pass batch= instead"),
        ({"rng": "seed"}, TypeError, "rng must be"),
    ],
)
def test_what_makes_no_sense_is_refused(options, error, message):
    _, model = fitted(covariates=True)
    with pytest.raises(error, match=message):
        scvae.tl.generate(model, **{"n": 5, "covariates": {"sex": "male", "age": 41}} | options)


def test_a_batch_that_the_given_cells_lack_is_refused_and_they_stay_as_they_were(digest):
    adata, model = fitted()
    part = adata[:20].copy()
    before = digest(part)
    with pytest.raises(ValueError, match="like has no cells of the batch 'batch 1'"):
        scvae.tl.generate(model, n=5, like=part, batch="batch 1")
    scvae.tl.generate(model, n=5, like=part)
    assert digest(part) == before
