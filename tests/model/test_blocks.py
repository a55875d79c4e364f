"""The pieces of the networks, and the conditions."""

import numpy as np
import pytest
import torch

from scvae.config import NetworkConfig
from scvae.data.batches import Batch
from scvae.data.schema import Categorical, Schema
from scvae.kernels.block import Dense
from scvae.model.blocks import BatchNorm, Dropout, Linear, add_product, make_norm
from scvae.model.conditions import Conditions
from scvae.model.decoder import Decoder
from scvae.model.encoder import LOG_VARIANCE_RANGE, Encoder
from scvae.model.vae import make_model
from tests.kernels.problems import csr, tensor


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_product_is_the_same_for_sparse_and_dense_rows():
    dense = np.random.default_rng(0).poisson(0.5, (9, 31)).astype(np.float32)
    dense[4] = 0
    layer = Linear(31, 6, generator=generator())
    with torch.no_grad():
        layer.bias.copy_(torch.arange(6.0))
    expected = dense @ layer.weight.detach().double().numpy() + np.arange(6)
    np.testing.assert_allclose(add_product(layer.bias, csr(dense), layer.weight).detach(), expected, atol=1e-5)
    np.testing.assert_allclose(layer(tensor(dense)).detach(), expected, atol=1e-5)
    twice = add_product(layer(tensor(dense)), Dense(tensor(dense)), layer.weight).detach()
    np.testing.assert_allclose(twice, 2 * expected - np.arange(6), atol=1e-5)


def test_weights_come_from_the_given_generator_only():
    state = torch.get_rng_state()
    first, again, other = (Linear(5, 4, generator=generator(seed)).weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_keeps_the_mean_and_draws_from_its_generator_only():
    n, rate = 400, 0.3
    state = torch.get_rng_state()
    rows = torch.ones(n, n)
    dropped = Dropout(rate)(rows, generator())
    assert torch.equal(dropped, Dropout(rate)(rows, generator()))
    assert torch.equal(torch.get_rng_state(), state)
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / (1 - rate)])
    standard_error = np.sqrt(rate / (1 - rate)) / n
    assert abs(float(dropped.mean()) - 1) < 4 * standard_error


def test_dropout_changes_nothing_outside_training_or_at_rate_zero():
    rows = torch.randn(3, 4, generator=generator())
    assert torch.equal(Dropout(0.5)(rows, None), rows)
    assert torch.equal(Dropout(0.0)(rows, generator()), rows)


def test_batch_norm_standardises_a_batch_and_remembers_it():
    rows = 3 + 2 * torch.randn(50, 4, generator=generator())
    norm = BatchNorm(4, momentum=0.1, eps=1e-3)
    found = norm(rows).detach()
    expected = (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-3).sqrt()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(norm.running_mean, 0.1 * rows.mean(0))
    torch.testing.assert_close(norm.running_variance, 0.9 + 0.1 * rows.var(0))


def test_batch_norm_of_a_batch_of_one_uses_its_memory_and_leaves_it():
    norm = BatchNorm(3, eps=1e-3)
    norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    norm.running_variance.fill_(4.0)
    found = norm(torch.tensor([[3.0, 2.0, -1.0]])).detach()
    np.testing.assert_allclose(found[0], np.array([2.0, 0.0, -4.0]) / np.sqrt(4.001), rtol=1e-6)
    assert norm.running_mean.tolist() == [1.0, 2.0, 3.0]


def test_norms_are_found_by_name():
    rows = 5 + torch.randn(20, 6, generator=generator())
    assert isinstance(make_norm("batch", 6), BatchNorm)
    assert float(make_norm("layer", 6)(rows).detach().mean(1).abs().max()) < 1e-5
    assert torch.equal(make_norm("none", 6)(rows), rows)


def test_conditions_are_one_hot_columns_then_numeric_ones():
    codes = torch.tensor([[0, 1], [2, 0], [1, 1]])
    numeric = torch.tensor([[0.5], [-1.0], [2.0]])
    batch = Batch(Dense(torch.zeros(3, 1)), torch.ones(3), codes, numeric, has_batch=True)
    conditions = Conditions((3, 2), 1)
    expected = [[1, 0, 0, 0, 1, 0.5], [0, 0, 1, 1, 0, -1.0], [0, 1, 0, 0, 1, 2.0]]
    assert conditions(batch).tolist() == expected
    assert conditions.n_columns == 6


def test_without_conditions_there_are_no_columns():
    batch = Batch(Dense(torch.zeros(3, 1)), torch.ones(3), torch.zeros(3, 0, dtype=torch.int64), torch.zeros(3, 0))
    assert Conditions((), 0)(batch).shape == (3, 0)


def encoder(n_covariates=1, **changes):
    settings = {"width": 8, "n_layers": 2, "dropout": 0.2, "input_dropout": 0.1, "norm": "layer"} | changes
    return Encoder(12, 3, n_covariates=n_covariates, generator=generator(), **settings)


def test_encoder_gives_the_same_for_sparse_and_dense_rows_outside_training():
    dense = np.random.default_rng(0).poisson(0.5, (7, 12)).astype(np.float32)
    covariates = torch.randn(7, 1, generator=generator())
    sparse_posterior = encoder()(csr(dense), covariates, None)
    dense_posterior = encoder()(Dense(tensor(dense)), covariates, None)
    torch.testing.assert_close(sparse_posterior.mean, dense_posterior.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sparse_posterior.log_variance, dense_posterior.log_variance, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sparse", [True, False])
def test_encoder_drops_units_by_the_generator_of_the_step(sparse):
    dense = np.random.default_rng(0).poisson(2.0, (7, 12)).astype(np.float32)
    x = csr(dense) if sparse else Dense(tensor(dense))
    network, covariates = encoder(), torch.zeros(7, 1)
    first, again, other = (network(x, covariates, generator(seed)).mean for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_log_variance_is_bounded_for_any_input():
    posterior = encoder(norm="none")(Dense(torch.full((2, 12), 1e6)), torch.zeros(2, 1), None)
    low, high = LOG_VARIANCE_RANGE
    assert bool(((posterior.log_variance >= low) & (posterior.log_variance <= high)).all())
    assert {low, high} & set(posterior.log_variance.flatten().tolist())


@pytest.mark.parametrize("asked", [False, True])
def test_the_encoder_sees_conditions_only_where_that_is_asked_for(asked):
    schema = Schema(tuple("abcd"), "counts", None, Categorical("batch", ("one", "two")), (), (), None)
    network = NetworkConfig(width=8, encode_conditions=asked)
    model = make_model(schema, "nb", 2, network, seed=0)
    counts = csr(np.arange(12, dtype=np.float32).reshape(3, 4))
    numeric = torch.zeros(3, 0)
    one, two = (
        model.encode(Batch(counts, torch.ones(3), torch.full((3, 1), code), numeric, has_batch=True)) for code in (0, 1)
    )
    assert torch.equal(one.mean, two.mean) is not asked
    assert torch.equal(one.log_variance, two.log_variance) is not asked


def test_decoder_lets_conditions_join_every_layer_and_the_features():
    decoder = Decoder(3, width=8, n_layers=2, n_conditions=2, norm="layer", generator=generator())
    z = torch.randn(5, 3, generator=generator())
    conditions = torch.tensor([[1.0, 0.0]]).repeat(5, 1)
    features = decoder(z, conditions)
    assert features.shape == (5, decoder.n_features)
    assert torch.equal(features[:, -2:], 10.0 * conditions)
    assert [layer.weight.shape[0] for layer in decoder.hidden] == [3 + 2, 8 + 2]
    assert not torch.equal(decoder(z, conditions.flip(1))[:, :-2], features[:, :-2])
