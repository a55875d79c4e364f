"""A fitted network given more categories: what it knew stays as it was, what is new is marked, so that it alone moves.

After Lotfollahi et al. 2022 ("Mapping single-cell data to reference atlases by transfer learning"). A new category has
weights wherever the conditions enter, and a shift of the encoder's first layer even where the encoder is blind to the
categories of the fit: without it, cells of another technology are taken for other types (of nuclei mapped onto cells of
the pancreas 0.51 are labelled rightly without the shift, 0.63 with it; of four other batches 0.87 to 0.95, and 0.004
to 0.03 more with it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from ..data.schema import Schema
from ..inference.fitted import FittedModel, range_of
from ..model.vae import VAE, make_model

COVARIATES, SHIFTS = "encoder.covariates.weight", "encoder.shifts.weight"


@dataclass(frozen=True, eq=False, slots=True)
class Grown:
    """A network for more categories.

    Parameters
    ----------
    network
        For the wider schema; of the old categories it says what the old network said.
    new
        Which entries are new, for each parameter that has any.
    """

    network: VAE
    new: dict[str, Bool[Tensor, "..."]]


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where one slice of a grown parameter comes from: the mean of these slices of the old one, or 0 without any."""

    slices: tuple[int, ...]
    is_new: bool

    def among(self, place: Mapping[int, int]) -> _Origin:
        """The same where only some slices are there, numbered anew."""
        return _Origin(tuple(place[i] for i in self.slices if i in place), self.is_new)


def grown(model: FittedModel, schema: Schema) -> Grown:
    """The network of `model` for a schema with more categories and the same genes; `model` stays as it is.

    New weights start as the mean over the categories that the model was fitted with, so that a cell of a new one is
    taken for one of an average category to begin with. Shifts of the encoder that these do not have start as 0.
    """
    network = make_model(
        schema, model.likelihood, model.n_latent, model.network_config, model.seed, range_of(model.beta)
    ).to(model.device)
    conditions = _origins(model.schema, schema)
    before, after = model.network.conditions, network.conditions
    place = {column: i for i, column in enumerate(before.fitted.tolist())}
    fitted = [conditions[column].among(place) for column in after.fitted.tolist()]
    groups = conditions[: len(schema.batch.categories)] if schema.batch else []
    old, new = model.network.state_dict(), {}
    for name, tensor in network.state_dict().items():
        if name == SHIFTS:
            continue
        if tensor.shape == old[name].shape:
            tensor.copy_(old[name])
            continue
        origins = groups if "log_inverse_dispersion" in name else fitted if name == COVARIATES else conditions
        new[name] = _fill(tensor, old[name], origins)
    if network.encoder.shifts is not None:
        # shifts of mapped categories stand behind those of the fit, whose rows among the covariates they start from
        n_seen = len(place) if network.encode_conditions else 0
        rows = [old[COVARIATES][len(old[COVARIATES]) - n_seen :], *([old[SHIFTS]] if SHIFTS in old else [])]
        place = dict(zip([*place][:n_seen] + before.mapped.tolist(), range(n_seen + len(before.mapped)), strict=True))
        mapped = [conditions[column].among(place) for column in after.mapped.tolist()]
        new[SHIFTS] = _fill(network.encoder.shifts.weight, torch.cat(rows), mapped)
    return Grown(network.eval(), new)


def _origins(before: Schema, after: Schema) -> list[_Origin]:
    """One for each column of the wider condition vector."""
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
    """Fills a grown parameter, whose last slices along the axis that grew have these origins; marks the new entries."""
    axis = next((i for i, n in enumerate(tensor.shape) if n != old.shape[i]), 0)
    n_others = tensor.shape[axis] - len(origins)
    tensor.narrow(axis, 0, n_others).copy_(old.narrow(axis, 0, n_others))
    is_new = torch.zeros_like(tensor, dtype=torch.bool)
    for place, origin in enumerate(origins, start=n_others):
        source = old.index_select(axis, torch.tensor(origin.slices, device=old.device, dtype=torch.int64) + n_others)
        tensor.select(axis, place).copy_(source.mean(axis) if origin.slices else torch.zeros((), device=old.device))
        is_new.select(axis, place).fill_(origin.is_new)
    return is_new
