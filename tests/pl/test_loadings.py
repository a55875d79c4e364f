"""`pl.loadings` draws the genes at both ends of each dimension."""

import matplotlib as mpl
import numpy as np
import pytest

import scvae
from scvae.common.checks import MissingKeyError
from tests.pl import records

mpl.use("Agg")

from matplotlib import pyplot as plt


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def bars(axes):
    return [bar.get_width() for bar in axes.patches]


def names(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


@pytest.mark.parametrize("linear", [False, True])
def test_the_genes_most_raised_and_most_lowered_are_drawn_in_order(linear):
    adata = records.with_effects(linear=linear)
    values = adata.varm["scvae_loadings" if linear else "scvae_effects"]
    axes = scvae.pl.loadings(adata, n_genes=6, show=False)
    assert len(axes) == 6
    for dimension, panel in enumerate(axes):
        column = np.sort(values[:, dimension])
        np.testing.assert_allclose(bars(panel), [*column[:3], *column[-3:]])
        assert panel.get_xlabel() == f"change of log proportion per {'unit of z' if linear else 'SD'}"
        assert panel.get_title(loc="left").startswith(f"dimension {dimension} (")
    genes = adata.var_names[np.argsort(values[:, 0])[-3:]]
    assert [name.split("…")[0] for name in names(axes[0])[-3:]] == [g if len(g) <= 20 else g[:13] for g in genes]


def test_loadings_of_a_linear_decoder_come_before_effects():
    adata = records.with_effects(linear=True)
    adata.varm["scvae_effects"] = -adata.varm["scvae_loadings"]
    panel, *_ = scvae.pl.loadings(adata, dimensions=[0], show=False)
    assert panel.get_xlabel().endswith("unit of z")
    np.testing.assert_allclose(bars(panel)[-1], adata.varm["scvae_loadings"][:, 0].max())


def test_genes_without_an_effect_are_not_listed_and_one_side_may_be_longer():
    adata = records.with_effects()
    adata.varm["scvae_effects"][:, 0] = 0
    adata.varm["scvae_effects"][[4, 5, 8, 10], 0] = [-1, 1, 2, 3]
    panel, *_ = scvae.pl.loadings(adata, dimensions=[0], n_genes=10, show=False)
    assert bars(panel) == [-1, 1, 2, 3]
    panel, *_ = scvae.pl.loadings(adata, dimensions=[0], n_genes=4, show=False)
    assert bars(panel) == [-1, 1, 2, 3]
    panel, *_ = scvae.pl.loadings(adata, dimensions=[0], n_genes=3, show=False)
    assert bars(panel) == [-1, 2, 3]


@pytest.mark.parametrize(
    ("likelihood", "what"), [("bernoulli", "logit"), ("gaussian", "value"), ("poisson", "log proportion")]
)
def test_the_change_is_named_after_the_likelihood(likelihood, what):
    adata = records.with_effects()
    adata.uns["scvae"]["params"]["likelihood"] = likelihood
    panel, *_ = scvae.pl.loadings(adata, show=False)
    assert panel.get_xlabel() == f"change of {what} per SD"


def test_as_many_dimensions_are_drawn_as_there_are_axes():
    given = plt.subplots(1, 2)[1]
    assert scvae.pl.loadings(records.with_effects(), ax=given) == tuple(given)
    single = plt.subplots()[1]
    assert scvae.pl.loadings(records.with_effects(), dimensions=[3], ax=single) == (single,)
    with pytest.raises(ValueError, match="1 axes; pass 2"):
        scvae.pl.loadings(records.with_effects(), dimensions=[3, 4], ax=single)


def test_what_is_missing_is_named_with_the_tool_that_writes_it():
    with pytest.raises(MissingKeyError, match=r"neither 'scvae_loadings'.*run scvae.tl.latent_genes\(adata, model\)"):
        scvae.pl.loadings(records.trained())
    pruned = records.with_effects()
    for key in ("X_scvae", "X_scvae_var"):
        pruned.obsm[key] = pruned.obsm[key][:, :4]
    with pytest.raises(ValueError, match=r"has 10 dimensions and .* has 4"):
        scvae.pl.loadings(pruned)
    with pytest.raises(ValueError, match="n_genes is 0"):
        scvae.pl.loadings(records.with_effects(), n_genes=0)


def test_effects_measured_by_the_tool_are_drawn():
    adata = scvae.datasets.simulate(n_cells=60, n_genes=20, rng=0, truth=False)
    model = scvae.fit(adata, n_latent=2, rng=0, verbose=False, training=scvae.TrainingConfig(epochs=3))
    table = scvae.tl.latent_genes(adata, model, n_genes=1)
    panel, *_ = scvae.pl.loadings(adata, dimensions=[1], n_genes=2, show=False)
    assert names(panel) == table[table["dimension"] == 1].sort_values("effect")["gene"].tolist()
