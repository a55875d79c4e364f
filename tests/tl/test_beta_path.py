"""One training, every β: what a model of many β promises."""

import itertools
import math

import anndata as ad
import numpy as np
import pytest
import torch

import scvae
from scvae import NetworkConfig, TrainingConfig
from scvae.data.intake import read_query
from scvae.inference.posterior import batches_of, log_likelihood_bound, posterior_moments
from scvae.model.latent.posterior import DiagonalNormal
from scvae.model.objective import Terms, evidence_terms, loss
from scvae.training.checkpoint import Progress

RANGE = (0.1, 10.0)
HEADS = ["nb", "zinb", "poisson", "bernoulli", "gaussian"]


def simulated(likelihood="nb", n_cells=300, **options):
    defaults = {"n_genes": 60, "n_types": 4, "mean_library": 3000.0, "signal": 2.5, "truth": False, "rng": 0}
    return scvae.datasets.simulate(n_cells=n_cells, likelihood=likelihood, **defaults | options)


def fit(adata, *, beta=RANGE, network=None, epochs=40, **options):
    defaults = {"n_latent": 4, "rng": 1, "verbose": False}
    training = TrainingConfig(epochs=epochs, batch_size=64, **options.pop("training", {}))
    network = network or NetworkConfig(width=32)
    return scvae.fit(adata, beta=beta, network=network, training=training, **defaults | options)


@pytest.fixture(scope="module")
def path():
    """Cells and a model of many β; not to be changed."""
    adata = simulated()
    return adata, fit(adata)


def rate(model, adata, beta):
    mean, variance = posterior_moments(model, read_query(adata, model.schema), beta=beta)
    return 0.5 * (mean**2 + variance - 1 - np.log(variance)).sum(1).mean()


def distortion(model, adata, beta):
    cells = read_query(adata, model.schema)
    elbo = log_likelihood_bound(model, cells, kind="elbo", n_samples=20, seed=0, beta=beta)
    return -elbo.mean() - rate(model, adata, beta)


# what turning β does


@pytest.mark.parametrize("likelihood", HEADS)
def test_rate_falls_and_distortion_rises_along_beta(likelihood):
    # a deep count of no overdispersion says so much that 60 epochs are far too few
    adata = simulated(likelihood, mean_library=300.0 if likelihood == "poisson" else 3000.0)
    model = fit(adata, likelihood=likelihood, epochs=60)
    rates = [rate(model, adata, beta) for beta in (0.1, 0.5, 2.0, 10.0)]
    distortions = [distortion(model, adata, beta) for beta in (0.1, 10.0)]
    assert all(a > b for a, b in itertools.pairwise(rates)), rates
    assert rates[0] > 1.5 * rates[-1]
    assert distortions[0] < distortions[1]


def test_the_embedding_moves_continuously_with_beta(path):
    adata, model = path
    cells = read_query(adata, model.schema)
    near = [posterior_moments(model, cells, beta=beta)[0] for beta in (0.999, 1.0, 1.001)]
    far = posterior_moments(model, cells, beta=3.0)[0]
    step = max(np.abs(near[0] - near[1]).max(), np.abs(near[1] - near[2]).max())
    assert 0 < step < 0.02 * np.abs(far - near[1]).max() + 1e-4


@pytest.fixture(scope="module")
def real():
    """Cells to train on, cells held out of everything, and a model of many β of the former."""
    adata = scvae.datasets.pbmc3k()
    detected = np.asarray((adata.X > 0).sum(0)).ravel()
    adata = adata[:, detected >= np.sort(detected)[-400]].copy()
    train, test = adata[np.arange(adata.n_obs) % 4 > 0].copy(), adata[::4].copy()
    return train, test, scvae.fit(train, beta=RANGE, rng=1, verbose=False)


@pytest.mark.slow
@pytest.mark.parametrize(("beta", "margin"), [(0.1, 1.5), (1.0, 1.5), (10.0, 3.0)])
def test_the_objective_on_new_cells_is_near_that_of_a_model_of_this_beta_alone(real, beta, margin):
    train, test, many = real
    one = scvae.fit(train, beta=beta, n_latent=many.n_latent, rng=1, verbose=False)
    found = [distortion(model, test, beta) + beta * rate(model, test, beta) for model in (many, one)]
    assert found[0] < found[1] + margin


# the loss


def test_each_cell_pays_its_own_beta():
    log_likelihood, kl = torch.tensor([-5.0, -7.0]), torch.tensor([[1.0, 2.0], [0.5, 0.0]])
    weight = torch.tensor([0.75, 0.25])
    terms = Terms(log_likelihood, kl, weight @ log_likelihood, torch.zeros(2, 2), DiagonalNormal(kl, kl))
    value = loss(terms, weight, beta=torch.tensor([2.0, 8.0]))
    assert value.item() == pytest.approx(0.75 * (5 + 2 * 3) + 0.25 * (7 + 8 * 0.5))


def test_draws_of_the_latent_keep_the_beta_of_their_cell(path):
    adata, model = path
    log_beta = torch.linspace(math.log(0.1), math.log(10.0), 8)
    _, batch = next(batches_of(model, read_query(adata[:8], model.schema), 8))
    z = torch.randn(3, 8, model.n_latent, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = model.network.features(z.flatten(0, 1), batch.at(model.network.betas, log_beta)).view(3, 8, -1)
        for i in range(8):
            _, one = next(batches_of(model, read_query(adata[i : i + 1], model.schema), 1, beta=math.exp(log_beta[i])))
            torch.testing.assert_close(model.network.features(z[:, i], one), together[:, i], atol=1e-5, rtol=1e-5)


def test_every_part_of_the_network_hears_of_beta_in_training(path):
    adata, model = path
    _, batch = next(batches_of(model, read_query(adata[:64], model.schema), 64))
    noise = torch.zeros(64, model.n_latent)
    terms = evidence_terms(
        model.network, batch.at(model.network.betas, model.network.betas.spread(64)), noise, torch.full((64,), 1 / 64)
    )
    loss(terms, torch.full((64,), 1 / 64), beta=1.0).backward()
    gates = {name: p.grad for name, p in model.network.named_parameters() if name.endswith("logit")}
    model.network.zero_grad()
    assert set(gates) == {"encoder.gates.0.logit", "decoder.gates.0.logit"}
    assert all(gradient.abs().max() > 0 for gradient in gates.values())


# the public calls


def test_fit_writes_the_embedding_at_beta_one_and_says_what_it_is(path):
    adata, model = path
    again = adata.copy()
    scvae.tl.embed(again, model, beta=1.0)
    np.testing.assert_allclose(adata.obsm["X_scvae"], again.obsm["X_scvae"], atol=1e-6)
    scvae.tl.embed(again, model)
    np.testing.assert_allclose(adata.obsm["X_scvae"], again.obsm["X_scvae"], atol=1e-6)
    np.testing.assert_array_equal(adata.uns["scvae"]["params"]["beta"], RANGE)
    assert adata.uns["scvae"]["beta_attained"] == 1.0
    assert model.beta == RANGE
    assert "0.1 to 10" in repr(model)


def test_a_range_without_one_is_embedded_at_its_geometric_middle():
    adata = simulated(n_cells=60)
    model = fit(adata, beta=(2, 8), epochs=2)
    assert model.beta_of(None) == pytest.approx(4.0)
    assert adata.uns["scvae"]["beta_attained"] == pytest.approx(4.0)


@pytest.mark.parametrize("call", [scvae.tl.embed, scvae.tl.log_likelihood], ids=["embed", "log_likelihood"])
@pytest.mark.parametrize("beta", [0.05, 10.1, 0.0, -1.0, math.nan, "1"])
def test_a_beta_outside_the_range_is_refused_and_nothing_is_written(path, call, beta, digest):
    adata, model = path
    before = digest(adata)
    with pytest.raises((ValueError, TypeError), match="beta"):
        call(adata, model, beta=beta)
    assert digest(adata) == before


def test_a_plain_model_takes_its_own_beta_and_no_other():
    adata = simulated(n_cells=60)
    model = fit(adata, beta=0.5, epochs=2)
    scvae.tl.embed(adata, model, beta=0.5)
    with pytest.raises(ValueError, match=r"trained at β = 0.5 alone; leave beta out, or fit .*beta=\(0.5, 2\)"):
        scvae.tl.embed(adata, model, beta=2.0)


def test_likelihoods_differ_between_betas_and_each_is_reproducible(path):
    adata, model = path
    low, high, again = (scvae.tl.log_likelihood(adata, model, beta=b, n_samples=20) for b in (0.1, 10.0, 0.1))
    np.testing.assert_array_equal(low, again)
    assert low.mean() > high.mean() + 1.0


def test_a_saved_model_keeps_its_range(path, tmp_path):
    adata, model = path
    loaded = scvae.load(model.save(tmp_path / "path.safetensors"))
    assert loaded.beta == RANGE
    cells = read_query(adata, model.schema)
    for beta in (0.1, 0.7, 10.0):
        for found, expected in zip(
            posterior_moments(loaded, cells, beta=beta), posterior_moments(model, cells, beta=beta), strict=True
        ):
            np.testing.assert_array_equal(found, expected)


def test_the_record_survives_an_h5ad_file(path, tmp_path):
    adata, _ = path
    adata.write_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(ad.read_h5ad(tmp_path / "a.h5ad").uns["scvae"]["params"]["beta"], RANGE)


def test_the_same_seed_gives_identical_bytes_also_after_a_stop(tmp_path):
    adata = simulated(n_cells=100)
    whole = fit(adata, epochs=6)
    stopped = tmp_path / "run.ckpt"
    real = Progress.keep_weights

    def stop(progress, *rest, **more):
        real(progress, *rest, **more)
        if progress.epoch == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "keep_weights", stop)
        with pytest.warns(UserWarning, match="interrupted"):
            fit(adata, epochs=6, checkpoint=stopped, training={"checkpoint_every": 2})
    resumed = fit(adata, epochs=6, checkpoint=stopped, training={"checkpoint_every": 2})
    for a, b in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_every_normalisation_and_several_layers_can_have_many_betas(norm):
    adata = simulated()
    network = NetworkConfig(width=32, norm=norm, encoder_layers=2, decoder_layers=2, encode_conditions=True)
    model = fit(adata, network=network, batch_key="batch", epochs=30)
    assert rate(model, adata, 0.1) > rate(model, adata, 1.0) > rate(model, adata, 10.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": (0.1,)}, "beta has 1 values"),
        ({"beta": (0.1, 1, 10)}, "beta has 3 values"),
        ({"beta": (10, 0.1)}, "smaller first"),
        ({"beta": (1, 1)}, "smaller first"),
        ({"beta": (0, 1)}, "the lower beta is 0"),
        ({"beta": (1, math.inf)}, "the upper beta is inf"),
        ({"network": NetworkConfig(decoder="linear")}, "one β"),
        ({"training": {"free_bits": 0.1}}, "free_bits needs a single β"),
        ({"training": {"capacity": 3.0}}, "capacity needs a single β"),
    ],
)
def test_a_range_that_cannot_be_trained_is_refused(options, message, digest):
    adata = simulated(n_cells=60)
    before = digest(adata)
    with pytest.raises(ValueError, match=message):
        fit(adata, **options)
    assert digest(adata) == before
