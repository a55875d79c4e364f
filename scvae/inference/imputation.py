"""Prediction of a further measurement of cells from the others that they have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..common.rng import numpy_generator, torch_generator
from ..data.batches import Batch
from ..data.cells import Cells
from ..data.libraries import LibrarySizes
from .decoding import Drawn, posterior_draws
from .fitted import FittedModel
from .views import facing

MEASURED, VALUES = 55, 56  # random streams: how cells are measured, and their values
TABLES = 6.0  # in memory per draw: means, values, and what sorting takes


@dataclass(frozen=True, slots=True, eq=False)
class Predicted:
    """Draws of a measurement of some cells.

    Parameters
    ----------
    positions
        Positions of the cells.
    means
        Expected values of each draw of z, of its batch and its library size.
    values
        A value drawn for each of them.
    """

    positions: Int[np.ndarray, " cells"]
    means: Float[Tensor, "draws cells features"]
    values: Float[Tensor, "draws cells features"]


def predictions(
    model: FittedModel, cells: Cells, place: int, *, n_samples: int, seed: int, beta: float | None, n_tables: float
) -> Iterator[Predicted]:
    """Draws of the further measurement at `place` from its distribution given the others, chunk by chunk.

    A cell of a batch without this measurement is measured, in each draw, as in one of the batches that have it, drawn
    by their numbers of cells. The library size of counts is not known either: it is drawn among those of the fit.

    Parameters
    ----------
    model
        A fitted model.
    cells
        Cells with at least one other measurement.
    n_samples
        Number of draws.
    seed
        Seed of the draws.
    beta
        As in `FittedModel.beta_of`.
    n_tables
        As in `posterior_draws`.
    """
    view, libraries = cells.views[place], model.view_libraries[place]
    absent = replace(view, present=np.zeros(len(cells), dtype=bool), missing=None)
    others = replace(cells, views=(*cells.views[:place], absent, *cells.views[place + 1 :]))
    seen = facing(model, place)
    has_library = seen.schema.kind != "real"
    draws = posterior_draws(seen, others.turned(place), n_samples=n_samples, seed=seed, beta=beta, n_tables=n_tables)
    for chunk, drawn in enumerate(draws):
        rng = numpy_generator(seed, MEASURED, chunk)
        generator = torch_generator(seed, VALUES, chunk, device=model.device)
        means, values = [], []
        for z in drawn.z:
            batch = _as_measured(drawn, libraries, rng, has_library=has_library)
            law = seen.network.likelihood.distribution(seen.network.features(z, batch), batch)
            means.append(law.mean)
            values.append(law.sample(generator))
        yield Predicted(drawn.positions, torch.stack(means), torch.stack(values))


def central(
    values: Float[Tensor, "draws cells features"], levels: Float[Tensor, " levels"]
) -> Iterator[tuple[Float[Tensor, "cells features"], Float[Tensor, "cells features"]]]:
    """Ends of the central interval of each level.

    They are the quantiles of the draws by which a further draw is in the interval with this probability, whatever their
    number: the k-th smallest of n is that of probability k / (n + 1).
    """
    ordered, n = values.sort(dim=0).values, len(values)

    def quantile(probability: Float[Tensor, ""]) -> Float[Tensor, "cells features"]:
        place = (probability * (n + 1) - 1).clamp(0, n - 1)
        below = int(place)
        return torch.lerp(ordered[below], ordered[min(below + 1, n - 1)], (place - below).to(ordered.dtype))

    for level in levels:
        yield quantile(0.5 - level / 2), quantile(0.5 + level / 2)


def _as_measured(drawn: Drawn, libraries: LibrarySizes, rng: np.random.Generator, *, has_library: bool) -> Batch:
    """The cells in a batch that has the measurement, with a library size of this batch."""
    batch = drawn.batch
    codes = libraries.measured(batch.group.cpu().numpy(), rng)
    if batch.has_batch:
        placed = batch.codes.clone()
        placed[:, 0] = torch.from_numpy(codes).to(placed)
        batch = replace(batch, codes=placed)
    share = rng.random(len(batch))
    if not has_library:
        return batch
    return replace(batch, library=torch.from_numpy(libraries.at(codes, share)).to(batch.library))
