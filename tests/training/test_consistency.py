"""The price of telling one cell apart under two conditions: its value, what learns from it, and which cells pay it."""

import dataclasses

import numpy as np
import pytest
import torch

import scvae
from scvae import NetworkConfig, TrainingConfig
from scvae.data.intake import read_query
from scvae.inference.posterior import batches_of
from scvae.kernels.block import Dense
from scvae.kernels.shared_batch import Shared
from scvae.training.consistency import ONE_PAIR_IN, inconsistency, pairs

CPU = torch.device("cpu")
LIKELIHOODS = {
    "nb": {},
    "zinb": {},
    "poisson": {"network": NetworkConfig(width=16, encode_conditions=True)},
    "bernoulli": {},
    "gaussian": {"network": NetworkConfig(width=16, norm="none", dropout=0.5)},
}


def problem(likelihood="nb", n_cells=20, **options):
    """A hardly trained model of two batches and a covariate, some of its cells, and a draw of z of each."""
    adata = scvae.datasets.simulate(
        n_cells=60, n_genes=30, n_batches=2, batch_effect=1.0, likelihood=likelihood, truth=False, rng=0
    )
    adata.obs["age"] = np.random.default_rng(0).uniform(20.0, 60.0, 60)
    model = scvae.fit(
        adata,
        likelihood=likelihood,
        batch_key="batch",
        covariate_keys=["age"],
        n_latent=3,
        rng=0,
        verbose=False,
        **{"network": NetworkConfig(width=16), "training": TrainingConfig(epochs=30)} | options,
    )
    _, batch = next(batches_of(model, read_query(adata[:n_cells].copy(), model.schema), n_cells))
    batch = dataclasses.replace(batch, codes=torch.arange(n_cells)[:, None] % 2)  # the two of a pair differ
    z = torch.randn(n_cells, 3, generator=torch.Generator().manual_seed(0))
    return model.network.train(), batch, z


def seen_by_the_encoder(network, z, batch):
    """What the encoder would see of the cells if each value were as expected, from the distribution's own moments."""
    head = network.likelihood
    table = head.distribution(network.features(z, batch), batch)
    if head.kind == "real":
        return (table.mean - head.centre) / head.spread, torch.zeros(len(batch), 0)
    centre = head.mean_log_depth if head.kind == "binary" else getattr(head, "base", head).mean_log_library
    log_depth = (batch.library.log() - centre)[:, None]
    if head.kind == "binary":
        return table.mean, log_depth
    above_zero = 1 - table.zero_probability
    return above_zero * torch.log1p(table.mean / above_zero / log_depth.exp()), log_depth


@pytest.mark.parametrize(("likelihood", "options"), LIKELIHOODS.items(), ids=LIKELIHOODS)
def test_it_is_half_the_squared_way_between_the_places_of_the_exchanged_in_posterior_standard_deviations(
    likelihood, options
):
    network, batch, z = problem(likelihood, **options)
    weight = torch.linspace(0.1, 1.0, 20)
    said = inconsistency(network, z, batch, weight)
    network.eval()
    exchanged = torch.arange(20) ^ 1
    places = []
    with torch.no_grad():
        for codes, numeric in ((batch.codes, batch.numeric), (batch.codes[exchanged], batch.numeric[exchanged])):
            cells = dataclasses.replace(batch, codes=codes, numeric=numeric)
            x, covariates = seen_by_the_encoder(network, z, cells)
            if network.encode_conditions:
                covariates = torch.cat([covariates, network.conditions(cells)], dim=1)
            places.append(network.encoder(Dense(x), covariates, None))
    own, other = places
    log_variance = (own.log_variance + other.log_variance) / 2
    nats = ((own.mean - other.mean) ** 2 / log_variance.exp() / 2).sum(1)
    looked_at = torch.tensor([0, 1, 8, 9, 16, 17])
    expected = ONE_PAIR_IN * (weight * nats)[looked_at].sum()
    assert nats[looked_at].min() > 1e-6
    torch.testing.assert_close(said, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("likelihood", ["nb", "gaussian"])
def test_only_what_gives_the_encoders_means_learns_from_it(likelihood):
    network, batch, z = problem(likelihood)
    network.zero_grad()
    inconsistency(network, z, batch, torch.ones(20)).backward()
    moved = {name for name, p in network.named_parameters() if p.grad is not None and bool((p.grad != 0).any())}
    assert {"encoder.genes.weight", "encoder.mean.weight"} <= moved
    assert all(name.startswith("encoder.") and "log_variance" not in name for name in moved)


def test_statistics_of_batch_normalisation_are_those_of_real_cells():
    network, batch, z = problem(network=NetworkConfig(width=16, norm="batch"))
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    assert inconsistency(network, z, batch, torch.ones(20)).item() > 0
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())
    network.encode(batch)  # of real cells they are taken up again
    assert not torch.equal(network.encoder.norms[0].running_mean, before["encoder.norms.0.running_mean"])


@pytest.mark.parametrize("n_cells", [1, 2, 20])
def test_cells_under_the_same_conditions_cost_nothing(n_cells):
    network, batch, z = problem(n_cells=n_cells)
    alike = dataclasses.replace(batch, codes=torch.zeros_like(batch.codes), numeric=torch.zeros_like(batch.numeric))
    assert inconsistency(network, z, alike, torch.ones(n_cells)).item() == 0.0


def test_the_cells_of_a_model_of_many_betas_keep_their_own():
    network, batch, z = problem(beta=(0.1, 10.0))
    log_beta = torch.linspace(-2.0, 2.0, 20)
    together = inconsistency(network, z, batch.at(network.betas, log_beta), torch.ones(20))
    changed = inconsistency(network, z, batch.at(network.betas, log_beta.flip(0)), torch.ones(20))
    assert together.item() > 0
    assert together.item() != pytest.approx(changed.item(), rel=1e-3)


@pytest.mark.parametrize("n_cells", [1, 2, 9, 50])
@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_several_processes_look_at_the_pairs_of_one(n_cells, world):
    alone = torch.stack(pairs(n_cells, None, CPU), dim=1).tolist()
    parts = np.array_split(np.arange(n_cells), world)
    together = []
    for part in parts:
        start = int(part[0]) if len(part) else n_cells
        cells, partners = pairs(len(part), Shared(world, n_cells, slice(start, start + len(part))), CPU)
        together += torch.stack([cells + start, partners], dim=1).tolist()
    assert sorted(together) == sorted(alone)
    assert all([b, a] in alone for a, b in alone)  # both of a pair
    assert len(alone) == sum(i // 2 % ONE_PAIR_IN == 0 and (i ^ 1) < n_cells for i in range(n_cells))


def test_a_fit_without_conditions_is_the_same_with_and_without_it():
    adata = scvae.datasets.simulate(n_cells=60, n_genes=30, truth=False, rng=0)
    places = []
    for consistency in (0.0, 5.0):
        training = TrainingConfig(epochs=3, consistency=consistency)
        scvae.fit(adata, n_latent=3, training=training, rng=0, verbose=False)
        places.append(adata.obsm["X_scvae"].copy())
    np.testing.assert_array_equal(*places)


@pytest.mark.parametrize("value", [-1.0, float("nan"), "much", None])
def test_its_weight_must_be_a_number_of_at_least_zero(value):
    with pytest.raises((TypeError, ValueError), match=r"TrainingConfig\.consistency is .*; pass a"):
        TrainingConfig(consistency=value)
