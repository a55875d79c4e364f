"""Structure scores put planted groups above noise, and are exact where the answer is known."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from scvae.diagnostics.neighbours import nearest
from scvae.diagnostics.structure import (
    RESOLUTIONS,
    graph_agreement,
    label_agreement,
    leiden_stability,
    structure,
    trustworthiness,
)

N = 240


def planted(apart, *, n_groups=4, n_latent=5, seed=0):
    """Embedding of groups that lie `apart` standard deviations from each other, and their numbers."""
    rng = np.random.default_rng(seed)
    labels = np.arange(N) % n_groups
    centres = apart * np.linalg.qr(rng.normal(size=(n_latent, n_latent)))[0][:n_groups]
    return (centres[labels] + rng.normal(size=(N, n_latent))).astype(np.float32), labels


def scores(z, variance=0.01, reference=None, seed=0):
    references = [(z if reference is None else reference, np.arange(N))]
    return structure(z, np.full_like(z, variance), references, seed=seed)


def test_planted_groups_score_above_weak_groups_above_noise():
    strong, weak, noise = (scores(planted(apart)[0]) for apart in (12.0, 3.0, 0.0))
    assert strong.leiden_stability > weak.leiden_stability > noise.leiden_stability
    assert strong.modularity > weak.modularity > noise.modularity
    assert strong.n_clusters >= 4


def test_a_single_cluster_is_no_stable_structure():
    z, _ = planted(12.0)
    wide = nearest(z, 30)
    whole, halves = np.zeros(N, dtype=int), planted(12.0)[1]
    assert leiden_stability(wide, [whole] * len(RESOLUTIONS), seed=0) == 0
    assert leiden_stability(wide, [halves] * len(RESOLUTIONS), seed=0) > 0.5


def test_graph_agreement_is_one_without_noise_and_chance_with_nothing_else():
    z, _ = planted(3.0)
    assert graph_agreement(z, np.zeros_like(z), seed=0) == 1
    chance = graph_agreement(np.zeros_like(z), np.ones_like(z), seed=0)
    assert chance == pytest.approx(15 / (N - 1), abs=0.01)
    agreement = [graph_agreement(z, np.full_like(z, variance), seed=0) for variance in (0.01, 0.1, 1.0)]
    assert sorted(agreement, reverse=True) == agreement
    assert agreement[-1] > chance


def test_trustworthiness_is_that_of_the_definition():
    rng = np.random.default_rng(2)
    reference, z = rng.normal(size=(60, 4)), rng.normal(size=(60, 2))
    k, n = 15, 60
    rank = cdist(reference, reference).argsort(1).argsort(1)  # 0 for the cell itself
    distance = cdist(z, z)
    np.fill_diagonal(distance, np.inf)
    neighbours = distance.argsort(1)[:, :k]
    excess = np.maximum(np.take_along_axis(rank, neighbours, axis=1) - k, 0).sum()
    expected = 1 - 2 / (n * k * (2 * n - 3 * k - 1)) * excess
    assert trustworthiness(reference, z) == pytest.approx(expected, abs=1e-12)
    assert trustworthiness(reference, reference) == 1


def test_few_cells_are_scored_and_too_few_give_nan():
    z = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    few = structure(z, np.full_like(z, 0.1), [(z, np.arange(8))], seed=0)
    assert few.trustworthiness == 1
    assert np.isfinite(dataclasses.astuple(few)).all()
    assert np.isnan(trustworthiness(z[:2], z[:2]))


def test_the_same_seed_gives_the_same_scores():
    z, _ = planted(3.0)
    assert scores(z, seed=5) == scores(z, seed=5)
    assert scores(z, seed=5) != scores(z, seed=6)


def test_the_order_of_the_cells_makes_no_difference_where_the_groups_are_plain():
    z, labels = planted(15.0)
    order = np.random.default_rng(1).permutation(N)
    before, after = label_agreement(z, labels, seed=0), label_agreement(z[order], labels[order], seed=0)
    assert dataclasses.astuple(before) == pytest.approx(dataclasses.astuple(after))
    assert before.ari == pytest.approx(1)
    assert trustworthiness(z[:, :2][order], z[order]) == pytest.approx(trustworthiness(z[:, :2], z))
    assert scores(z).modularity == pytest.approx(scores(z[order]).modularity, abs=0.02)
    assert scores(z).leiden_stability == pytest.approx(scores(z[order]).leiden_stability, abs=0.1)


def test_scale_and_rotation_of_the_embedding_make_no_difference():
    z, labels = planted(3.0)
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(5, 5)))[0]
    moved = (7.0 * z.astype(np.float64) @ turn).astype(np.float32)
    assert dataclasses.astuple(label_agreement(moved, labels, seed=0)) == pytest.approx(
        dataclasses.astuple(label_agreement(z, labels, seed=0)), abs=1e-5
    )
    assert scores(moved).modularity == pytest.approx(scores(z).modularity, abs=1e-5)


def test_labels_that_fit_score_above_labels_that_do_not():
    z, labels = planted(8.0)
    fitting = label_agreement(z, labels, seed=0)
    shuffled = label_agreement(z, np.random.default_rng(0).permutation(labels), seed=0)
    assert min(fitting.nmi, fitting.ari) > 0.95
    assert max(shuffled.nmi, shuffled.ari) < 0.1
    assert fitting.silhouette > 0.5
    assert shuffled.silhouette < 0.05


def test_cells_without_a_label_take_no_part():
    z, labels = planted(8.0)
    some = np.where(np.arange(N) % 3 == 0, -1, labels)
    assert label_agreement(z, some, seed=0).ari == pytest.approx(1)
    assert np.isnan(label_agreement(z, np.full(N, -1), seed=0).ari)


def test_global_random_state_is_left_alone():
    z, labels = planted(3.0)
    before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    scores(z)
    label_agreement(z, labels, seed=0)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_before)
