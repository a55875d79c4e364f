"""Decoders that read the data beside z, and z in every layer: against the formulas, and which step trains them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import gammaln

import scvae
from scvae import NetworkConfig, TrainingConfig
from scvae.inference.cells import read_cells
from scvae.training.fused_step import can_be_fused

N_LATENT = 3


def cells(**options):
    return scvae.datasets.simulate(**{"n_cells": 60, "n_genes": 30, "n_batches": 2, "truth": False, "rng": 0} | options)


def fit(adata, network, **options):
    training = TrainingConfig(epochs=2, batch_size=32, consistency=0.0)
    defaults = {"n_latent": N_LATENT, "rng": 0, "verbose": False, "training": training, "batch_key": "batch"}
    return scvae.fit(adata, network=network, **defaults | options)


def relu(x):
    return np.maximum(x, 0.0)


def features(model, adata, z, log_counts):
    """What the head receives, with numpy, for networks without normalisation."""
    weight = {name: tensor.double().numpy() for name, tensor in model.network.decoder.state_dict().items()}
    conditions = np.eye(2)[adata.obs["batch"].cat.codes]
    config, h = model.network_config, z
    for layer in range(config.decoder_layers):
        rows = np.hstack([h, conditions])
        h = relu(rows @ weight[f"hidden.{layer}.weight"] + weight[f"hidden.{layer}.bias"])
        h = np.hstack([z, h]) if config.z_to == "every" else h
    if config.skip != "none":
        units = relu(log_counts @ weight["skip.genes.weight"] + weight["skip.genes.bias"])
        if config.skip == "gated":
            units = units * (z @ weight["skip.scale.weight"]) + z @ weight["skip.shift.weight"]
        h = np.hstack([h, units])
    return np.hstack([h, model.network.decoder.condition_scale * conditions])


@pytest.mark.parametrize("z_to", ["first", "every"])
@pytest.mark.parametrize("skip", ["none", "plain", "gated"])
def test_the_likelihood_is_that_of_the_formula(skip, z_to):
    adata = cells()
    network = NetworkConfig(width=8, norm="none", decoder_layers=2, skip=skip, z_to=z_to)
    model = fit(adata, network, likelihood="poisson")
    head, batch = model.network.likelihood, read_cells(adata, model, None).batch(np.arange(60))
    draws = np.random.default_rng(0).standard_normal((2, 60, N_LATENT))
    z = torch.from_numpy(draws).float().flatten(0, 1)
    with torch.no_grad():
        found = model.network.log_likelihood(z, batch, torch.zeros(120)).per_row.numpy()
        x = head.encoder_input(batch)[0].to_dense().double().numpy()
    counts, library = adata.X.toarray().astype(float), adata.X.sum(1).A1[:, None].astype(float)
    output = {name: tensor.double().numpy() for name, tensor in head.output.state_dict().items()}
    for i, of_draw in enumerate(draws):
        logit = features(model, adata, of_draw, x) @ output["weight"].T + output["bias"]
        proportion = np.exp(logit) / np.exp(logit).sum(1, keepdims=True)
        mean = library * proportion
        expected = (counts * np.log(mean) - mean - gammaln(counts + 1)).sum(1)
        np.testing.assert_allclose(found[60 * i : 60 * (i + 1)], expected, rtol=1e-4)


def test_dimensions_leave_every_layer():
    adata = cells()
    network = fit(adata, NetworkConfig(width=8, decoder_layers=2, z_to="every")).network
    batch = read_cells(adata, fit(adata, None), None).batch(np.arange(60))
    z, constant = torch.randn(60, N_LATENT, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, 0.7, 0.0])
    z[:, 1] = 0.7
    with torch.no_grad():
        before = network.log_likelihood(z, batch, torch.zeros(60)).per_row
        network.drop_dimensions(torch.tensor([False, True, False]), constant)
        after = network.log_likelihood(z[:, [0, 2]], batch, torch.zeros(60)).per_row
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-3)


def test_an_unused_dimension_is_pruned_of_a_model_with_z_in_every_layer():
    adata = cells()
    model = fit(adata, NetworkConfig(width=8, z_to="every"))
    kl = (1.0, 0.0, 1.0)
    model = replace(model, outcome=replace(model.outcome, kl_per_dimension=kl))
    assert scvae.tl.prune(adata, model, epochs=1, verbose=False).n_latent == 2


@pytest.mark.parametrize("settings", [{"skip": "plain"}, {"skip": "gated"}, {"z_to": "every"}])
def test_the_compiled_step_leaves_such_networks_alone(settings):
    training = TrainingConfig(consistency=0.0)
    plain = fit(cells(), NetworkConfig(width=8)).network
    if not can_be_fused(plain, training):
        pytest.skip("there is no compiled step here")
    assert not can_be_fused(fit(cells(), NetworkConfig(width=8, **settings)).network, training)


def test_gated_units_are_nothing_at_the_mean_of_the_prior():
    """So what the skip says of a cell goes through z, and none of it where z is the prior's mean for all cells."""
    adata = cells()
    model = fit(adata, NetworkConfig(width=8, skip="gated"))
    batch = read_cells(adata, model, None).batch(np.arange(60))
    with torch.no_grad():
        found = model.network.features(torch.zeros(60, N_LATENT), batch)
        mute = replace(batch, x=batch.x.with_values(torch.zeros_like(batch.x.values)))
        torch.testing.assert_close(found, model.network.features(torch.zeros(60, N_LATENT), mute))
        other = torch.ones(60, N_LATENT)
        assert not torch.allclose(model.network.features(other, batch), model.network.features(other, mute))


@pytest.mark.parametrize("settings", [{"skip": "gated"}, {"z_to": "every", "decoder_layers": 2}])
def test_such_models_are_saved_resumed_and_trained_further(settings, tmp_path):
    adata, config = cells(), NetworkConfig(width=8, **settings)
    model = fit(adata, config)
    again = scvae.load(model.save(tmp_path / "model.safetensors"))
    other = cells()
    scvae.tl.embed(other, again)
    assert other.obsm["X_scvae"].tobytes() == adata.obsm["X_scvae"].tobytes()
    further = scvae.fit(other, init=again, rng=0, verbose=False)
    assert further.network_config == config
    scvae.tl.log_likelihood(other, further, n_samples=3, refine=2)


@pytest.mark.parametrize("settings", [{"free_bits": 0.5}, {"capacity": 3.0}, {"inference": "per_cell"}])
def test_a_skip_goes_with_other_objectives_and_without_an_encoder(settings):
    training = TrainingConfig(epochs=2, batch_size=32, consistency=0.0, **settings)
    model = fit(cells(), NetworkConfig(width=8, skip="gated"), training=training)
    assert np.isfinite(model.outcome.held_out_elbo)


def test_every_layer_reads_z_at_each_beta_of_a_range():
    adata = cells()
    model = fit(adata, NetworkConfig(width=8, decoder_layers=2, z_to="every"), beta=(0.1, 10.0))
    low, high = (scvae.tl.log_likelihood(adata, model, beta=beta, n_samples=3) for beta in (0.1, 10.0))
    assert np.isfinite(low).all()
    assert not np.allclose(low, high)


CALLS = {
    "generate": lambda adata, model: scvae.tl.generate(model, n=5),
    "sample": lambda adata, model: scvae.tl.sample(adata, model),
    "denoise": lambda adata, model: scvae.tl.denoise(adata, model),
    "rank_genes": lambda adata, model: scvae.tl.rank_genes(adata, model, groupby="cell_type"),
    "latent_genes": lambda adata, model: scvae.tl.latent_genes(adata, model),
    "map_query": lambda adata, model: scvae.tl.map_query(adata, model, new_batches=True),
    "prune": lambda adata, model: scvae.tl.prune(adata, model),
}


@pytest.fixture(scope="module")
def skipping():
    adata = cells()
    return adata, fit(adata, NetworkConfig(width=8, skip="plain"))


@pytest.mark.parametrize("name", CALLS)
def test_what_decodes_z_alone_refuses_a_skip_by_name(name, skipping, digest):
    adata, model = skipping
    before = digest(adata)
    with pytest.raises(ValueError, match=rf"scvae\.tl\.{name} needs a decoder of z alone.*skip='plain'"):
        CALLS[name](adata, model)
    assert digest(adata) == before


def test_missing_genes_are_not_filled_in_past_the_latent(skipping):
    adata, model = skipping
    with pytest.warns(UserWarning, match="28 of the 30"), pytest.raises(ValueError, match=r"lacks 2 modelled genes"):
        scvae.tl.embed(adata[:, 2:].copy(), model)


def test_the_coordinates_are_those_of_the_network(skipping):
    assert skipping[1].metric_name == "latent"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"training": TrainingConfig()}, r"skip='gated' does not work with the consistency term"),
        ({"beta": (0.1, 10.0)}, r"skip='gated' does not work with a range of β"),
        ({"n_latent": "auto"}, r"skip='gated' does not work with n_latent='auto'"),
    ],
)
def test_what_a_skip_cannot_work_with_is_refused_by_name(options, message, digest):
    adata = cells()
    before = digest(adata)
    with pytest.raises(ValueError, match=message):
        fit(adata, NetworkConfig(skip="gated"), **options)
    assert digest(adata) == before
    # with the model in init, too
    if "training" in options:
        model = fit(adata, NetworkConfig(width=8, skip="gated"))
        with pytest.raises(ValueError, match=message):
            scvae.fit(adata, init=model, **options, verbose=False)


@pytest.mark.parametrize("settings", [{"skip": "plain"}, {"z_to": "every"}])
def test_a_linear_decoder_takes_neither(settings):
    with pytest.raises(ValueError, match=r"skip and z_to must be left at 'none' and 'first' with decoder='linear'"):
        NetworkConfig(decoder="linear", **settings)
