"""`tl.map_query`: the reference stays, the query finds its place in it."""

import functools
import warnings

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.neighbors import KNeighborsClassifier

import scvae
from scvae import NetworkConfig, TrainingConfig
from scvae.common.checks import MissingKeyError
from scvae.data.intake import read_query
from scvae.inference.posterior import batches_of, posterior_of

HARDLY = TrainingConfig(epochs=5)
MAPPED = 60  # epochs of mapping, of 100 by default


@functools.cache
def example(**options):
    """Reference of two batches, its model, and a query of a third batch with strong effects on every gene."""
    adata = scvae.datasets.simulate(
        n_cells=900, n_genes=150, n_batches=3, batch_effect=0.8, type_share=0.9, truth=False, rng=1
    )
    is_new = (adata.obs["batch"] == "batch_2").to_numpy()
    reference, query = bare(adata[~is_new]), bare(adata[is_new])
    model = scvae.fit(reference, batch_key="batch", rng=0, verbose=False, **options)
    return reference, query, model


@functools.cache
def mapped_query():
    """The query of the example, and its model after `map_query`; not to be changed."""
    _, query, model = example()
    full = query.copy()
    return full, scvae.tl.map_query(full, model, epochs=MAPPED, verbose=False)


@pytest.fixture(scope="module", autouse=True)
def _made_once():
    """The model of most tests, before any of them is timed."""
    mapped_query()


def bare(adata):
    """The same cells without any result."""
    return ad.AnnData(adata.X.copy(), obs=adata.obs.astype({"batch": str}), var=adata.var.copy())


def accuracy(reference, query, key="X_scvae"):
    classifier = KNeighborsClassifier(15).fit(reference.obsm["X_scvae"], reference.obs["cell_type"])
    return float((classifier.predict(query.obsm[key]) == query.obs["cell_type"]).mean())


def shift(reference, query):
    """Mean distance between the centres of a type in the reference and in the query."""
    gaps = [
        cells.obsm["X_scvae"][(cells.obs["cell_type"] == name).to_numpy()].mean(0) * sign
        for name in reference.obs["cell_type"].unique()
        for cells, sign in ((reference, 1.0), (query, -1.0))
    ]
    return np.linalg.norm(np.add(gaps[::2], gaps[1::2]), axis=1).mean()


@torch.no_grad()
def decoded(model, adata):
    network, tables = model.network, []
    for _, batch in batches_of(model, read_query(adata, model.schema), 64):
        features = network.features(network.encode(batch).mean, batch)
        tables.append(network.likelihood.distribution(features, batch).mean)
    return tables


@pytest.mark.parametrize(
    "network",
    [NetworkConfig(), NetworkConfig(encode_conditions=True), NetworkConfig(dispersion="gene-batch", norm="batch")],
    ids=["plain", "encoder sees batches", "dispersion per batch, batch norm"],
)
def test_only_what_belongs_to_the_new_batch_moves_and_the_reference_stays_to_the_bit(network):
    reference, query, model = example(network=network, training=HARDLY)
    query, before = query.copy(), {name: t.clone() for name, t in model.network.state_dict().items()}
    mapped = scvae.tl.map_query(query, model, epochs=3, verbose=False)
    after = mapped.network.state_dict()
    grown = {name for name in after if name not in before or after[name].shape != before[name].shape}
    expected = {"encoder.shifts.weight", "decoder.hidden.0.weight", "likelihood.output.weight"}
    assert grown == expected | ({"likelihood.log_inverse_dispersion"} if network.dispersion == "gene-batch" else set())
    for name, tensor in before.items():
        assert torch.equal(model.network.state_dict()[name], tensor), "the model given is not touched"
        if name not in grown:
            assert torch.equal(after[name], tensor), name
    assert torch.equal(after["decoder.hidden.0.weight"][:-1], before["decoder.hidden.0.weight"])
    assert torch.equal(after["likelihood.output.weight"][:, :-1], before["likelihood.output.weight"])
    if network.dispersion == "gene-batch":
        new, old = after["likelihood.log_inverse_dispersion"], before["likelihood.log_inverse_dispersion"]
        assert torch.equal(new[:2], old)
        assert not torch.allclose(new[2], old.mean(0))
    assert (after["encoder.shifts.weight"].abs().mean() > 1e-3).all()
    again = bare(reference)
    scvae.tl.embed(again, mapped)
    for key in ("X_scvae", "X_scvae_var"):
        assert again.obsm[key].tobytes() == reference.obsm[key].tobytes()
    for old, new in zip(decoded(model, reference), decoded(mapped, reference), strict=True):
        assert torch.equal(old, new)


def test_a_strong_batch_effect_is_taken_off_also_with_genes_shuffled_and_a_fifth_missing():
    reference, query, model = example()
    (full, _), frozen = mapped_query(), query.copy()
    frozen.obs["batch"] = "batch_0"
    scvae.tl.embed(frozen, model)
    some = query[:, np.random.default_rng(0).permutation(150)[:120]].copy()
    with pytest.warns(UserWarning, match=r"120 of the 150 modelled genes \(80.0 %\)"):
        scvae.tl.map_query(some, model, epochs=MAPPED, verbose=False)
    assert shift(reference, full) < 0.5 * shift(reference, frozen) > shift(reference, some)
    assert accuracy(reference, full) > 0.96
    assert accuracy(reference, some) > accuracy(reference, full) - 0.03
    record = some.uns["scvae"]["mapping"]
    assert (record["genes_found"], record["genes_missing"], record["coverage"]) == (120, 30, 0.8)


def test_read_counts_find_the_place_of_molecule_counts():
    reference, query, model = example()
    deep, deeper = query[:100].copy(), query[:100].copy()
    deep.X, deeper.X = 10 * deep.X, 500 * deeper.X
    with pytest.warns(UserWarning, match=r"the 100 new cells have counts of another order .*scanpy.tl.ingest"):
        mapped = scvae.tl.map_query(deep, model, epochs=30, verbose=False)
    with pytest.warns(UserWarning, match="read counts"):
        scvae.tl.map_query(deeper, model, epochs=30, verbose=False)
    np.testing.assert_allclose(deeper.obsm["X_scvae"], deep.obsm["X_scvae"], atol=1e-3)
    again = query[:100].copy()
    again.X = 500 * again.X
    scvae.tl.embed(again, mapped)
    np.testing.assert_allclose(again.obsm["X_scvae"], deep.obsm["X_scvae"], atol=1e-3)
    assert accuracy(reference, deep) > 0.95


def test_the_elbo_of_the_query_is_better_than_as_a_known_batch():
    _, query, model = example()
    query, (_, mapped) = query.copy(), mapped_query()
    new = scvae.tl.log_likelihood(query, mapped, kind="elbo", n_samples=5)
    query.obs["batch"] = "batch_0"
    assert new.mean() > scvae.tl.log_likelihood(query, model, kind="elbo", n_samples=5).mean() + 10


def test_the_mapped_model_is_saved_and_read_and_mapped_onto_again(tmp_path):
    reference, query, model = example()
    first, second = query[:150].copy(), query[150:].copy()
    second.obs["batch"] = "batch_3"
    mapped = scvae.tl.map_query(first, model, epochs=3, verbose=False)
    read = scvae.load(mapped.save(tmp_path / "mapped.safetensors"))
    twice = scvae.tl.map_query(second, read, epochs=3, verbose=False)
    assert twice.schema.batch.categories == ("batch_0", "batch_1", "batch_2", "batch_3")
    assert twice.schema.batch.mapped == ("batch_2", "batch_3")
    for cells in (reference, first):
        again = bare(cells)
        scvae.tl.embed(again, scvae.load(twice.save(tmp_path / "twice.safetensors")))
        assert again.obsm["X_scvae"].tobytes() == cells.obsm["X_scvae"].tobytes()


@torch.no_grad()
def elbos(model, batch, posterior):
    """ELBO of each cell under any posterior, cells x draws in float64, by noise that no search has seen."""
    generator, ones, found = torch.Generator().manual_seed(7), torch.ones(len(batch)), []
    for _ in range(50):
        z = posterior.reparameterize(torch.randn(posterior.mean.shape, generator=generator))
        kl = model.network.prior.kl(posterior, z).sum(1)
        found.append(model.network.log_likelihood(z, batch, ones).per_row - kl)
    return torch.stack(found, 1).double()


def test_cells_of_a_mapped_batch_and_they_alone_are_led_from_the_encoders_posterior_to_the_best(monkeypatch):
    reference, query, model = example()
    both = ad.concat([bare(reference[:40]), query[:40], bare(reference[40:80]), query[40:80]])
    mapped = scvae.tl.map_query(query.copy(), model, epochs=3, verbose=False)
    cells, is_mapped = read_query(both, mapped.schema), torch.arange(160) // 40 % 2 == 1
    _, batch = next(batches_of(mapped, cells, 160))
    encoded, placed = mapped.network.encode(batch), posterior_of(mapped, batch)
    for name in ("mean", "log_variance"):
        assert torch.equal(getattr(placed, name)[~is_mapped], getattr(encoded, name)[~is_mapped])
    gain = (elbos(mapped, batch, placed) - elbos(mapped, batch, encoded))[is_mapped]
    assert gain.mean() > 5 * gain.mean(0).std() / 50**0.5
    assert (gain.mean(1) > 0).float().mean() > 0.9
    # pieces of another size, and the cells of a mapped batch among the others, change nothing
    scvae.tl.embed(both, mapped)
    np.testing.assert_allclose(both.obsm["X_scvae"], mapped.written(placed.mean.numpy()), rtol=1e-4, atol=1e-5)
    monkeypatch.setattr("scvae.inference.posterior.REFINED_AT_ONCE", 7 * 150)
    again = both.copy()
    scvae.tl.embed(again, mapped)
    np.testing.assert_allclose(again.obsm["X_scvae"], both.obsm["X_scvae"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(again.obsm["X_scvae_var"], both.obsm["X_scvae_var"], rtol=1e-4)


def test_known_cells_in_the_query_are_embedded_as_they_were_and_teach_nothing():
    reference, query, model = example()
    alone, both = query.copy(), ad.concat([bare(reference[:100]), query])
    mapped = scvae.tl.map_query(alone, model, epochs=3, verbose=False)
    with pytest.warns(
        UserWarning, match=r"^2 of the 3 batches in adata.obs\['batch'\] .* \('batch_0', 'batch_1'\).*new_b"
    ):
        with_known = scvae.tl.map_query(both, model, epochs=3, verbose=False)
    for name, tensor in mapped.network.state_dict().items():
        assert torch.equal(tensor, with_known.network.state_dict()[name])
    np.testing.assert_allclose(both.obsm["X_scvae"][:100], reference.obsm["X_scvae"][:100], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(both.obsm["X_scvae"][100:], alone.obsm["X_scvae"], rtol=1e-4, atol=1e-5)


def test_a_model_of_many_betas_is_mapped_onto_at_every_beta():
    reference, query, model = example(beta=(0.5, 5.0), training=HARDLY)
    query = query.copy()
    mapped = scvae.tl.map_query(query, model, epochs=3, beta=2.0, verbose=False)
    at_two = query.obsm["X_scvae"].copy()
    scvae.tl.embed(query, mapped, beta=2.0)
    np.testing.assert_array_equal(query.obsm["X_scvae"], at_two)
    again = bare(reference)
    scvae.tl.embed(again, mapped)
    assert again.obsm["X_scvae"].tobytes() == reference.obsm["X_scvae"].tobytes()


def typical_library(adata):
    return float(np.median(np.asarray(adata.X.sum(1))))


def test_cells_are_drawn_for_a_mapped_batch_with_the_library_sizes_of_its_query_whatever_genes_it_lacks(tmp_path):
    _, query, model = example()
    real = typical_library(query)
    (_, mapped), some = mapped_query(), query[:, 30:].copy()
    with pytest.warns(UserWarning, match="120 of the 150") as seen:
        of_some = scvae.tl.map_query(some, model, epochs=MAPPED, verbose=False)
    assert [warning.filename for warning in seen] == [__file__], "a warning points at the line of the user"
    assert mapped.libraries.n_cells == (*model.libraries.n_cells, 300)
    assert mapped.libraries.log_quantiles[:2] == model.libraries.log_quantiles
    measured = typical_library(some)
    assert measured < 0.9 * real
    for each in (mapped, of_some, scvae.load(of_some.save(tmp_path / "model.safetensors"))):
        drawn = scvae.tl.generate(each, n=1000, batch="batch_2")
        assert set(drawn.obs["batch"]) == {"batch_2"}
        assert typical_library(drawn) == pytest.approx(real, rel=0.06)
    with pytest.warns(UserWarning, match="120 of the 150"):
        like = scvae.tl.generate(of_some, n=1000, like=some)
    assert typical_library(like) == pytest.approx(real, rel=0.06)
    share = (scvae.tl.generate(mapped, n=2000).obs["batch"] == "batch_2").mean()
    assert share == pytest.approx(300 / 900, abs=0.05)


def test_the_batch_may_have_another_name_in_the_query_and_obs_stays(digest):
    reference, query, model = example()
    same, other = query.copy(), query.copy()
    other.obs = other.obs.rename(columns={"batch": "donor"})
    before = digest(other)["obs"]
    expected = scvae.tl.map_query(same, model, epochs=2, verbose=False)
    mapped = scvae.tl.map_query(other, model, batch_key="donor", epochs=2, verbose=False)
    assert digest(other)["obs"] == before
    assert mapped.schema == expected.schema
    np.testing.assert_array_equal(other.obsm["X_scvae"], same.obsm["X_scvae"])
    assert list(other.uns["scvae"]["mapping"]["new"]) == ["batch"]
    kinds = {name: cells.copy() for name, cells in (("fit", same), ("other", other))}
    for name, cells in kinds.items():
        batch_key = "donor" if name == "other" else None
        scvae.tl.transfer_labels(cells, mapped, reference=reference, labels_key="cell_type", batch_key=batch_key)
    assert (kinds["fit"].obs["scvae_label"] == kinds["other"].obs["scvae_label"]).all()


def test_batches_of_known_names_are_new_if_told_so(tmp_path):
    reference, query, model = example()
    expected, named = query.copy(), query.copy()
    first = np.arange(300) < 150
    expected.obs["batch"] = np.where(first, "b", "c")
    named.obs["batch"] = np.where(first, "batch_0", "c")
    want = scvae.tl.map_query(expected, model, epochs=3, verbose=False)
    mapped = scvae.tl.map_query(named, model, new_batches=True, epochs=3, verbose=False)
    assert mapped.schema.batch.categories == ("batch_0", "batch_1", "batch_0-query", "c")
    assert mapped.schema.batch.mapped == ("batch_0-query", "c")
    for name, tensor in want.network.state_dict().items():
        assert torch.equal(mapped.network.state_dict()[name], tensor), name
    np.testing.assert_array_equal(named.obsm["X_scvae"], expected.obsm["X_scvae"])
    # the cells have the names of the model, so that other tools find their batches
    assert named.obs["batch"].tolist() == np.where(first, "batch_0-query", "c").tolist()
    assert list(named.uns["scvae"]["mapping"]["new"]["batch"]) == ["batch_0-query", "c"]
    again, read = named.copy(), scvae.load(mapped.save(tmp_path / "mapped.safetensors"))
    scvae.tl.embed(again, read)
    np.testing.assert_array_equal(again.obsm["X_scvae"], named.obsm["X_scvae"])
    known = bare(reference)
    scvae.tl.embed(known, read)
    assert known.obsm["X_scvae"].tobytes() == reference.obsm["X_scvae"].tobytes()
    # a third study, which has these names, too, under another column
    third = query.copy()
    third.obs["donor"] = np.where(first, "batch_0-query", "batch_0")
    twice = scvae.tl.map_query(third, read, batch_key="donor", new_batches=True, epochs=1, verbose=False)
    assert twice.schema.batch.categories[4:] == ("batch_0-query2", "batch_0-query-query2")
    assert third.obs["donor"].tolist() == np.where(first, "batch_0-query-query2", "batch_0-query2").tolist()
    assert third.obs["batch"].tolist() == query.obs["batch"].tolist()


def test_numbers_are_new_batches_whatever_their_type_and_names_without_a_twin_stay(digest):
    reference, query, _ = example()
    reference, query = bare(reference), query.copy()
    reference.obs["batch"] = np.arange(600) % 2 + 1
    options = {"n_latent": 2, "network": NetworkConfig(width=8), "training": TrainingConfig(epochs=1)}
    model = scvae.fit(reference, batch_key="batch", rng=0, verbose=False, **options)
    query.obs["batch"] = np.arange(300) % 2 + 1.0
    mapped = scvae.tl.map_query(query, model, new_batches=True, epochs=1, verbose=False)
    assert mapped.schema.batch.categories == ("1", "2", "1-query", "2-query")
    other = bare(query)
    other.obs["batch"] = np.arange(300) % 2 + 7
    before = digest(other)["obs"]
    assert scvae.tl.map_query(other, model, new_batches=True, epochs=1, verbose=False).schema.batch.mapped == ("7", "8")
    assert digest(other)["obs"] == before
    plain = scvae.fit(bare(reference), rng=0, verbose=False, **options)
    with pytest.raises(ValueError, match="new_batches has no effect: the model was fitted without batch_key"):
        scvae.tl.map_query(query, plain, new_batches=True, verbose=False)


def test_new_categories_of_a_covariate_are_learnt_likewise():
    reference, query, _ = example()
    reference, query = bare(reference), query.copy()
    model = scvae.fit(
        reference,
        covariate_keys=["batch"],
        n_latent=3,
        network=NetworkConfig(width=16),
        training=TrainingConfig(epochs=2),
        rng=0,
        verbose=False,
    )
    mapped = scvae.tl.map_query(query, model, epochs=1, verbose=False)
    assert mapped.schema.categorical[0].categories == ("batch_0", "batch_1", "batch_2")
    _, batch = next(batches_of(mapped, read_query(query, mapped.schema), 400))
    assert not torch.allclose(posterior_of(mapped, batch).mean, mapped.network.encode(batch).mean, atol=1e-3)
    with pytest.raises(ValueError, match="batch_key is 'batch', but the model was fitted without batch_key"):
        scvae.tl.map_query(query, model, batch_key="batch", verbose=False)


def test_the_record_can_be_written_to_a_file_and_nothing_else_changes(tmp_path, digest):
    _, query, model = example()
    query = query.copy()
    before = digest(query)
    scvae.tl.map_query(query, model, epochs=2, key_added="there", verbose=False)
    after = digest(query)
    assert set(after) - set(before) == {"obsm[X_there]", "obsm[X_there_var]"}
    assert all(after[name] == before[name] for name in before if name != "uns")
    query.write_h5ad(tmp_path / "query.h5ad")
    record = ad.read_h5ad(tmp_path / "query.h5ad").uns["there"]["mapping"]
    assert list(record["new"]["batch"]) == ["batch_2"]
    assert len(record["history"]["epoch"]) == record["epochs"] == 2


def log_normalised(adata):
    counts = adata.X.toarray()
    adata.X = sparse.csr_matrix(np.log1p(1e4 * counts / counts.sum(1, keepdims=True)))


def without_names(adata):
    adata.var_names = [f"other_{i}" for i in range(adata.n_vars)]


def without_batch(adata):
    del adata.obs["batch"]


def of_known_batch(adata):
    adata.obs["batch"] = "batch_1"


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (log_normalised, {}, "log-normalised.*; load the raw counts$"),  # another likelihood is not to be had here
        (without_names, {}, "none of the 150 modelled genes"),
        (without_batch, {}, "has no 'batch'"),
        (of_known_batch, {}, "nothing to learn; embed these cells with scvae.tl.embed, or pass new_batches=True"),
        (lambda adata: None, {"batch_key": "donor"}, "has no 'donor'"),
        (lambda adata: None, {"beta": 2.0}, "trained at β = 1 alone"),
        (lambda adata: None, {"epochs": 0}, "epochs is 0"),
        (lambda adata: None, {"layer": "counts"}, "has no 'counts'"),
    ],
)
def test_wrong_input_is_refused_and_nothing_is_written(digest, change, options, message):
    _, query, model = example()
    query = query.copy()
    change(query)
    before = digest(query)
    with pytest.raises((ValueError, MissingKeyError), match=message):
        scvae.tl.map_query(query, model, verbose=False, **options)
    assert digest(query) == before


def test_a_model_without_batches_has_nothing_to_learn_and_embed_names_map_query():
    reference, query, model = example()
    plain = scvae.fit(
        bare(reference), n_latent=2, network=NetworkConfig(width=8), training=TrainingConfig(epochs=1), verbose=False
    )
    with pytest.raises(ValueError, match=r"fitted without batch_key.*scvae.tl.embed"):
        scvae.tl.map_query(query.copy(), plain, verbose=False)
    with pytest.raises(ValueError, match=r"'batch_2' in 300 of 300 cells.*scvae.tl.map_query"):
        scvae.tl.embed(query.copy(), model)


def test_a_view_is_mapped_and_its_parent_stays(digest):
    _, query, model = example()
    parent = query.copy()
    before = digest(parent)
    view = parent[:60]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scvae.tl.map_query(view, model, epochs=1, verbose=False)
    assert "X_scvae" in view.obsm
    assert digest(parent) == before
