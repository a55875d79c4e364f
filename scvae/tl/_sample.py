"""`sample`: posterior predictive draws for given cells."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from jaxtyping import Float
from torch import Tensor

from ..common.checks import check_positive_int
from ..common.keys import Keys
from ..common.rng import SeedLike, seed_of, torch_generator
from ..data.batches import Batch
from ..inference.cells import read_cells, taking_mudata
from ..inference.decoding import posterior_draws
from ..inference.drawing import TABLES, Values, draw_values, drawn_cells, further_slots, stacked
from ..inference.fitted import FittedModel, check_model
from ..inference.needs import check_without_skip
from ..inference.views import facing
from ..kernels.context import computing, working_on

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

VALUES = 51  # random stream that draws values


@computing()
@taking_mudata
def sample(
    adata: AnnData | MuData,
    model: FittedModel,
    *,
    n_samples: int = 1,
    beta: float | None = None,
    layer: str | None = None,
    key_added: str = "scvae",
    rng: SeedLike = 0,
) -> AnnData:
    """Draws new values for given cells, x' ~ p(x | z, s) with z ~ q(z | x): the posterior predictive distribution.

    This simulates a repeated measurement of each cell under the model, with the same library size and batch. Comparing
    draws with the cells shows what the model misses (Gelman, Meng & Stern 1996), as `scvae.tl.diagnose` does.

    Parameters
    ----------
    adata
        Cells with raw data, as in the fit; genes are matched by name. The library size covers the measured genes;
        missing genes are drawn on top of it. `adata` is not changed.
    model
        A fitted model.
    n_samples
        Draws per cell, each with its own z.
    beta
        For a model with a range of β, the β of posterior and decoder; None for 1 (if the range excludes 1, its
        geometric mean).
    layer
        Layer with the data, ``"X"`` for `X` or ``"raw"`` for `raw`; None for the layer used in the fit.
    key_added
        Name used in the slots written.
    rng
        Seed or numpy Generator.

    Returns
    -------
    AnnData
        (n_samples x cells of `adata`) x modelled genes: all cells of the first draw, then of the second, and so on.
        Extra zeros of ``"zinb"`` are drawn too. Slots:

        ``X``
            float32 values drawn, CSR (dense for real values); also in the layer that the model reads, if it has one.
        ``obs``
            Columns of `adata`, plus ``"<key_added>_cell"`` (name of the cell) and ``"<key_added>_draw"`` (number of the
            draw, from 0). Names are those of the cells, with ``_0``, ``_1``, … appended for several draws.
        ``obsm["X_<key_added>"]``
            float32 draws of z, cells x n_latent, in the coordinates of the embedding.
        ``obsm[...]``
            With several measurements, float32 draws of each further one, in its slot of the fit. Cells that lack a
            measurement lack it in the draws: counts and 0/1 data are 0 throughout, real values NaN.
        ``uns["<key_added>"]["drawn"]``
            ``source`` ("posterior"), ``n_samples``, ``beta`` and ``seed``.

    Raises
    ------
    ValueError
        As for `embed`; if `n_samples` is below 1.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> model = scvae.fit(adata, n_latent=5, rng=0, verbose=False)
    >>> scvae.tl.sample(adata, model, n_samples=2).shape
    (400, 100)
    """
    check_model(model)
    check_without_skip(model, "scvae.tl.sample")
    keys = Keys(key_added)
    n_samples, seed = check_positive_int(n_samples, "n_samples"), seed_of(rng)
    at = model.beta_of(beta)
    cells = read_cells(adata, model, layer)
    schema = model.schema
    values: list[list[Values]] = [[] for _ in range(n_samples)]
    further: list[list[list[Values]]] = [[[] for _ in range(n_samples)] for _ in schema.views]
    latent = np.empty((n_samples, len(cells), model.n_latent), np.float32)
    draws = posterior_draws(model, cells, n_samples=n_samples, seed=seed, beta=at, n_tables=TABLES)
    with torch.no_grad(), working_on(model.device):
        for chunk, drawn in enumerate(draws):
            generator = torch_generator(seed, VALUES, chunk, device=model.device)
            for draw, z in enumerate(drawn.z):
                values[draw].append(_drawn(model, z, drawn.batch, generator))
                for place in range(len(schema.views)):
                    turned = drawn.batch.turned(place)
                    further[place][draw].append(_drawn(facing(model, place), z, turned, generator))
                latent[draw, drawn.positions] = z.cpu().numpy()
    obs = _obs(adata, n_samples, keys)
    slots = further_slots(model, [list(chain.from_iterable(of_view)) for of_view in further], obs.index)
    return drawn_cells(
        model,
        stacked(list(chain.from_iterable(values)), schema.kind),
        obs,
        obsm={keys.mean: model.written(latent.reshape(-1, model.n_latent))} | slots,
        uns={keys.uns: {keys.origin: {"source": "posterior", "n_samples": n_samples, "beta": at, "seed": seed}}},
    )


def _drawn(model: FittedModel, z: Float[Tensor, "cells latent"], batch: Batch, generator: torch.Generator) -> Values:
    """One draw for each cell that has the measurement."""
    values = draw_values(model, z, batch, generator)
    if batch.present is None or batch.present.all():
        return values
    here = batch.present.cpu().numpy()[:, None]
    if isinstance(values, np.ndarray):
        return np.where(here, values, np.float32(np.nan))
    return sp.csr_matrix(values.multiply(here))


def _obs(adata: AnnData, n_samples: int, keys: Keys) -> pd.DataFrame:
    """`adata.obs` repeated for every draw."""
    names = adata.obs_names.astype(str)
    obs = pd.concat([adata.obs] * n_samples)
    obs[keys.cell] = np.tile(names.to_numpy(object), n_samples)
    obs[keys.draw] = np.repeat(np.arange(n_samples), len(names))
    if n_samples > 1:
        obs.index = pd.Index([f"{name}_{draw}" for draw in range(n_samples) for name in names])
    return obs
