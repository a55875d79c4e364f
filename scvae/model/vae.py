"""The variational autoencoder: encoder, decoder and likelihood head combined."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..common.rng import torch_generator
from ..config import Inference, NetworkConfig, ViewLikelihood
from ..data.batches import Batch
from ..data.beta_range import BetaRange
from ..data.schema import Schema
from ..kernels.autograd import WeightedLogProb, repeat_cells
from ..kernels.block import Dense
from ..kernels.csr import CSR
from ..likelihoods import Likelihood, make_likelihood
from ..likelihoods.base import OutputLayer, dense
from .classifier import Classifier
from .conditions import Conditions
from .decoder import Decoder, LinearDecoder
from .encoder import Encoder
from .latent.choice import make_prior
from .latent.posterior import DiagonalNormal
from .latent.prior import Prior
from .per_cell import PerCell
from .skip import Skip
from .views import Seen, ViewLayers, of_present

INITIAL_WEIGHTS = 0  # stream of random numbers


class VAE(nn.Module):
    """q(z | x, s), p(x | z, s) and p(z); in a model of a range of β, both at the β of the batch.

    Genes that were not measured are imputed for the encoder with their expected values under the decoder, at the
    prior's mean. They do not contribute to the likelihood.

    If several rows of z belong to one cell (draws of its latent variables), row i belongs to cell i % cells.

    Further measurements of the cells have layers of their own in `views`, in the order of `Batch.views`. A batch
    without any is of cells that lack them all.
    """

    def __init__(
        self,
        encoder: Encoder | PerCell,
        decoder: Decoder | LinearDecoder,
        likelihood: Likelihood,
        conditions: Conditions,
        prior: Prior,
        *,
        encode_conditions: bool,
        betas: BetaRange | None = None,
        classifier: Classifier | None = None,
        views: Sequence[ViewLayers] = (),
    ) -> None:
        super().__init__()
        self.encode_conditions, self.betas = encode_conditions, betas
        self.encoder, self.decoder, self.likelihood, self.conditions = encoder, decoder, likelihood, conditions
        self.prior, self.classifier = prior, classifier
        self.views = nn.ModuleList(views)

    @property
    def n_latent(self) -> int:
        """Number of latent dimensions."""
        return self.encoder.n_latent

    @property
    def n_noise(self) -> int:
        """Standard normal numbers for each cell in a training step."""
        return self.n_latent + self.prior.n_noise

    @property
    def is_amortized(self) -> bool:
        """Whether an encoder gives the posteriors."""
        return not isinstance(self.encoder, PerCell)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def encode(self, batch: Batch, generator: torch.Generator | None = None) -> DiagonalNormal:
        """q(z | x, s) of each cell; passing a generator turns dropout on."""
        batch = self.shallow(batch)
        if isinstance(self.encoder, PerCell):
            own: DiagonalNormal = self.encoder(self, batch)
            return own
        further = [layers.seen(of_view) for layers, of_view in self.with_layers(batch)]
        if batch.missing is None:
            return self._posterior(self.likelihood.encoder_input(batch), further, batch, generator)
        with torch.no_grad():  # missing genes are imputed at the prior's mean first, then at the posterior's mean
            z = self.prior.mean.repeat(len(batch), 1)
            z = self._posterior(self._filled_in(batch, batch.missing, z), further, batch, None).mean
            filled = self._filled_in(batch, batch.missing, z)
        return self._posterior(filled, further, batch, generator)

    def with_layers(self, batch: Batch) -> Iterator[tuple[ViewLayers, Batch]]:
        """The layers of each further measurement that the batch has, with the batch of this measurement."""
        for layers, view in zip(self.views, batch.views, strict=False):
            assert isinstance(layers, ViewLayers)
            yield layers, batch.of_view(view)

    def shallow(self, batch: Batch) -> Batch:
        """The batch, with cells of mapped categories no deeper than those of the fit (see `Likelihood.shallow`)."""
        if not len(self.conditions.mapped):
            return batch
        mapped = self.conditions.of_mapped(batch.codes)
        shallow = [layers.head.shallow(of_view, mapped) for layers, of_view in self.with_layers(batch)]
        views = [
            dataclasses.replace(view, x=of_view.x, library=of_view.library)
            for view, of_view in zip(batch.views, shallow, strict=True)
        ]
        return dataclasses.replace(self.likelihood.shallow(batch, mapped), views=tuple(views))

    def encode_expected(self, z: Float[Tensor, "cells latent"], batch: Batch) -> DiagonalNormal:
        """q of the decoder's expected values at z, for the conditions and library sizes of the batch.

        The values of the batch are not used. Gradients flow to the encoder only, and dropout is off.
        """
        with torch.no_grad():
            features = self.features(z, batch)
            batch = self.whole(features, batch)
            seen = _expected(self.likelihood, features, batch)
            further = [_expected(layers.head, features, of_view) for layers, of_view in self.with_layers(batch)]
        return self._posterior(seen, further, batch, None)

    def _posterior(
        self, seen: Seen, further: Sequence[Seen], batch: Batch, generator: torch.Generator | None
    ) -> DiagonalNormal:
        """q, given what the encoder sees of the first measurement and of each further one."""
        assert not isinstance(self.encoder, PerCell)
        x, covariates = of_present(seen, batch.present)
        covariates, mapped = self._with_conditions(covariates, batch)
        added = None
        for (layers, of_view), (values, beside) in zip(self.with_layers(batch), further, strict=True):
            assert of_view.present is not None
            left = values.with_values(self.encoder.input_dropout(values.values, generator))
            term = layers.first_layer(left, beside, of_view.present)
            added = term if added is None else added + term
        return self.prior.inferred(self.encoder(x, covariates, generator, batch.knots, mapped, added))

    def first_layer(
        self, x: CSR | Dense, covariates: Float[Tensor, "cells covariates"], batch: Batch
    ) -> Float[Tensor, "cells width"]:
        """The outputs of the encoder's first layer for values as the encoder sees them (`Likelihood.encoder_input`)."""
        assert not isinstance(self.encoder, PerCell)
        return self.encoder.first_layer(x, *self._with_conditions(covariates, batch))

    def _with_conditions(
        self, covariates: Float[Tensor, "cells covariates"], batch: Batch
    ) -> tuple[Float[Tensor, "cells all"], Float[Tensor, "cells mapped"] | None]:
        assert not isinstance(self.encoder, PerCell)
        mapped = None
        if self.encode_conditions or self.encoder.shifts is not None:
            conditions = self.conditions(batch)
            if self.encode_conditions:
                covariates = torch.cat([covariates, conditions[:, self.conditions.fitted]], dim=1)
            if self.encoder.shifts is not None:
                mapped = conditions[:, self.conditions.mapped]
        return covariates, mapped

    def _filled_in(
        self, batch: Batch, missing: Int[Tensor, " missing"], z: Float[Tensor, "cells latent"]
    ) -> tuple[Dense, Float[Tensor, "cells covariates"]]:
        """Input of the encoder, with the missing genes and the library size imputed at z."""
        expected, share = self.likelihood.expected_input(self.features(z, batch), batch, missing)
        whole = dataclasses.replace(batch, library=batch.library / share)
        x, covariates = self.likelihood.encoder_input(whole)
        return Dense(dense(x).index_copy(1, missing, expected)), covariates

    def whole(self, features: Float[Tensor, "cells features"], batch: Batch) -> Batch:
        """The cells with their expected library size over all genes of the model, given that of the measured genes."""
        if batch.missing is None:
            return batch
        share = self.likelihood.expected_input(features, batch, batch.missing)[1]
        return dataclasses.replace(batch, library=batch.library / share)

    def features(self, z: Float[Tensor, "rows latent"], batch: Batch) -> Float[Tensor, "rows features"]:
        """The decoder's output for each row of z."""
        draws, knots = z.shape[0] // max(len(batch), 1), batch.knots
        conditions, z = self.conditions(batch).repeat(draws, 1), self.prior.decoded(z)
        x = None if self.decoder.skip is None else self.likelihood.encoder_input(batch)[0]
        features: Tensor = self.decoder(z, conditions, None if knots is None else knots.repeat(draws, 1), x)
        return features

    def drop_dimensions(self, dropped: Bool[Tensor, " latent"], constant: Float[Tensor, " latent"]) -> None:
        """Removes latent dimensions; the decoder fixes them at the given values."""
        assert isinstance(self.encoder, Encoder)
        dropped, constant = dropped.to(self.device), constant.to(self.device)
        self.encoder.drop_dimensions(dropped)
        self.prior.drop_dimensions(dropped)
        if self.classifier is not None:
            self.classifier.drop_dimensions(dropped, constant)
        self.decoder.drop_dimensions(dropped, constant)
        for layer in self.modules() if self.decoder.z_is_feature else ():
            if isinstance(layer, OutputLayer):
                layer.drop_features(dropped, constant)

    def loadings(self) -> Float[Tensor, "genes latent"] | None:
        """Gene loadings of a linear decoder, per unit of each latent dimension (see `Likelihood.loadings`), or None."""
        if not isinstance(self.decoder, LinearDecoder):
            return None
        return self.likelihood.loadings[:, : self.n_latent]

    def log_likelihood(
        self, z: Float[Tensor, "rows latent"], batch: Batch, row_weight: Float[Tensor, "rows"]
    ) -> WeightedLogProb:
        """log p(x | z, s) of each row in nats, summed over genes, and the weighted total that carries the gradient.

        Further measurements are added; the total has their weights in training.
        """
        if not self.views:
            return self.likelihood.log_prob(self.features(z, batch), batch, row_weight)
        terms = self.log_likelihoods(z, batch, row_weight)
        weights = [1.0, *(layers.term_weight for layers, _ in self.with_layers(batch))]
        total = torch.stack([weight * term.total for weight, term in zip(weights, terms, strict=True)]).sum()
        return WeightedLogProb(total, torch.stack([term.per_row for term in terms]).sum(0))

    def log_likelihoods(
        self, z: Float[Tensor, "rows latent"], batch: Batch, row_weight: Float[Tensor, "rows"]
    ) -> list[WeightedLogProb]:
        """The log-likelihoods of the first measurement and of each further one that the batch has, 0 in cells without.

        As in `log_likelihood`, but without the weights in training.
        """
        features = self.features(z, batch)
        heads = [(self.likelihood, batch), *((layers.head, of_view) for layers, of_view in self.with_layers(batch))]
        return [_of_present(head, features, batch, row_weight) for head, batch in heads]


def _expected(head: Likelihood, features: Float[Tensor, "cells features"], batch: Batch) -> Seen:
    x, covariates = head.expected_encoder_input(features, batch)
    return Dense(x), covariates


def _of_present(
    head: Likelihood, features: Float[Tensor, "rows features"], batch: Batch, row_weight: Float[Tensor, "rows"]
) -> WeightedLogProb:
    """The log-likelihood of a measurement, 0 in cells that lack it."""
    if batch.present is None:
        return head.log_prob(features, batch, row_weight)
    present = repeat_cells(batch.present, len(row_weight)).to(row_weight)
    total, per_row = head.log_prob(features, batch, row_weight * present)
    return WeightedLogProb(total, per_row * present)


def make_model(
    schema: Schema,
    likelihood: ViewLikelihood,
    n_latent: int,
    config: NetworkConfig,
    seed: int,
    betas: BetaRange | None = None,
    inference: Inference = "amortized",
) -> VAE:
    """A VAE with random initial weights for the genes and conditions of `schema`, for one β or a range of β."""
    n_knots, labels = betas.n_knots if betas else 0, schema.labels
    generator = torch_generator(seed, INITIAL_WEIGHTS)
    conditions = Conditions(
        tuple(len(column.categories) for column in schema.categoricals),
        len(schema.numeric),
        mapped=schema.mapped_columns,
    )
    decoder = _make_decoder(schema, n_latent, conditions, config, n_knots, generator)
    make_head = partial(_make_head, schema=schema, decoder=decoder, config=config, betas=betas, generator=generator)
    head = make_head(likelihood, len(schema.genes))
    encoder = (
        PerCell(n_latent, seed)
        if inference == "per_cell"
        else _make_encoder(schema, n_latent, conditions, config, n_knots, head.n_encoder_covariates, generator)
    )
    prior = make_prior(config, n_latent, generator)
    views = [
        ViewLayers(
            make_head(view.likelihood, len(view.features)),
            len(view.features),
            width=config.width,
            term_weight=view.weight,
            generator=generator,
        )
        for view in schema.views
    ]
    network = VAE(
        encoder,
        decoder,
        head,
        conditions,
        prior,
        encode_conditions=config.encode_conditions,
        betas=betas,
        classifier=(
            Classifier(n_latent, torch.from_numpy(labels.members), term_weight=labels.weight) if labels else None
        ),
        views=views,
    )
    for layer in network.modules():
        if isinstance(layer, OutputLayer):
            layer.suit(
                weight_sd=decoder.weight_sd,
                weight_rate=decoder.weight_rate,
                n_conditions=n_knots + conditions.n_columns,
            )
    return network


def _make_decoder(
    schema: Schema,
    n_latent: int,
    conditions: Conditions,
    config: NetworkConfig,
    n_knots: int,
    generator: torch.Generator,
) -> Decoder | LinearDecoder:
    if config.decoder == "linear":
        return LinearDecoder(n_latent, n_conditions=conditions.n_columns)
    return Decoder(
        n_latent,
        width=config.width,
        n_layers=config.decoder_layers,
        n_conditions=conditions.n_columns,
        norm=config.norm,
        n_knots=n_knots,
        z_to_every=config.z_to == "every",
        skip=_make_skip(schema, n_latent, config, generator),
        generator=generator,
    )


def _make_head(
    name: ViewLikelihood,
    n_features: int,
    *,
    schema: Schema,
    decoder: Decoder | LinearDecoder,
    config: NetworkConfig,
    betas: BetaRange | None,
    generator: torch.Generator,
) -> Likelihood:
    """The head of one measurement on the decoder."""
    n_batches = len(schema.batch.categories) if schema.batch else 1
    return make_likelihood(
        name,
        decoder.n_features,
        n_features,
        n_groups=n_batches if config.dispersion == "gene-batch" else 1,
        n_backgrounds=n_batches,
        betas=betas,
        minimum_scale=config.minimum_scale,
        generator=generator,
    )


def _make_encoder(
    schema: Schema,
    n_latent: int,
    conditions: Conditions,
    config: NetworkConfig,
    n_knots: int,
    n_covariates: int,
    generator: torch.Generator,
) -> Encoder:
    return Encoder(
        len(schema.genes),
        n_latent,
        width=config.width,
        n_layers=config.encoder_layers,
        n_covariates=n_covariates + (len(conditions.fitted) if config.encode_conditions else 0),
        n_mapped=len(conditions.mapped),
        dropout=config.dropout,
        input_dropout=config.input_dropout,
        norm=config.norm,
        n_knots=n_knots,
        generator=generator,
    )


def _make_skip(schema: Schema, n_latent: int, config: NetworkConfig, generator: torch.Generator) -> Skip | None:
    if config.skip == "none":
        return None
    gated, n_genes = config.skip == "gated", len(schema.genes)
    return Skip(n_genes, n_latent, width=config.width, gated=gated, norm=config.norm, generator=generator)
