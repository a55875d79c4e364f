"""The bundled counts are what their README says, and simulated cells follow the law they are drawn from."""

from __future__ import annotations

import hashlib
import tracemalloc
from pathlib import Path

import anndata
import numpy as np
import pytest
from scipy import sparse, stats

from scvae import datasets
from scvae.datasets import _blood, _laws

DATA = Path(__file__).parents[2] / "data"
HEADS = ["nb", "zinb", "poisson", "bernoulli", "gaussian"]
LIMIT = 4.5  # standard errors; a right sampler passes one such test in all but 7 of a million seeds


@pytest.fixture(scope="module")
def simulated():
    """One set of cells per head, drawn in many blocks, with few counts so that zeros matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_laws, "BLOCK", 7_001)
        return {
            head: datasets.simulate(
                likelihood=head, n_cells=400, n_genes=150, n_batches=2, mean_library=200, zero_probability=0.3, rng=5
            )
            for head in HEADS
        }


def dense(adata):
    """X as a float64 array."""
    return np.asarray(adata.X.todense() if sparse.issparse(adata.X) else adata.X, dtype=np.float64)


def theory(adata):
    """Mean and variance of every entry by the textbook formulas, from the recorded truth."""
    head = adata.uns["simulation"]["likelihood"]
    if head == "gaussian":
        return adata.layers["mean"].astype(np.float64), np.tile(adata.var["scale"].to_numpy(np.float64) ** 2, (400, 1))
    mean = adata.obs["library"].to_numpy(np.float64)[:, None] * adata.layers["rho"]
    if head == "poisson":
        return mean, mean
    if head == "bernoulli":
        return mean / (1 + mean), mean / (1 + mean) ** 2
    variance = mean + mean**2 / adata.var["inverse_dispersion"].to_numpy(np.float64)
    if head == "nb":
        return mean, variance
    kept = 1 - adata.uns["simulation"]["zero_probability"]
    return kept * mean, kept * (variance + mean**2) - (kept * mean) ** 2


def standard_errors(values):
    """Mean of independent values that should average 0, in standard errors."""
    return values.mean() / (values.std() / np.sqrt(values.size))


def test_pbmc3k_is_raw_counts_with_labels():
    adata = datasets.pbmc3k()
    assert adata.shape == (2700, 32738)
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == np.float32
    assert adata.X.nnz == 2_286_884
    assert (adata.X.data.min(), adata.X.data.max()) == (1, 419)
    np.testing.assert_array_equal(adata.X.data, np.round(adata.X.data))
    labels = adata.obs["cell_type"].value_counts()
    assert labels.dtype == np.int64
    assert (len(labels), labels["CD4 T cells"], labels["unlabelled"]) == (9, 1144, 62)
    assert adata.var_names.is_unique
    assert adata.var["gene_ids"].str.startswith("ENSG").all()
    assert not adata.uns


def test_pbmc_citeseq_is_raw_counts_of_genes_and_proteins():
    adata = datasets.pbmc_citeseq()
    proteins = adata.obsm["protein"]
    assert (adata.shape, proteins.shape) == ((800, 500), (800, 224))
    assert proteins.index.equals(adata.obs_names)
    assert adata.var_names.is_unique
    assert proteins.columns.is_unique
    for counts in (adata.X.data, proteins.to_numpy()):
        assert counts.dtype == np.float32
        np.testing.assert_array_equal(counts, np.round(counts))
    assert adata.obs["donor"].value_counts().to_dict() == {"donor 3": 400, "donor 4": 400}
    assert not adata.uns
    medians = proteins.groupby(adata.obs["cell_type"].to_numpy()).median()  # proteins that name the types
    assert medians["cd14"].idxmax() == "Mono"
    assert medians["cd19"].idxmax() == "B"


@pytest.mark.parametrize(("name", "most"), [("pbmc3k.h5ad", 7_000_000), ("pbmc_citeseq.h5ad", 400_000)])
def test_data_readme_has_the_checksum_and_size_of_each_file(name, most):
    content = (DATA / name).read_bytes()
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(content).hexdigest() in readme
    assert f"{len(content):,} bytes" in readme
    assert len(content) < most


def test_missing_data_is_told_with_both_places():
    with pytest.raises(FileNotFoundError, match=r"_bundled.*data.*reinstall scvae-torch"):
        _blood.bundled("pbmc4k.h5ad")


@pytest.mark.parametrize("head", HEADS)
def test_values_have_the_mean_and_variance_of_their_law(simulated, head):
    adata = simulated[head]
    mean, variance = theory(adata)
    residual = (dense(adata) - mean) / np.sqrt(variance)
    assert abs(standard_errors(residual)) < LIMIT
    assert abs(standard_errors(residual**2 - 1)) < LIMIT


@pytest.mark.parametrize("head", HEADS)
def test_every_gene_and_cell_has_its_own_mean(simulated, head):
    adata = simulated[head]
    mean, variance = theory(adata)
    for axis in (0, 1):
        enough = (mean**2 / variance).sum(axis) > 20  # below, the sum is too skewed for a normal limit
        error = (dense(adata) - mean).sum(axis) / np.sqrt(variance.sum(axis))
        assert enough.sum() > 50
        assert np.abs(error[enough]).max() < 5


@pytest.mark.parametrize("count", [0, 1, 2, 5])
@pytest.mark.parametrize("head", ["nb", "zinb", "poisson"])
def test_small_counts_are_as_frequent_as_scipy_says(simulated, head, count):
    adata = simulated[head]
    mean = adata.obs["library"].to_numpy(np.float64)[:, None] * adata.layers["rho"]
    if head == "poisson":
        probability = stats.poisson.pmf(count, mean)
    else:
        theta = adata.var["inverse_dispersion"].to_numpy(np.float64)
        probability = stats.nbinom.pmf(count, theta, theta / (theta + mean))
    if head == "zinb":
        probability = 0.7 * probability + 0.3 * (count == 0)
    excess = ((dense(adata) == count) - probability).sum()
    assert abs(excess) < LIMIT * np.sqrt((probability * (1 - probability)).sum())


@pytest.mark.parametrize("head", HEADS)
def test_blocks_of_cells_are_drawn_independently(simulated, head):
    adata = simulated[head]
    mean, variance = theory(adata)
    residual = (dense(adata) - mean) / np.sqrt(variance)
    rows = 7_001 // 150
    first, second = residual[:rows].ravel(), residual[rows : 2 * rows].ravel()
    assert abs(np.corrcoef(first, second)[0, 1]) < LIMIT / np.sqrt(first.size)


@pytest.mark.parametrize("head", HEADS)
def test_recorded_weights_give_the_recorded_truth(simulated, head):
    adata = simulated[head]
    weights = {name: value.astype(np.float64) for name, value in adata.uns["simulation"]["decoder"].items()}
    hidden = np.maximum(adata.obsm["z"] @ weights["hidden_weight"] + weights["hidden_bias"], 0)
    f = hidden @ weights["output_weight"] + weights["output_bias"]
    f += weights["batch_offset"][adata.obs["batch"].cat.codes]
    if head == "gaussian":
        np.testing.assert_allclose(adata.layers["mean"], f, rtol=1e-4, atol=1e-4)
    else:
        rho = np.exp(f) / np.exp(f).sum(1, keepdims=True)
        np.testing.assert_allclose(adata.layers["rho"], rho, rtol=1e-4)


def test_library_has_the_mean_and_spread_asked_for():
    library = datasets.simulate(n_cells=20_000, n_genes=2, mean_library=300, library_sd=0.5, truth=False).obs["library"]
    assert abs(standard_errors(library.to_numpy(np.float64) - 300)) < LIMIT
    # the standard error of a standard deviation is sd / sqrt(2 n)
    assert np.log(library.to_numpy(np.float64)).std() == pytest.approx(0.5, abs=LIMIT * 0.5 / np.sqrt(40_000))


def test_one_type_has_the_standard_normal_prior():
    z = datasets.simulate(n_cells=5_000, n_genes=2, n_types=1, truth=False).obsm["z"].astype(np.float64)
    assert abs(standard_errors(z)) < LIMIT
    assert abs(standard_errors(z**2 - 1)) < LIMIT
    assert np.abs(np.corrcoef(z.T) - np.eye(5)).max() < LIMIT / np.sqrt(5_000)


def test_types_spread_around_their_centres():
    adata = datasets.simulate(n_cells=3_000, n_genes=2, type_share=0.64, truth=False)
    centres = adata.uns["simulation"]["type_centres"][adata.obs["cell_type"].cat.codes]
    spread = (adata.obsm["z"] - centres).astype(np.float64) / 0.6
    assert abs(standard_errors(spread)) < LIMIT
    assert abs(standard_errors(spread**2 - 1)) < LIMIT


def test_types_of_the_default_overlap_a_little():
    adata = datasets.simulate()
    centres = adata.uns["simulation"]["type_centres"]
    distance = np.linalg.norm(adata.obsm["z"][:, None] - centres, axis=2)
    right = (distance.argmin(1) == adata.obs["cell_type"].cat.codes).mean()
    assert 0.8 < right < 0.99


def test_groups_are_of_equal_size():
    adata = datasets.simulate(n_cells=100, n_genes=5, n_types=3, n_batches=4)
    assert sorted(adata.obs["cell_type"].value_counts()) == [33, 33, 34]
    assert sorted(adata.obs["batch"].value_counts()) == [25, 25, 25, 25]


def test_signal_and_expression_have_the_spread_asked_for():
    adata = datasets.simulate(
        n_cells=4_000, n_genes=400, n_types=1, likelihood="gaussian", signal=0.5, expression_sd=2.0, rng=3
    )
    f = adata.layers["mean"].astype(np.float64)
    # over random weights both vary from gene to gene: by about 1 / sqrt(400 genes) of themselves or less
    assert np.sqrt(f.var(0).mean()) == pytest.approx(0.5, rel=0.15)
    assert f.mean(0).std() == pytest.approx(2.0, rel=0.15)
    assert abs(f.mean(0).mean()) < LIMIT * 2.0 / np.sqrt(400)


def test_a_single_batch_has_no_effect_and_several_have():
    one, two = (datasets.simulate(n_cells=20, n_genes=300, n_batches=n, batch_effect=0.4) for n in (1, 2))
    assert not one.uns["simulation"]["decoder"]["batch_offset"].any()
    offset = two.uns["simulation"]["decoder"]["batch_offset"].astype(np.float64)
    assert offset.std() == pytest.approx(0.4, abs=LIMIT * 0.4 / np.sqrt(2 * offset.size))


def branching(**arguments):
    """Cells of a trunk and three branches, almost on the path itself unless told otherwise."""
    return datasets.simulate(
        **({"n_genes": 2, "n_branches": 3, "type_share": 0.9, "truth": False, "rng": 2} | arguments)
    )


def test_ends_of_trunk_and_branches_are_equally_far_from_each_other():
    tips = branching(n_cells=10).uns["simulation"]["branch_tips"].astype(np.float64)
    assert tips.shape == (4, 5)
    np.testing.assert_allclose(tips.sum(0), 0, atol=1e-5)
    np.testing.assert_allclose(stats.describe(np.linalg.norm(tips, axis=1)).variance, 0, atol=1e-9)
    apart = np.linalg.norm(tips[:, None] - tips, axis=2)[np.triu_indices(4, 1)]
    np.testing.assert_allclose(apart, apart[0], rtol=1e-5)


def test_cells_spread_around_their_place_on_the_path():
    adata = branching(n_cells=4_000, type_share=0.64)
    time, branch = adata.obs["pseudotime"].to_numpy(), adata.obs["branch"].cat.codes.to_numpy()
    tips = adata.uns["simulation"]["branch_tips"].astype(np.float64)
    np.testing.assert_array_equal(branch == 0, time < 0.5)
    spread = (adata.obsm["z"] - np.abs(2 * time - 1)[:, None] * tips[branch]) / 0.6
    assert abs(standard_errors(spread)) < LIMIT
    assert abs(standard_errors(spread**2 - 1)) < LIMIT


def test_time_is_uniform_and_branches_are_taken_equally_often():
    adata = branching(n_cells=3_000)
    assert stats.kstest(adata.obs["pseudotime"], "uniform").pvalue > 1e-5
    assert adata.obs["branch"].cat.categories.tolist() == ["trunk", "branch_0", "branch_1", "branch_2"]
    late = adata.obs["branch"].value_counts(normalize=True)
    # those past the fork are drawn from equal groups: a binomial share of 1/6 each
    assert (late.drop("trunk") - 1 / 6).abs().max() < LIMIT * np.sqrt(5 / 36 / 3_000)


def test_latent_variance_along_branches_is_that_of_the_prior_on_average():
    z = branching(n_cells=20_000, type_share=0.7).obsm["z"].astype(np.float64)
    assert (z**2).mean() == pytest.approx(1, abs=0.03)


def test_diffusion_pseudotime_on_the_true_latent_space_finds_time_and_branches():
    import scanpy as sc

    adata = branching(n_cells=400)
    assert adata.uns["iroot"] == adata.obs["pseudotime"].argmin()
    sc.pp.neighbors(adata, use_rep="z", method="gauss", transformer="sklearn")  # nothing to compile
    sc.tl.diffmap(adata, random_state=0)
    sc.tl.dpt(adata)
    assert stats.spearmanr(adata.obs["dpt_pseudotime"], adata.obs["pseudotime"])[0] > 0.95
    graph = adata.obsp["connectivities"].tocoo()
    late = (adata.obs["pseudotime"] > 0.65).to_numpy()
    code = adata.obs["branch"].cat.codes.to_numpy()
    edges = late[graph.row] & late[graph.col]
    assert (code[graph.row] == code[graph.col])[edges].mean() > 0.98


def test_one_branch_is_a_straight_line():
    adata = branching(n_cells=300, n_branches=1, type_share=1.0)
    singular = np.linalg.svd(adata.obsm["z"].astype(np.float64), compute_uv=False)
    assert singular[1] < 1e-5 * singular[0]
    along = adata.obsm["z"] @ (adata.uns["simulation"]["branch_tips"][1] - adata.uns["simulation"]["branch_tips"][0])
    assert stats.spearmanr(along, adata.obs["pseudotime"])[0] == pytest.approx(1)


def test_counts_along_branches_follow_the_recorded_proportions():
    adata = datasets.simulate(n_cells=500, n_genes=80, n_branches=2, rng=4)
    mean = adata.obs["library"].to_numpy(np.float64)[:, None] * adata.layers["rho"]
    variance = mean + mean**2 / adata.var["inverse_dispersion"].to_numpy(np.float64)
    assert abs(standard_errors((dense(adata) - mean) / np.sqrt(variance))) < LIMIT


@pytest.fixture(scope="module")
def stained():
    return datasets.simulate(n_cells=3_000, n_genes=20, n_proteins=25, n_batches=2, rng=3)


def test_protein_counts_have_the_mean_and_variance_of_their_law(stained):
    counts, mean = (stained.obsm[name].to_numpy(np.float64) for name in ("protein", "protein_mean"))
    assert counts.shape == (3_000, 25)
    np.testing.assert_array_equal(counts, np.round(counts))
    residual = (counts - mean) / np.sqrt(mean + mean**2 / 10)
    assert abs(standard_errors(residual)) < LIMIT
    assert abs(standard_errors(residual**2 - 1)) < LIMIT


def test_proteins_are_carried_by_the_share_of_cells_described_and_stand_out_from_the_background(stained):
    foreground = stained.obsm["protein_foreground"].to_numpy(np.float64)
    mean = stained.obsm["protein_mean"].to_numpy(np.float64)
    carried = foreground > 0.5  # already at a small part of full staining: foreground is many times the background
    assert (carried.mean(0) > 0.1).all()
    assert (carried.mean(0) < 0.85).all()
    inside = np.array([np.median(mean[c, p]) for p, c in enumerate(carried.T)])
    outside = np.array([np.median(mean[~c, p]) for p, c in enumerate(carried.T)])
    assert np.median(inside / outside) > 8


def test_proteins_tell_types_apart(stained):
    logs = np.log1p(stained.obsm["protein"].to_numpy(np.float64))
    types = stained.obs["cell_type"].cat.codes.to_numpy()
    tests = [stats.f_oneway(*(column[types == k] for k in range(5))) for column in logs.T]
    between = np.array([np.var([column[types == k].mean() for k in range(5)]) / column.var() for column in logs.T])
    assert np.median([test.pvalue for test in tests]) < 1e-50
    assert np.median(between) > 0.2


def test_batches_shift_proteins_by_a_factor_each(stained):
    mean = stained.obsm["protein_mean"].to_numpy(np.float64)
    background = mean * (1 - stained.obsm["protein_foreground"].to_numpy(np.float64))
    size_free = np.log(background) - np.log(background).mean(1, keepdims=True)
    first = (stained.obs["batch"] == "batch_0").to_numpy()
    assert size_free[first].std(0).max() < 1e-4  # within a batch a protein's background follows the size of the cell
    assert size_free[~first].std(0).max() < 1e-4
    assert np.abs(size_free[first].mean(0) - size_free[~first].mean(0)).max() > 0.2


def test_proteins_leave_the_genes_as_they_are():
    without, stained = (datasets.simulate(n_cells=60, n_genes=40, n_proteins=n) for n in (None, 7))
    np.testing.assert_array_equal(dense(without), dense(stained))
    assert not [name for name in without.obsm if name.startswith("protein")]


@pytest.mark.parametrize("arguments", [{"n_types": 3}, {"n_branches": 2}], ids=str)
def test_one_seed_gives_the_same_cells_to_a_second_kind_of_measurement(arguments):
    shared = {"n_cells": 80, "n_batches": 2, "rng": 6} | arguments
    genes = datasets.simulate(n_genes=30, n_proteins=4, **shared)
    peaks = datasets.simulate(n_genes=90, likelihood="bernoulli", mean_library=40, **shared)
    assert genes.obsm["z"].tobytes() == peaks.obsm["z"].tobytes()
    kept = [name for name in genes.obs if name != "library"]
    assert genes.obs[kept].equals(peaks.obs[kept])
    assert set(np.unique(dense(peaks))) == {0, 1}


def test_h5ad_keeps_branches_and_proteins(tmp_path):
    adata = datasets.simulate(n_cells=50, n_genes=20, n_branches=2, n_proteins=3)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    back = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert back.obs.equals(adata.obs)
    assert back.obsm["protein"].equals(adata.obsm["protein"])
    assert back.uns["iroot"] == adata.uns["iroot"]
    assert "n_types" not in back.uns["simulation"]


@pytest.mark.parametrize("head", HEADS)
def test_same_seed_gives_the_same_bytes(head):
    first, again, other = (datasets.simulate(n_cells=60, n_genes=40, likelihood=head, rng=s) for s in (1, 1, 2))
    assert dense(first).tobytes() == dense(again).tobytes()
    assert first.obsm["z"].tobytes() == again.obsm["z"].tobytes()
    assert dense(first).tobytes() != dense(other).tobytes()


def test_truth_does_not_change_the_cells():
    without, with_truth = (datasets.simulate(n_cells=60, n_genes=40, truth=truth) for truth in (False, True))
    assert not without.layers
    np.testing.assert_array_equal(dense(without), dense(with_truth))


def test_a_generator_gives_other_cells_each_time():
    rng = np.random.default_rng(0)
    first, second = (datasets.simulate(n_cells=60, n_genes=40, rng=rng) for _ in range(2))
    assert (dense(first) != dense(second)).any()


def test_global_random_state_is_left_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002  the legacy state is what must not move
    datasets.simulate(n_cells=20, n_genes=10)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("head", HEADS)
def test_h5ad_keeps_everything(simulated, head, tmp_path):
    adata = simulated[head]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    back = anndata.read_h5ad(tmp_path / "cells.h5ad")
    np.testing.assert_array_equal(dense(back), dense(adata))
    np.testing.assert_array_equal(back.obsm["z"], adata.obsm["z"])
    (layer,) = adata.layers
    np.testing.assert_array_equal(back.layers[layer], adata.layers[layer])
    assert list(back.obs["batch"].cat.categories) == ["batch_0", "batch_1"]
    kept, written = back.uns["simulation"], adata.uns["simulation"]
    assert kept.keys() == written.keys()
    for name in written["decoder"]:
        np.testing.assert_array_equal(kept["decoder"][name], written["decoder"][name])
    assert (kept["likelihood"], kept["mean_library"], kept["seed"]) == (head, 200, 5)


def test_without_truth_no_cells_by_genes_array_is_made(monkeypatch):
    monkeypatch.setattr(_laws, "BLOCK", 100_000)
    tracemalloc.start()
    try:
        adata = datasets.simulate(n_cells=2_000, n_genes=4_000, mean_library=100, truth=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert adata.X.nnz < 250_000
    assert peak < 2_000 * 4_000 * 4 / 2


def test_each_gene_follows_its_own_program_alone_and_programs_are_independent():
    adata = datasets.simulate(
        n_cells=4000, n_genes=48, n_latent=3, n_types=1, programs=True, likelihood="gaussian", signal=0.7, rng=0
    )
    assert np.bincount(adata.var["program"]).tolist() == [24, 16, 8]
    z, mean = adata.obsm["z"], adata.layers["mean"]
    np.testing.assert_allclose(np.cov(z, rowvar=False), np.eye(3), atol=0.08)
    decoder = adata.uns["simulation"]["decoder"]
    for k in range(3):
        moved = z.copy()
        moved[:, k] += 1.0
        f = np.maximum(moved @ decoder["hidden_weight"], 0) @ decoder["output_weight"] + decoder["output_bias"]
        changed = np.abs(f - mean).max(0) > 1e-3
        np.testing.assert_array_equal(changed, adata.var["program"] == k)
    assert mean.std(0).mean() == pytest.approx(0.7, rel=0.2)


def test_extremes_are_drawn_without_a_warning():
    tiny = datasets.simulate(n_cells=30, n_genes=20, mean_library=1e-6)
    assert tiny.X.nnz == 0
    clumped = datasets.simulate(n_cells=30, n_genes=20, inverse_dispersion=1e-4, mean_library=1e5)
    assert np.isfinite(clumped.X.data).all()
    one = datasets.simulate(n_cells=1, n_genes=1, n_latent=1, n_types=1)
    np.testing.assert_array_equal(one.layers["rho"], [[1.0]])


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"n_cells": 0}, ValueError, "n_cells is 0"),
        ({"n_genes": 2.5}, TypeError, r"n_genes is 2\.5"),
        ({"likelihood": "NB"}, ValueError, "likelihood is 'NB'; pass one of 'nb', 'zinb'"),
        ({"mean_library": 0}, ValueError, "mean_library is 0"),
        ({"signal": -1}, ValueError, "signal is -1"),
        ({"programs": 1}, TypeError, "programs is 1; pass True or False"),
        ({"type_share": 1.5}, ValueError, r"type_share is 1\.5"),
        ({"inverse_dispersion": float("nan")}, ValueError, "inverse_dispersion is nan"),
        ({"rng": "seed"}, TypeError, "rng must be"),
        ({"n_branches": 0}, ValueError, "n_branches is 0"),
        ({"n_proteins": 1.5}, TypeError, r"n_proteins is 1\.5"),
        ({"n_branches": 2, "n_types": 3}, ValueError, "n_types is 3 and n_branches is 2.*pass one of the two"),
        ({"n_branches": 4, "n_latent": 3}, ValueError, "n_branches is 4 and n_latent is 3; each branch needs"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, match):
    with pytest.raises(error, match=match):
        datasets.simulate(**arguments)
