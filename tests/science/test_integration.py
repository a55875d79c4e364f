"""Batches and covariates: the embedding mixes what only they set apart, and nothing else."""

import anndata as ad
import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import cross_val_predict, cross_val_score
from sklearn.neighbors import NearestNeighbors

import scvae

K = 15


def neighbours_of(embedding):
    found = NearestNeighbors(n_neighbors=K + 1).fit(embedding).kneighbors(embedding, return_distance=False)
    return found[:, 1:]


@pytest.fixture(scope="module")
def unbalanced():
    """Two batches far apart; the first type is in one of them only, the second nearly so."""
    adata = scvae.datasets.simulate(
        n_cells=1500, n_genes=200, n_batches=2, batch_effect=0.7, mean_library=1500, type_share=0.9, truth=False, rng=3
    )
    types, batches = adata.obs["cell_type"].cat.codes.to_numpy(), adata.obs["batch"].cat.codes.to_numpy()
    rare = (types == 1) & (batches == 1)
    dropped = (types == 0) & (batches == 1) | rare & (np.cumsum(rare) > 10)
    return adata[~dropped].copy()


@pytest.fixture(scope="module")
def integrated(unbalanced):
    model = scvae.fit(unbalanced, batch_key="batch", rng=0, verbose=False)
    assert model.schema.batch.key == "batch"
    return unbalanced.obsm["X_scvae"].copy()


@pytest.mark.slow
def test_a_type_that_one_batch_lacks_is_not_merged_with_another(unbalanced, integrated):
    types = unbalanced.obs["cell_type"].cat.codes.to_numpy()
    same = (types[neighbours_of(integrated)] == types[:, None]).mean(1)
    assert same[types == 0].mean() > 0.97
    assert same.mean() > 0.95


def test_few_cells_of_a_type_find_those_of_the_other_batch(unbalanced, integrated):
    types, batches = (unbalanced.obs[key].cat.codes.to_numpy() for key in ("cell_type", "batch"))
    few = (types == 1) & (batches == 1)
    assert few.sum() == 10
    around = neighbours_of(integrated)[few]
    # 10 of about 160 cells of the type are of this batch
    assert (batches[around] == 0).mean() > 0.7


def test_shared_types_mix_as_they_do_not_without_the_batch(unbalanced, integrated):
    types, batches = (unbalanced.obs[key].cat.codes.to_numpy() for key in ("cell_type", "batch"))
    shared = types > 1
    other = (batches[neighbours_of(integrated)] != batches[:, None]).mean(1)
    assert 0.4 < other[shared].mean() < 0.6  # half of these cells are of the other batch
    without = ad.AnnData(unbalanced.X, obs=unbalanced.obs, var=unbalanced.var)
    scvae.fit(without, rng=0, verbose=False)
    apart = (batches[neighbours_of(without.obsm["X_scvae"])] != batches[:, None]).mean(1)
    assert apart[shared].mean() < 0.1


@pytest.mark.slow
def test_several_categories_and_numbers_at_once_leave_the_embedding():
    adata = scvae.datasets.simulate(n_cells=900, n_genes=150, n_batches=2, mean_library=1500, type_share=0.9, rng=3)
    rng = np.random.default_rng(0)
    lane, age = rng.integers(0, 3, 900), rng.normal(50, 10, 900)
    effect = rng.normal(0, 0.6, (3, 150))[lane] + np.outer((age - 50) / 10, rng.normal(0, 0.4, 150))
    proportions = adata.layers["rho"] * np.exp(effect)
    mean = adata.obs["library"].to_numpy()[:, None] * proportions / proportions.sum(1, keepdims=True)
    adata.X = sparse.csr_matrix(rng.poisson(rng.gamma(3.0, mean / 3.0)).astype(np.float32))
    adata.obs["lane"], adata.obs["age"] = [f"lane{i}" for i in lane], age

    def told(z):
        """How well lane and age can be read off the embedding: accuracy, and share of the variance."""
        guess = cross_val_predict(LinearRegression(), z, age, cv=5)
        lanes = cross_val_score(LogisticRegression(max_iter=2000), z, lane, cv=5).mean()
        return lanes, 1 - np.var(age - guess) / np.var(age)

    training = scvae.TrainingConfig(epochs=60)
    scvae.fit(adata, batch_key="batch", training=training, rng=0, verbose=False)
    lanes, ages = told(adata.obsm["X_scvae"])
    assert lanes > 0.7
    assert ages > 0.4
    scvae.fit(adata, batch_key="batch", covariate_keys=["lane", "age"], training=training, rng=0, verbose=False)
    lanes, ages = told(adata.obsm["X_scvae"])
    assert lanes < 0.45
    assert ages < 0.1
    types = adata.obs["cell_type"].to_numpy()
    same = types[neighbours_of(adata.obsm["X_scvae"])] == types[:, None]
    assert same.mean() > 0.9


def test_the_encoder_forgets_the_batch_where_it_learns_to_place_one_cell_alike_under_any(unbalanced):
    types, batches = (unbalanced.obs[key].cat.codes.to_numpy() for key in ("cell_type", "batch"))
    told = []
    for consistency in (0.0, 1.0):
        training = scvae.TrainingConfig(epochs=15, consistency=consistency)  # too few for the ELBO alone
        scvae.fit(unbalanced, batch_key="batch", training=training, rng=0, verbose=False)
        z = unbalanced.obsm["X_scvae"]
        of_types = [
            cross_val_score(
                LogisticRegression(), z[types == t], batches[types == t], scoring="balanced_accuracy"
            ).mean()
            for t in np.unique(types[types > 1])
        ]
        told.append(np.mean(of_types))
    assert told[1] < told[0] - 0.05
