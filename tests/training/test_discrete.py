"""Models with categories or codes: what they write, what works with them, and what is refused by name."""

import functools
import re
import signal

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import special

import scvae
import scvae.training.train
from scvae import NetworkConfig, TrainingConfig
from scvae.common.distributed import Alone
from scvae.inference.cells import read_cells
from scvae.model.latent.codebook import COMMITMENT
from scvae.training.fused_step import can_be_fused
from scvae.training.train import is_capturable

CATEGORIES = NetworkConfig(width=16, latent="categorical", n_categories=4)
CODES = NetworkConfig(width=16, latent="quantized", n_codes=8)
NETWORKS = {"categories": CATEGORIES, "codes": CODES}
TRAINING = TrainingConfig(epochs=20, batch_size=32, patience=None)
SHORT = {"n_latent": 3, "rng": 0, "verbose": False, "training": TRAINING}
each_kind = pytest.mark.parametrize("kind", NETWORKS)


def simulated(n_cells=160, **options):
    options = {"n_genes": 30, "n_types": 4, "n_batches": 2, "type_share": 0.95, "truth": False, "rng": 0} | options
    return scvae.datasets.simulate(n_cells=n_cells, **options)


@functools.cache
def _fitted(kind):
    adata = simulated()
    return adata, scvae.fit(adata, batch_key="batch", network=NETWORKS[kind], **SHORT)


def fitted(kind):
    adata, model = _fitted(kind)
    return adata.copy(), model


def in_network(adata, model):
    """The embedding in the coordinates of the network."""
    return adata.obsm["X_scvae"] @ model.metric.inverse


def test_the_code_of_a_cell_is_the_nearest_to_its_embedding():
    adata, model = fitted("codes")
    codes = model.network.prior.codes.numpy()
    nearest = np.linalg.norm(in_network(adata, model)[:, None] - codes, axis=-1).argmin(1)
    assert adata.obs["scvae_code"].dtype == "category"
    assert list(adata.obs["scvae_code"].cat.categories) == [str(k) for k in range(8)]
    np.testing.assert_array_equal(adata.obs["scvae_code"].astype(int), nearest)
    assert "X_scvae_categories" not in adata.obsm


def test_the_category_of_a_cell_is_the_most_probable():
    adata, model = fitted("categories")
    prior, mean = model.network.prior, in_network(adata, model)
    scvae.fit(other := simulated(), metric="latent", batch_key="batch", network=CATEGORIES, **SHORT)
    variance = other.obsm["X_scvae_var"]
    centre, scale = prior.centre.detach().numpy(), np.exp(prior.log_variance.detach().numpy())
    square = (mean[:, None] - centre) ** 2
    kl = 0.5 * (np.log(scale / variance[:, None]) + (variance[:, None] + square) / scale - 1).sum(-1)
    np.testing.assert_allclose(adata.obsm["X_scvae_categories"], special.softmax(-kl, axis=1), atol=1e-4)
    found = adata.obs["scvae_category"].astype(int)
    np.testing.assert_array_equal(found, adata.obsm["X_scvae_categories"].argmax(1))
    assert "scvae_code" not in adata.obs


@each_kind
def test_a_saved_model_embeds_as_before_and_says_how_its_groups_are_used(kind, tmp_path):
    adata, model = fitted(kind)
    again = scvae.load(model.save(tmp_path / "model"))
    new = simulated()
    scvae.tl.embed(new, again)
    np.testing.assert_array_equal(new.obsm["X_scvae"], adata.obsm["X_scvae"])
    column = {"codes": "scvae_code", "categories": "scvae_category"}[kind]
    assert new.obs[column].equals(adata.obs[column])
    number, perplexity = re.fullmatch(r"(\d) \(perplexity (\d\.\d)\)", again.summary()[kind]).groups()
    assert int(number) == {"codes": 8, "categories": 4}[kind]
    assert 1.5 < float(perplexity) <= int(number)
    assert again.network_config == NETWORKS[kind]


def test_a_model_without_groups_says_nothing_of_them():
    model = scvae.fit(simulated(), training=TrainingConfig(epochs=2), n_latent=3, rng=0, verbose=False)
    assert not {"codes", "categories"} & set(model.summary().index)
    assert not [name for name in model.network.state_dict() if name.startswith("prior")]


def test_the_log_likelihood_of_a_model_of_codes_is_the_sum_over_codes():
    adata, model = fitted("codes")
    some = adata[:10].copy()
    batch = read_cells(some, model, None).batch(np.arange(10))
    prior, x = model.network.prior, torch.from_numpy(some.X.toarray())
    with torch.no_grad():
        joint = []
        for log_weight, code in zip(prior.log_weight, prior.codes, strict=True):
            law = model.network.likelihood.distribution(model.network.features(code.repeat(10, 1), batch), batch)
            joint.append((log_weight + law.log_prob(x).sum(1)).numpy())
    found = scvae.tl.log_likelihood(some, model)
    np.testing.assert_allclose(found, special.logsumexp(joint, axis=0), rtol=1e-5)
    bound = scvae.tl.log_likelihood(some, model, kind="elbo", n_samples=2)
    code = some.obs["scvae_code"].astype(int).to_numpy()
    np.testing.assert_allclose(bound, np.array(joint)[code, np.arange(10)], rtol=1e-5)


def test_many_codes_are_decoded_in_parts(monkeypatch):
    adata, model = fitted("codes")
    whole = scvae.tl.log_likelihood(adata[:5].copy(), model)
    monkeypatch.setattr("scvae.model.objective.DRAWS_BUDGET", 5 * 30 * 3)
    np.testing.assert_allclose(scvae.tl.log_likelihood(adata[:5].copy(), model), whole, rtol=1e-6)


class Killed(BaseException):
    pass


@each_kind
@pytest.mark.parametrize("epoch", [2, 12])
def test_a_run_that_was_killed_ends_as_if_it_had_not_been(kind, epoch, monkeypatch, tmp_path):
    """Before and after the categories have started."""
    whole, _ = fitted(kind)
    evaluate, calls = scvae.training.train.evaluate, []

    def killed(*arguments, **options):
        calls.append(1)
        if len(calls) == epoch:
            raise Killed
        return evaluate(*arguments, **options)

    monkeypatch.setattr(scvae.training.train, "evaluate", killed)
    fit = functools.partial(scvae.fit, batch_key="batch", network=NETWORKS[kind], checkpoint=tmp_path / "run", **SHORT)
    with pytest.raises(Killed):
        fit(simulated())
    monkeypatch.setattr(scvae.training.train, "evaluate", evaluate)
    fit(adata := simulated())
    assert adata.obsm["X_scvae"].tobytes() == whole.obsm["X_scvae"].tobytes()


@each_kind
def test_training_goes_on_from_a_model(kind):
    adata, model = fitted(kind)
    further = scvae.fit(adata, init=model, training=TrainingConfig(epochs=1), rng=0, verbose=False)
    before, after = (m.network.prior.state_dict() for m in (model, further))
    place = {"codes": "codes", "categories": "centre"}[kind]
    assert 0 < float((after[place] - before[place]).abs().max()) < 1.0  # moved, and not started anew
    assert further.outcome.held_out_elbo > model.outcome.held_out_elbo - 3


def test_unused_dimensions_of_a_model_of_categories_are_removed():
    adata = simulated(n_latent=1, n_types=1, n_batches=1, signal=1.0)
    model = scvae.fit(adata, network=CATEGORIES, **SHORT | {"n_latent": 6, "training": None})
    pruned = scvae.tl.prune(adata, model, epochs=2, verbose=False)
    assert pruned.n_latent < 6
    assert pruned.network.prior.centre.shape == (4, pruned.n_latent)
    assert adata.obsm["X_scvae_categories"].shape == (160, 4)


def test_new_batches_are_mapped_onto_categories():
    _, model = fitted("categories")
    query = simulated(rng=0, n_batches=3)
    query = query[query.obs["batch"] == "batch_2"].copy()
    mapped = scvae.tl.map_query(query, model, epochs=2, verbose=False)
    assert torch.equal(mapped.network.prior.centre, model.network.prior.centre)
    assert torch.equal(mapped.network.prior.share, model.network.prior.share)
    assert query.obsm["X_scvae_categories"].shape == (query.n_obs, 4)


@each_kind
def test_tools_that_decode_work_with_groups(kind):
    adata, model = fitted(kind)
    assert np.isfinite(scvae.tl.generate(model, n=40, rng=0).X.data).all()
    assert scvae.tl.sample(adata[:20].copy(), model).shape == (20, 30)
    scvae.tl.denoise(adata, model)
    assert (adata.layers["scvae_denoised"] > 0).all()
    scvae.tl.neighbors(adata, model, n_samples=3)
    scvae.tl.latent_genes(adata, model)
    assert np.isfinite(adata.varm["scvae_effects"]).all()
    scvae.tl.rank_genes(adata, model, groupby="cell_type")
    scvae.tl.density(adata, model)
    assert np.isfinite(adata.obs["scvae_density"]).all()
    few = adata[:, :25].copy()
    with pytest.warns(UserWarning, match="25 of the 30"):
        scvae.tl.embed(few, model)  # by imputation of the missing genes
    assert np.isfinite(few.obsm["X_scvae"]).all()


def test_decoded_values_are_those_of_the_codes():
    adata, model = fitted("codes")
    scvae.tl.denoise(adata, model, n_samples=0, library_size=1000.0, transform_batch="batch_0")
    rows = pd.DataFrame(adata.layers["scvae_denoised"]).groupby(adata.obs["scvae_code"].to_numpy(), observed=True)
    assert float(rows.std(ddof=0).to_numpy().max()) < 1e-3
    assert len(rows) > 2


@pytest.mark.parametrize("likelihood", ["poisson", "gaussian", "bernoulli"])
@each_kind
def test_every_kind_of_head_takes_groups(kind, likelihood):
    simulate = likelihood if likelihood != "poisson" else "poisson"
    adata = simulated(likelihood=simulate)
    model = scvae.fit(adata, likelihood=likelihood, network=NETWORKS[kind], **SHORT)
    assert np.isfinite(model.outcome.held_out_elbo)
    assert len(set(model.network.prior.membership(_posterior(adata, model)).argmax(1).tolist())) > 1


def _posterior(adata, model):
    cells = read_cells(adata, model, None)
    with torch.no_grad():
        return model.network.encode(cells.batch(np.arange(len(cells))))


@each_kind
def test_weights_from_before_the_start_of_the_groups_are_not_ranked(kind, monkeypatch):
    """Without rounding, the held-out objective is better, but there are no codes."""
    seen, keep = [], scvae.training.train.Progress.keep_weights

    def spy(progress, network, objective, *, ranked):
        seen.append((progress.epoch, bool(network.prior.started), ranked))
        keep(progress, network, objective, ranked=ranked)

    monkeypatch.setattr(scvae.training.train.Progress, "keep_weights", spy)
    config = TrainingConfig(epochs=10, warmup=0.0, patience=None)
    model = scvae.fit(simulated(), network=NETWORKS[kind], **SHORT | {"training": config})
    assert seen == [(1, False, False), *((epoch, True, True) for epoch in range(2, 11))]
    assert model.network.prior.is_ready


@pytest.fixture
def hears_ctrl_c():
    """Python's own handler, also where the shell made a background process that ignores the signal."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)


@each_kind
@pytest.mark.usefixtures("hears_ctrl_c")
def test_a_model_whose_training_was_interrupted_early_has_groups(kind, monkeypatch):
    evaluate = scvae.training.train.evaluate

    def interrupted(*arguments, **options):
        signal.raise_signal(signal.SIGINT)
        return evaluate(*arguments, **options)

    monkeypatch.setattr(scvae.training.train, "evaluate", interrupted)
    with pytest.warns(UserWarning, match="interrupted after 0 epochs"):
        model = scvae.fit(adata := simulated(), network=NETWORKS[kind], **SHORT)
    assert model.network.prior.is_ready
    assert np.isfinite(scvae.tl.log_likelihood(adata, model, n_samples=2)).all()


@each_kind
def test_a_single_epoch_has_groups(kind):
    model = scvae.fit(simulated(), network=NETWORKS[kind], **SHORT | {"training": TrainingConfig(epochs=1)})
    assert model.network.prior.is_ready


@each_kind
def test_steps_are_made_by_torch_alone(kind):
    _, model = fitted(kind)
    assert not can_be_fused(model.network, TRAINING)
    assert not is_capturable(model.network)


def test_the_loss_of_codes_is_the_negative_bound_and_the_commitment():
    adata, model = fitted("codes")
    network, batch = model.network, read_cells(adata, model, None).batch(np.arange(16))
    z = network.encode(batch).mean
    distance = (z - network.prior.codes[network.prior.nearest(z)]).square().sum(1)
    dials = scvae.training.step.Dials(1.0, None, 1e-3)
    weight, noise = torch.full((16,), 1 / 16), torch.zeros(16, 3)
    config = TrainingConfig(consistency=0.0)
    parts = scvae.training.step.objective_of(network, batch, noise, weight, None, dials, config)
    loss, log_likelihood, kl = (part.detach() for part in parts)
    assert float(loss) == pytest.approx(float(kl - log_likelihood + COMMITMENT * distance.mean().detach()), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "arguments", "said"),
    [
        ("categories", {"beta": (0.5, 2.0)}, r"latent='categorical' needs one β; found beta=\(0.5, 2\)"),
        ("codes", {"beta": (0.5, 2.0)}, r"latent='quantized' needs one β"),
        ("codes", {"beta": 2.0}, r"beta=2 has no effect with NetworkConfig.latent='quantized'"),
        ("codes", {"training": TrainingConfig(free_bits=0.1)}, r"free_bits=0.1 has no effect"),
        ("codes", {"training": TrainingConfig(capacity=3.0)}, r"capacity has no effect"),
        ("codes", {"n_latent": "auto"}, r"n_latent='auto' has no effect"),
    ],
)
def test_settings_that_do_not_go_with_groups_are_refused(kind, arguments, said, digest):
    adata = simulated()
    before = digest(adata)
    with pytest.raises(ValueError, match=said):
        scvae.fit(adata, network=NETWORKS[kind], **{"rng": 0, "verbose": False} | arguments)
    assert digest(adata) == before


def test_free_bits_and_another_beta_go_with_categories():
    for settings in ({"beta": 2.0}, {"training": TrainingConfig(epochs=2, free_bits=0.2)}):
        model = scvae.fit(simulated(), network=CATEGORIES, **SHORT | {"training": TrainingConfig(epochs=2)} | settings)
        assert np.isfinite(model.outcome.held_out_elbo)


@pytest.mark.parametrize(
    ("kind", "tool", "name"),
    [
        ("codes", lambda adata, model: scvae.tl.prune(adata, model), "prune"),
        ("codes", lambda adata, model: scvae.tl.map_query(adata, model), "map_query"),
        ("codes", lambda adata, model: scvae.tl.log_likelihood(adata, model, kind="density"), "log_likelihood"),
        ("codes", lambda adata, model: scvae.tl.log_likelihood(adata, model, refine=2), "log_likelihood"),
        ("codes", lambda adata, model: scvae.tl.embed(adata, model, refine=2), "embed"),
    ],
)
def test_tools_that_do_not_know_groups_refuse_them(kind, tool, name, digest):
    adata, model = fitted(kind)
    before = digest(adata)
    with pytest.raises(ValueError, match=rf"which scvae\.tl\.{name}.* does not know"):
        tool(adata, model)
    assert digest(adata) == before


def test_the_record_has_the_prior_in_written_coordinates():
    adata, model = fitted("categories")
    prior = model.network.prior
    centre, within = prior.centre.detach().numpy(), prior.state_dict()["log_variance"].exp().numpy()
    covariance = np.cov(centre.T, ddof=0) + np.diag(within.mean(0))
    expected = np.sqrt(np.diag(model.metric.matrix.T @ covariance @ model.metric.matrix))
    np.testing.assert_allclose(adata.uns["scvae"]["prior_sd"], expected, rtol=0.05)
    np.testing.assert_allclose(adata.uns["scvae"]["prior_mean"], model.written(centre.mean(0)), atol=0.1)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (CODES, "'quantized' has no β to tune"),
        (CATEGORIES, "latent='categorical' needs one β for each model; pass method='sweep'"),
        (NetworkConfig(prior="mixture"), "prior='mixture' needs one β for each model; pass method='sweep'"),
        (NetworkConfig(skip="plain"), "skip='plain' needs one β for each model; pass method='sweep'"),
    ],
)
def test_a_path_over_beta_is_refused_where_a_network_knows_one(network, said, digest):
    before = digest(adata := simulated())
    with pytest.raises(ValueError, match=re.escape(said)):
        scvae.tune_beta(adata, network=network, betas=[0.5, 1], verbose=False)
    assert digest(adata) == before


def test_several_processes_are_refused(monkeypatch):
    class Two(Alone):
        world = 2

    _, model = fitted("codes")
    monkeypatch.setattr(scvae.training.train, "ranks", Two)
    with pytest.raises(ValueError, match="trained in one process, but there are 2"):
        scvae.training.train.make_step(model.network, None, None, TRAINING, None)


def test_codes_go_into_the_file_of_the_cells_and_leave_with_the_model(tmp_path):
    path = tmp_path / "cells.h5ad"
    simulated().write_h5ad(path)
    scvae.fit(path, batch_key="batch", network=CODES, **SHORT)
    whole, _ = fitted("codes")
    held = anndata.read_h5ad(path)
    np.testing.assert_array_equal(held.obs["scvae_code"].astype(str), whole.obs["scvae_code"].astype(str))
    scvae.fit(path, batch_key="batch", **SHORT | {"training": TrainingConfig(epochs=1)})
    assert "scvae_code" not in anndata.read_h5ad(path).obs
