"""`tl.explain_label`: attributions add up, point at the genes that the label hangs on, and take little memory."""

import numpy as np
import pytest
import torch

import scvae
from scvae import NetworkConfig, TrainingConfig
from scvae.inference.cells import read_cells
from scvae.inference.label_attribution import attribute, mean_input
from scvae.inference.label_prediction import logits_at
from scvae.inference.posterior import posterior_moments

SETTINGS = {
    "counts": {"batch_key": "batch"},
    "deep, without normalisation": {"network": NetworkConfig(encoder_layers=2, norm="none", width=32)},
    "range of β, encoded batches": {
        "batch_key": "batch",
        "beta": (0.5, 2.0),
        "network": NetworkConfig(encode_conditions=True),
    },
    "batch normalisation": {"network": NetworkConfig(norm="batch")},
}


@pytest.fixture(scope="module")
def cells():
    return scvae.datasets.simulate(n_cells=400, n_genes=120, n_batches=2, n_types=4, type_share=0.8, truth=False, rng=1)


@pytest.fixture(scope="module")
def fitted(cells):
    return scvae.fit(cells, labels_key="cell_type", rng=0, verbose=False, **SETTINGS["counts"])


def log_odds(model, read, label):
    logits = logits_at(model, posterior_moments(model, read)[0]).astype(float)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p = p[np.arange(len(p)), label] / p.sum(1)
    return np.log(p / (1 - p))


@pytest.mark.parametrize("name", SETTINGS)
def test_attributions_add_up_to_the_difference_of_the_log_odds(cells, name):
    config = TrainingConfig(epochs=10)
    model = scvae.fit(cells.copy(), labels_key="cell_type", rng=0, verbose=False, training=config, **SETTINGS[name])
    read = read_cells(cells, model, None).taken(np.arange(0, 400, 20))
    label, alone = np.arange(20) % 4, np.arange(20)
    found = attribute(model, read, label, alone, mean_input(model, read), steps=400)
    np.testing.assert_allclose(found.end, log_odds(model, read, label), atol=2e-4)
    np.testing.assert_allclose(found.genes.sum(1), found.end - found.start, atol=0.01 * np.ptp(found.end))


def test_attributions_of_several_measurements_add_up_over_all_that_a_cell_has():
    adata = scvae.datasets.simulate(n_cells=200, n_genes=40, n_types=4, n_proteins=6, truth=False, rng=1)
    adata.obsm["protein"].iloc[:50] = np.nan
    adata.X = adata.X.multiply((np.arange(200) < 150)[:, None]).tocsr()
    options = {"training": TrainingConfig(epochs=10), "protein_key": "protein", "labels_key": "cell_type"}
    model = scvae.fit(adata, rng=0, verbose=False, **options)
    read = read_cells(adata, model, None).taken(np.arange(0, 200, 10))
    label, alone = np.arange(20) % 4, np.arange(20)
    found = attribute(model, read, label, alone, mean_input(model, read), steps=400)
    np.testing.assert_allclose(found.end, log_odds(model, read, label), atol=2e-4)
    proteins = found.further[0].sum(1)
    np.testing.assert_allclose(found.genes.sum(1) + proteins, found.end - found.start, atol=0.01 * np.ptp(found.end))
    assert (proteins == 0)[:5].all()
    assert (found.genes[15:] == 0).all()
    table = scvae.tl.explain_label(adata, model, view="protein", n_genes=2)
    assert set(table["gene"]) <= set(adata.obsm["protein"])
    assert "scvae_label_genes" not in adata.varm


def test_a_linear_model_has_the_attributions_of_its_weights(cells):
    linear = NetworkConfig(norm="none", width=16)
    model = scvae.fit(
        cells.copy(), labels_key="cell_type", rng=0, verbose=False, network=linear, training=TrainingConfig(epochs=1)
    )
    encoder = model.network.encoder
    with torch.no_grad():
        encoder.genes.bias += 1e3  # all units stay on, so that the encoder is linear
        encoder.mean.bias -= 1e3 * encoder.mean.weight.sum(0)
        model.network.classifier.weight[:, 2:] = 0.0
        drawn = torch.randn(model.n_latent, 2, generator=torch.Generator().manual_seed(0))
        model.network.classifier.weight[:, :2] = drawn
        model.network.classifier.bias[:] = torch.tensor([0.0, 0.0, -1e3, -1e3])  # two labels: log odds are linear
    read = read_cells(cells, model, None).taken(np.arange(6))
    x = model.network.likelihood.encoder_input(read.batch(np.arange(6)))[0].to_dense().detach()
    to_odds = (
        encoder.genes.weight @ encoder.mean.weight @ model.network.classifier.weight[:, :2] @ torch.tensor([1.0, -1])
    )
    expected = ((x - x.mean(0)) * to_odds).detach().numpy()
    found = attribute(model, read, np.zeros(6, np.int64), np.arange(6), mean_input(model, read))
    np.testing.assert_allclose(found.genes, expected, atol=1e-3 * np.abs(expected).max())


def test_without_its_top_genes_a_label_is_less_probable_than_without_others(cells, fitted):
    adata = cells.copy()
    scvae.tl.explain_label(adata, fitted)
    before = read_cells(adata, fitted, None)
    logits = logits_at(fitted, posterior_moments(fitted, before)[0])
    likely = logits.argmax(1)
    start = log_odds(fitted, before, likely)
    attribution = adata.varm["scvae_label_genes"].to_numpy()
    expressed = np.asarray(adata.X.mean(0)).ravel()
    fall = {}
    random = np.random.default_rng(0).random((attribution.shape[0], 4))
    for name, score in {"top": attribution, "expressed": np.tile(expressed[:, None], 4), "random": random}.items():
        changed = adata.copy()
        dense = changed.X.toarray()
        for code in range(4):
            here = np.flatnonzero(likely == code)
            # genes that are up in the label: the deletion of others would add evidence
            up = dense[here].mean(0) > dense.mean(0)
            genes = np.argsort(-np.where(up | (name != "top"), score[:, code], -np.inf))[:10]
            dense[np.ix_(here, genes)] = 0.0
        changed.X = dense
        fall[name] = (start - log_odds(fitted, read_cells(changed, fitted, None), likely)).mean()
    assert fall["top"] > 2 * max(fall["expressed"], fall["random"], 0.1)


def test_the_table_lists_groups_and_the_slot_has_all_genes(cells, fitted, digest):
    adata = cells.copy()
    before = digest(adata)
    table = scvae.tl.explain_label(adata, fitted, groupby="batch", n_genes=3)
    assert table["group"].tolist() == ["batch_0"] * 3 + ["batch_1"] * 3
    assert (table["attribution"].to_numpy()[:2] >= table["attribution"].to_numpy()[1:3]).all()
    slot = adata.varm["scvae_label_genes"]
    assert slot.shape == (120, 2)
    assert slot["batch_0"].max() == pytest.approx(table["attribution"][0], rel=1e-5)
    changed = {name for name, value in digest(adata).items() if before.get(name) != value}
    assert changed == {"varm[scvae_label_genes]", "uns"} - ({"uns"} if "scvae" in cells.uns else set())


def test_what_cannot_be_explained_gets_one_line(cells, fitted):
    plain = scvae.fit(cells.copy(), rng=0, verbose=False, training=TrainingConfig(epochs=1))
    with pytest.raises(ValueError, match="fitted without labels"):
        scvae.tl.explain_label(cells.copy(), plain)
    with pytest.warns(UserWarning, match="genes"), pytest.raises(ValueError, match="lacks 20 genes of the model"):
        scvae.tl.explain_label(cells[:, 20:].copy(), fitted)
