"""The settings of network, training and further measurements, checked when created."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from .common.checks import (
    check_bool,
    check_choice,
    check_fraction,
    check_not_negative,
    check_positive,
    check_positive_int,
)

if TYPE_CHECKING:
    from anndata import AnnData

Norm = Literal["batch", "layer", "none"]
Decoder = Literal["mlp", "linear"]
Dispersion = Literal["gene", "gene-batch"]
PriorName = Literal["normal", "mixture", "flow"]
Latent = Literal["normal", "quantized", "categorical"]
Relaxation = Literal["none", "gumbel", "straight_through"]
Skip = Literal["none", "plain", "gated"]
LatentTo = Literal["first", "every"]
Inference = Literal["amortized", "per_cell"]
LikelihoodName = Literal["nb", "zinb", "poisson", "bernoulli", "gaussian"]
ViewLikelihood = Literal["nb", "zinb", "poisson", "bernoulli", "gaussian", "nb_mixture"]
CHOICES = {
    "norm": Norm,
    "dispersion": Dispersion,
    "decoder": Decoder,
    "prior": PriorName,
    "latent": Latent,
    "relaxation": Relaxation,
    "skip": Skip,
    "z_to": LatentTo,
}

# latent dimensions by default: of a model of one β without batches or covariates, and of any other
N_LATENT, N_LATENT_WITH_CONDITIONS = 20, 10


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """Settings of encoder and decoder.

    Parameters
    ----------
    width
        Units of each hidden layer.
    encoder_layers, decoder_layers
        Hidden layers of the encoder and the decoder.
    decoder
        ``"mlp"``: a multilayer perceptron; ``"linear"``: a linear map from z and the conditions to the genes, with one
        loading per gene and latent dimension (a factor analysis with the chosen likelihood; for counts the "LDVAE" of
        Svensson et al. 2020).
    norm
        Normalisation of the hidden layers.
    dropout
        Share of the encoder's hidden units dropped in training.
    input_dropout
        Share of the encoder's input values dropped in training.
    encode_conditions
        Whether the encoder also receives batch and covariates; the decoder always does.
    dispersion
        ``"gene"``: one inverse dispersion per gene; ``"gene-batch"``: one per gene and batch (nb and zinb).
    minimum_scale
        For gaussian: lower bound of a gene's scale, as a fraction of its standard deviation.
    prior
        Law of the latent variables before the data are seen. ``"normal"``: N(0, I); ``"mixture"``: a mixture of
        diagonal normals, trained with the network; ``"flow"``: a normal variable moved through four affine couplings,
        trained with the network. See "Priors that are trained" in the documentation. Take ``"mixture"`` for tidy
        clusters (silhouette of types 0.31, by default 0.22, mean of five data sets) and soft clusters; where cells lie
        along a trajectory not with more than 10 components, which cut it into pieces. Take ``"flow"`` for an exact
        density without clusters. For new cells and for the likelihood alone leave N(0, I): every fit has a density of
        its cells, which does as well. On a CPU a mixture costs 3 % more seconds, a flow up to twice as many.
    prior_components
        With ``"mixture"``: number of components; None sets it from the number of cells (see
        `scvae.training.priors.default_components`).
    latent
        ``"normal"``: z with the prior N(0, I). ``"categorical"``: one of `n_categories` types for each cell, equally
        likely, and a normal z given the type, with means and variances that are learnt (see
        `scvae.model.latent.categorical.Categorical`). ``"quantized"``: the decoder sees the nearest of `n_codes` codes
        (a VQ-VAE, see `scvae.model.latent.codebook.Codebook`). Each cell then has a type in
        ``obs["scvae_category"]``, or a code in ``obs["scvae_code"]``. Take types for a likelier prior and a probability
        for each of a few types (held-out cells 1.8 to 2.3 nats likelier on three sets), not to find types of unequal
        size, since they are equally likely. Take codes for finitely many states or an exact log p(x), not for the
        embedding (held-out cells 8 nats less likely to 1 nat likelier) or for metacells.
    n_codes
        Number of codes with ``latent="quantized"``; None takes 64.
    n_categories
        Number of types with ``latent="categorical"``; None takes 10.
    relaxation
        How types are summed over in training with ``latent="categorical"``. ``"none"``: exactly, which costs little and
        has no noise. ``"gumbel"``: by weights from a Gumbel-softmax whose temperature falls from 1 to 0.3 (Jang et al.
        2017); ``"straight_through"``: by the type with the largest of these weights, with their gradient. Take them to
        compare with the literature.
    skip
        ``"none"``, or whether the decoder also reads the input of the encoder, past z: ``"plain"``, as it is (z then
        has little left to say, and collapses), or ``"gated"``, with each unit scaled and shifted by z. Such a model
        does not describe cells by z alone, and most tools refuse it: see "Skips and strong decoders" in the
        documentation. Take one to study collapse, not for an embedding: types are less clear with a gate, too.
    z_to
        Whether only the ``"first"`` layer of the decoder receives z, or ``"every"`` layer and the genes. Take
        ``"every"`` with several `decoder_layers` (three, on pbmc3k: 8.5 instead of 4 of 10 dimensions in use), not with
        one, where it changes little.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> linear = scvae.NetworkConfig(decoder="linear")
    >>> model = scvae.fit(adata, n_latent=5, network=linear, rng=0, verbose=False)
    >>> adata.varm["scvae_loadings"].shape
    (100, 5)
    """

    width: int = 128
    encoder_layers: int = 1
    decoder_layers: int = 1
    decoder: Decoder = "mlp"
    norm: Norm = "layer"
    dropout: float = 0.0
    input_dropout: float = 0.0
    encode_conditions: bool = False
    dispersion: Dispersion = "gene"
    minimum_scale: float = 0.1
    prior: PriorName = "normal"
    prior_components: int | None = None
    latent: Latent = "normal"
    n_codes: int | None = None
    n_categories: int | None = None
    relaxation: Relaxation = "none"
    skip: Skip = "none"
    z_to: LatentTo = "first"

    def __post_init__(self) -> None:
        _check_each(self, check_positive_int, "width", "encoder_layers", "decoder_layers")
        _check_each(self, check_fraction, "dropout", "input_dropout")
        _check_each(self, check_not_negative, "minimum_scale")
        _check_each(self, check_bool, "encode_conditions")
        _check_each(self, check_positive_int, "prior_components", "n_codes", "n_categories", or_none=True)
        for name, choices in CHOICES.items():
            check_choice(getattr(self, name), get_args(choices), f"NetworkConfig.{name}")
        _check_latent(self)
        if self.prior != "mixture" and self.prior_components is not None:
            raise ValueError(
                f"NetworkConfig.prior_components must be left out with prior={self.prior!r}, which has no components; "
                f"found {self.prior_components}."
            )
        if self.decoder == "linear" and self.decoder_layers != 1:
            raise ValueError(
                "NetworkConfig.decoder_layers must be left at 1 with decoder='linear', which has no hidden layer; "
                f"found {self.decoder_layers}."
            )
        if self.decoder == "linear" and (self.skip, self.z_to) != ("none", "first"):
            raise ValueError(
                "NetworkConfig.skip and z_to must be left at 'none' and 'first' with decoder='linear', whose genes are "
                f"linear in z alone; found {self.skip!r} and {self.z_to!r}."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How the objective is optimised.

    Parameters
    ----------
    epochs
        Passes over the training cells; None sets the number from that of the cells (see
        `scvae.training.recipe.default_epochs`).
    batch_size
        Cells per step (each epoch is split into nearly equal batches of about this size, so none is tiny); None takes
        128, or 256 for 10,000 or more training cells.
    learning_rate
        Peak of the one-cycle schedule of Adam; None sets it from the batch size (see
        `scvae.training.recipe.make_recipe`).
    validation_fraction
        Share of the cells held out for validation, at most 20,000 cells; 0 for none.
    memory
        GB of memory for values that are on disk (a file, a backed or dask-backed AnnData). If the values of the
        modelled genes need more, training reads them from disk in every epoch, in blocks of neighbouring cells that are
        shuffled within a window of about a quarter of this size.
    warmup
        Fraction of the run over which β rises linearly from 0 to its final value. None takes 0.1, or with batches or
        covariates 0.5, but at most 40 epochs.
    warmup_cycles
        Number of such rises within the warm-up; between two rises β stays at its final value for as long as a rise
        takes (Fu et al. 2019). Several cycles need a long warm-up, e.g. 0.5.
    patience
        Fraction of the run without a better validation objective after which training stops; None never stops early.
    free_bits
        Nats per latent dimension below which its KL (averaged over the batch) is not penalised (Kingma et al. 2016).
        With ``latent="categorical"`` the KL of the type is one more such term.
    capacity
        Target KL in nats per cell: the penalty is ``β |KL - capacity|``, and the target rises linearly during the
        warm-up (Burgess et al. 2018); None for the ELBO.
    consistency
        With batches or other covariates: weight, relative to the KL, of a penalty in nats on the difference between the
        posteriors of the same cell under two conditions (see `scvae.training.consistency.inconsistency`); 0 for the
        plain ELBO.
    checkpoint_every
        Epochs between two checkpoints, if a checkpoint is written.
    inference
        ``"amortized"``: an encoder gives the posterior q(z | x) of a cell; ``"per_cell"``: each training cell has a
        mean and a log variance of its own, trained with the decoder, and any other cell gets them by gradient ascent
        from the prior. Take the second as the reference for an encoder, not to embed cells: held-out cells are
        described no better, and each takes 8 to 11 ms. See "One posterior a cell" in the documentation.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> short = scvae.TrainingConfig(epochs=10, warmup=0.5)
    >>> model = scvae.fit(adata, n_latent=5, training=short, rng=0, verbose=False)
    >>> len(model.history)
    10
    """

    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    validation_fraction: float = 0.1
    memory: float = 1.0
    warmup: float | None = None
    warmup_cycles: int = 1
    patience: float | None = 0.5
    free_bits: float = 0.0
    capacity: float | None = None
    consistency: float = 1.0
    checkpoint_every: int = 1
    inference: Inference = "amortized"

    def __post_init__(self) -> None:
        _check_each(self, check_positive_int, "epochs", "batch_size", or_none=True)
        _check_each(self, check_positive_int, "checkpoint_every", "warmup_cycles")
        _check_each(self, check_fraction, "validation_fraction")
        _check_each(self, check_fraction, "warmup", or_none=True)
        _check_each(self, check_not_negative, "memory", "free_bits", "consistency")
        _check_each(self, check_not_negative, "learning_rate", "patience", "capacity", or_none=True)
        check_choice(self.inference, get_args(Inference), "TrainingConfig.inference")
        if self.warmup_cycles > 1 and self.warmup == 0.0:
            raise ValueError(
                f"TrainingConfig.warmup_cycles must be 1 without a warm-up; found {self.warmup_cycles} with warmup=0."
            )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class View:
    """A further measurement of the cells of a fit: where it is, and its likelihood.

    A cell takes part with what it has. It lacks this measurement if its row is missing from `mod`, is NaN throughout,
    is 0 throughout (counts and 0/1 data), or if `measured` says so.

    Parameters
    ----------
    obsm
        Slot of `obsm` with the values, cells x features: a DataFrame (its columns name the features), an array or a
        sparse matrix.
    mod
        A second AnnData with the values, in place of `obsm`; cells are matched by name. Later calls find them in
        ``obsm`` under the name of the view, or take a second AnnData, too.
    likelihood
        As in `scvae.fit`: ``"nb"``, ``"zinb"``, ``"poisson"``, ``"bernoulli"`` or ``"gaussian"``; and for counts of
        antibodies ``"nb_mixture"``: each cell has background, some have foreground (after Gayoso et al. 2021, totalVI),
        and `scvae.tl.denoise` removes the background.
    layer
        Layer of `mod`; None for its `X`.
    names
        Names of the features of an array or a sparse matrix, or the key of `uns` that has them. None names them by
        their position.
    measured
        Column of `obs` with a bool for each cell: whether it has this measurement. None if the values alone say it.
    weight
        Factor of its log-likelihood in training, > 0; 1 is the ELBO of all measurements together.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, n_proteins=8, rng=0)
    >>> view = scvae.View(obsm="protein", likelihood="nb")
    >>> model = scvae.fit(adata, also={"protein": view}, n_latent=5, rng=0, verbose=False)
    >>> model.schema.view_names
    ('rna', 'protein')
    """

    obsm: str | None = None
    mod: AnnData | None = None
    likelihood: ViewLikelihood = "nb"
    layer: str | None = None
    names: Sequence[str] | str | None = None
    measured: str | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_choice(self.likelihood, get_args(ViewLikelihood), "View.likelihood")
        if check_positive(self.weight, "View.weight") and (self.obsm is None) == (self.mod is None):
            found = "neither" if self.obsm is None else "both"
            raise ValueError(f"View takes obsm or mod, where its values are; found {found} of them.")
        if self.layer is not None and self.mod is None:
            raise ValueError(f"View.layer is a layer of mod, which is not given; found {self.layer!r}.")
        if self.names is not None and self.obsm is None:
            raise ValueError("View.names must be left out with mod, whose features have names.")


def _check_latent(config: NetworkConfig) -> None:
    """Raises an error for settings of discrete latent variables that would have no effect, or leave no choice."""
    if config.latent != "normal" and config.prior != "normal":
        raise ValueError(
            f"NetworkConfig.latent={config.latent!r} has a prior of its own; leave out prior={config.prior!r}."
        )
    for name, kind in (("n_codes", "quantized"), ("n_categories", "categorical")):
        n = getattr(config, name)
        if n is not None and config.latent != kind:
            raise ValueError(f"NetworkConfig.{name} needs latent={kind!r}; found {n} and latent={config.latent!r}.")
        if n is not None and n < 2:
            raise ValueError(f"NetworkConfig.{name} must be at least 2; found {n}.")
    if config.relaxation != "none" and config.latent != "categorical":
        raise ValueError(
            f"NetworkConfig.relaxation needs latent='categorical'; found relaxation={config.relaxation!r} and "
            f"latent={config.latent!r}."
        )


def to_json(config: NetworkConfig | TrainingConfig) -> dict[str, Any]:
    """The settings as a plain dict."""
    return dataclasses.asdict(config)


def _check_each(config: object, check: Callable[[object, str], float], *names: str, or_none: bool = False) -> None:
    """Checks settings by name, and keeps them as plain Python numbers."""
    for name in names:
        value = getattr(config, name)
        if value is not None or not or_none:
            object.__setattr__(config, name, check(value, f"{type(config).__name__}.{name}"))
