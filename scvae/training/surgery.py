"""Adds categories to a fitted network: old parameters are kept, new ones are marked so that only they are trained.

After Lotfollahi et al. 2022 ("Mapping single-cell data to reference atlases by transfer learning"). A new category has
weights wherever the conditions enter, and a shift in the encoder's first layer even if the encoder does not see the
categories of the fit. Without the shift, cells of another technology are mistaken for other types (of nuclei mapped
onto cells of the pancreas, 0.51 are labelled correctly without it and 0.63 with it; of four other batches, 0.87 to 0.95
without, and 0.004 to 0.03 more with it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from ..data.schema import Schema
from ..inference.fitted import FittedModel
from ..inference.trained import range_of
from ..model.encoder import Encoder
from ..model.vae import VAE, make_model

COVARIATES, SHIFTS = "encoder.covariates.weight", "encoder.shifts.weight"
CLASSIFIER = "classifier."


@dataclass(frozen=True, eq=False, slots=True)
class Grown:
    """A network for more categories.

    Parameters
    ----------
    network
        For the wider schema; for the old categories it gives the same output as the old network.
    new
        Mask of the new entries, for each parameter that has any.
    """

    network: VAE
    new: dict[str, Bool[Tensor, "..."]]


@dataclass(frozen=True, slots=True)
class _Origin:
    """Initial value of a slice of a grown parameter: the mean of these slices of the old one, or 0 without any."""

    slices: tuple[int, ...]
    is_new: bool

    def among(self, place: Mapping[int, int]) -> _Origin:
        """The same for a parameter that has only some of the slices, with its own numbering."""
        return _Origin(tuple(place[i] for i in self.slices if i in place), self.is_new)


def grown(model: FittedModel, schema: Schema) -> Grown:
    """The network of `model` for a schema with more categories and the same genes; `model` is unchanged.

    New weights start at the mean over the categories of the fit, so that a cell of a new category is at first treated
    as one of an average category. Shifts of the encoder start at 0 if the categories of the fit have none.
    """
    network = make_model(
        schema, model.likelihood, model.n_latent, model.network_config, model.seed, range_of(model.beta)
    ).to(model.device)
    assert isinstance(network.encoder, Encoder)
    conditions = _origins(model.schema, schema)
    before, after = model.network.conditions, network.conditions
    place = {column: i for i, column in enumerate(before.fitted.tolist())}
    fitted = [conditions[column].among(place) for column in after.fitted.tolist()]
    groups = conditions[: len(schema.batch.categories)] if schema.batch else []
    old, new = model.network.state_dict(), {}
    for name, tensor in network.state_dict().items():
        if name == SHIFTS or (name.startswith(CLASSIFIER) and name not in old):
            continue
        if tensor.shape == old[name].shape:
            tensor.copy_(old[name])
            continue
        if name.startswith(CLASSIFIER):  # labels that the model did not know start at 0
            tensor[..., : old[name].shape[-1]] = old[name]
            continue
        by_batch = "log_inverse_dispersion" in name or "log_background" in name
        origins = groups if by_batch else fitted if name == COVARIATES else conditions
        new[name] = _fill(tensor, old[name], origins)
    if network.encoder.shifts is not None:
        # covariate weights of the fit, from which new shifts start, then the shifts of categories mapped earlier
        n_seen = len(place) if network.encode_conditions else 0
        rows = [old[COVARIATES][len(old[COVARIATES]) - n_seen :], *([old[SHIFTS]] if SHIFTS in old else [])]
        place = dict(zip([*place][:n_seen] + before.mapped.tolist(), range(n_seen + len(before.mapped)), strict=True))
        mapped = [conditions[column].among(place) for column in after.mapped.tolist()]
        new[SHIFTS] = _fill(network.encoder.shifts.weight, torch.cat(rows), mapped)
    return Grown(network.eval(), new)


def _origins(before: Schema, after: Schema) -> list[_Origin]:
    """One origin for each column of the wider condition vector."""
    origins, start = [], 0
    mapped = before.mapped_columns
    for old, new in zip(before.categoricals, after.categoricals, strict=True):
        known = range(start, start + len(old.categories))
        origins += [_Origin((i,), is_new=False) for i in known]
        fitted = tuple(i for i in known if i not in mapped)
        origins += [_Origin(fitted, is_new=True)] * (len(new.categories) - len(old.categories))
        start += len(old.categories)
    return origins + [_Origin((start + i,), is_new=False) for i in range(len(after.numeric))]


@torch.no_grad()
def _fill(tensor: Tensor, old: Tensor, origins: Sequence[_Origin]) -> Bool[Tensor, "..."]:
    """Fills a grown parameter, whose last slices along that axis have these origins; returns a mask of new entries."""
    axis = next((i for i, n in enumerate(tensor.shape) if n != old.shape[i]), 0)
    n_others = tensor.shape[axis] - len(origins)
    tensor.narrow(axis, 0, n_others).copy_(old.narrow(axis, 0, n_others))
    is_new = torch.zeros_like(tensor, dtype=torch.bool)
    for place, origin in enumerate(origins, start=n_others):
        source = old.index_select(axis, torch.tensor(origin.slices, device=old.device, dtype=torch.int64) + n_others)
        tensor.select(axis, place).copy_(source.mean(axis) if origin.slices else torch.zeros((), device=old.device))
        is_new.select(axis, place).fill_(origin.is_new)
    return is_new
