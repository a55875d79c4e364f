"""`sample`: posterior predictive draws of given cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from ..common.checks import check_positive_int
from ..common.keys import Keys
from ..common.rng import SeedLike, seed_of, torch_generator
from ..inference.cells import read_cells
from ..inference.decoding import posterior_draws
from ..inference.drawing import TABLES, Values, draw_values, drawn_cells, stacked
from ..inference.fitted import FittedModel, check_model
from ..kernels.context import working_on

if TYPE_CHECKING:
    from anndata import AnnData

VALUES = 51  # stream of the random numbers that draw values


def sample(
    adata: AnnData,
    model: FittedModel,
    *,
    n_samples: int = 1,
    beta: float | None = None,
    layer: str | None = None,
    key_added: str = "scvae",
    rng: SeedLike = 0,
) -> AnnData:
    """Draws cells like given ones: x' ~ p(x | z, s) with z ~ q(z | x), the posterior predictive distribution.

    What the model takes each cell to be, measured once more, at the same library size and in the same batch. Compared
    with the cells themselves it shows what the model misses (Gelman, Meng & Stern 1996); `scvae.tl.diagnose` does so.

    Parameters
    ----------
    adata
        Cells with raw data as at the fit; genes are matched by name. Genes that they lack are drawn on top of the
        library size, which is that of the measured ones. Not written to.
    model
        A fitted model.
    n_samples
        Draws a cell, each with a z of its own.
    beta
        Of a model of many β, that of the posterior and the decoder; None for 1 (or the geometric middle of a range
        without 1).
    layer
        Layer that holds the data, ``"X"`` for `X`; None for where the fit found them.
    key_added
        Name of the slots written.
    rng
        Seed or numpy Generator.

    Returns
    -------
    AnnData
        New cells, n_samples x cells of `adata` x modelled genes: all cells once, all cells again, and so on. Extra
        zeros of ``"zinb"`` are drawn too. Slots:

        ``X``
            float32 values drawn, CSR (dense for real values); also in the layer that the model reads, if it has one.
        ``obs``
            that of `adata`, and ``"<key_added>_cell"`` and ``"<key_added>_draw"``: the cell, and the number of the draw
            from 0. Names are those of the cells, with ``_0``, ``_1``, … for several draws.
        ``obsm["X_<key_added>"]``
            float32 z drawn, cells x n_latent.
        ``uns["<key_added>"]["drawn"]``
            ``source`` ("posterior"), ``n_samples``, ``beta`` and ``seed``.

    Raises
    ------
    ValueError
        As `embed`; or if `n_samples` is below 1.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> model = scvae.fit(adata, n_latent=5, rng=0, verbose=False)
    >>> scvae.tl.sample(adata, model, n_samples=2).shape
    (400, 100)
    """
    check_model(model)
    keys = Keys(key_added)
    n_samples, seed = check_positive_int(n_samples, "n_samples"), seed_of(rng)
    at = model.beta_of(beta)
    cells = read_cells(adata, model, layer)
    values: list[list[Values]] = [[] for _ in range(n_samples)]
    latent = np.empty((n_samples, len(cells), model.n_latent), np.float32)
    draws = posterior_draws(model, cells, n_samples=n_samples, seed=seed, beta=at, n_tables=TABLES)
    with torch.no_grad(), working_on(model.device):
        for chunk, drawn in enumerate(draws):
            generator = torch_generator(seed, VALUES, chunk, device=model.device)
            for draw, z in enumerate(drawn.z):
                values[draw].append(draw_values(model, z, drawn.batch, generator))
                latent[draw, drawn.positions] = z.cpu().numpy()
    return drawn_cells(
        model,
        stacked([piece for pieces in values for piece in pieces], model.schema.kind),
        _obs(adata, n_samples, keys),
        obsm={keys.mean: latent.reshape(-1, model.n_latent)},
        uns={keys.uns: {keys.origin: {"source": "posterior", "n_samples": n_samples, "beta": at, "seed": seed}}},
    )


def _obs(adata: AnnData, n_samples: int, keys: Keys) -> pd.DataFrame:
    """`adata.obs` for every draw."""
    names = adata.obs_names.astype(str)
    obs = pd.concat([adata.obs] * n_samples)
    obs[keys.cell] = np.tile(names.to_numpy(object), n_samples)
    obs[keys.draw] = np.repeat(np.arange(n_samples), len(names))
    if n_samples > 1:
        obs.index = pd.Index([f"{name}_{draw}" for draw in range(n_samples) for name in names])
    return obs
