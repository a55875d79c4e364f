"""The settings of network and training, checked when created and stored with every result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from .common.checks import check_bool, check_choice, check_fraction, check_not_negative, check_positive_int

Norm = Literal["batch", "layer", "none"]
Decoder = Literal["mlp", "linear"]
Dispersion = Literal["gene", "gene-batch"]
Skip = Literal["none", "plain", "gated"]
LatentTo = Literal["first", "every"]
Inference = Literal["amortized", "per_cell"]

DEFAULT_N_LATENT = 10


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
    skip: Skip = "none"
    z_to: LatentTo = "first"

    def __post_init__(self) -> None:
        _check_each(self, check_positive_int, "width", "encoder_layers", "decoder_layers")
        _check_each(self, check_fraction, "dropout", "input_dropout")
        _check_each(self, check_not_negative, "minimum_scale")
        _check_each(self, check_bool, "encode_conditions")
        choices_of = {"norm": Norm, "dispersion": Dispersion, "decoder": Decoder, "skip": Skip, "z_to": LatentTo}
        for name, choices in choices_of.items():
            check_choice(getattr(self, name), get_args(choices), f"NetworkConfig.{name}")
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


def to_json(config: NetworkConfig | TrainingConfig) -> dict[str, Any]:
    """The settings as a plain dict."""
    return dataclasses.asdict(config)


def _check_each(config: object, check: Callable[[object, str], float], *names: str, or_none: bool = False) -> None:
    """Checks settings by name, and keeps them as plain Python numbers."""
    for name in names:
        value = getattr(config, name)
        if value is not None or not or_none:
            object.__setattr__(config, name, check(value, f"{type(config).__name__}.{name}"))
