"""A network given more categories says of the old ones what it said before, to the bit."""

import numpy as np
import pytest
import torch

import scvae
from scvae import NetworkConfig, TrainingConfig
from scvae.data.covariates import widened
from scvae.data.intake import read_query
from scvae.inference.posterior import batches_of
from scvae.training.surgery import grown

BRIEF = TrainingConfig(epochs=2, batch_size=32)
VARIANTS = {
    "plain": {},
    "encoder sees conditions": {"network": NetworkConfig(width=16, encode_conditions=True)},
    "dispersion per batch": {"network": NetworkConfig(width=16, dispersion="gene-batch", norm="batch")},
    "linear": {"network": NetworkConfig(decoder="linear", width=16)},
    "zero-inflated, two layers": {
        "network": NetworkConfig(width=16, encoder_layers=2, decoder_layers=2),
        "likelihood": "zinb",
    },
    "many β": {"beta": (0.5, 5.0)},
}


def cells_of_two_batches():
    adata = scvae.datasets.simulate(n_cells=90, n_genes=40, n_batches=2, truth=False, rng=0)
    adata.obs["site"] = np.tile(["x", "y", "y"], 30)
    adata.obs["age"] = np.linspace(20.0, 60.0, 90)
    return adata


def fitted(**options):
    adata = cells_of_two_batches()
    options = {"network": NetworkConfig(width=16)} | options
    model = scvae.fit(
        adata,
        batch_key="batch",
        covariate_keys=["site", "age"],
        n_latent=3,
        training=BRIEF,
        rng=0,
        verbose=False,
        **options,
    )
    return adata, model


def wider(adata, model, *, mapped, batches=("new",), site="y"):
    """The model's schema with further batches, and sites."""
    more = adata[: len(batches)].copy()
    more.obs["batch"], more.obs["site"] = list(batches), site
    with pytest.warns(UserWarning, match="a single cell"):
        return widened(more, model.schema, mapped=mapped)


@torch.no_grad()
def said(network, model, schema, adata):
    """Posterior and decoded distribution of the cells, in chunks."""
    answers = []
    for _, batch in batches_of(model, read_query(adata, schema), 32):
        posterior = network.encode(batch)
        table = network.likelihood.distribution(network.features(posterior.mean, batch), batch)
        answers.append((posterior.mean, posterior.log_variance, table.mean, table.variance))
    return answers


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_nothing_changes_for_the_old_categories(options, mapped):
    adata, model = fitted(**options)
    schema = wider(adata, model, mapped=mapped, batches=("new", "newer"), site="z")
    network = grown(model, schema).network
    before = said(model.network, model, model.schema, adata)
    after = said(network, model, schema, adata)
    for old, new in zip(before, after, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(old, new, strict=True))


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_the_entries_marked_as_new_are_those_that_the_old_network_lacks(options):
    adata, model = fitted(**options)
    schema = wider(adata, model, mapped=True, batches=("new", "newer"))
    made = grown(model, schema)
    old = model.network.state_dict()
    for name, tensor in made.network.state_dict().items():
        size = old[name].numel() if name in old else 0
        assert tensor.numel() - size == (int(made.new[name].sum()) if name in made.new else 0), name
        if name in made.new:
            kept = tensor[~made.new[name]]
            assert torch.equal(torch.sort(kept)[0], torch.sort(old[name].flatten())[0] if size else kept)
    assert "encoder.shifts.weight" in made.new


def test_a_new_batch_starts_as_the_average_of_those_of_the_fit():
    adata, model = fitted(network=NetworkConfig(decoder="linear", width=16))
    schema = wider(adata, model, mapped=True)
    network = grown(model, schema).network
    batch = read_query(adata, model.schema).batch(np.arange(20))
    z = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    logits = []
    with torch.no_grad():
        for code in range(3):
            batch.codes[:, 0] = code
            logits.append(network.likelihood.output(network.features(z, batch)))
    torch.testing.assert_close(logits[2], 0.5 * (logits[0] + logits[1]))
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)


def test_where_the_encoder_sees_conditions_a_new_batch_starts_as_their_average_there_too():
    adata, model = fitted(network=NetworkConfig(width=16, encode_conditions=True))
    network = grown(model, wider(adata, model, mapped=True)).network
    rows = model.network.encoder.covariates.weight[1:3]  # behind the log library
    torch.testing.assert_close(network.encoder.shifts.weight[0], rows.mean(0))


def test_categories_that_are_not_mapped_give_the_encoder_no_shift():
    adata, model = fitted()
    made = grown(model, wider(adata, model, mapped=False))
    assert made.network.encoder.shifts is None
    assert set(made.new) == {"decoder.hidden.0.weight", "likelihood.output.weight"}
