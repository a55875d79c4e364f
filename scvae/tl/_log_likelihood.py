"""`log_likelihood`: how probable the model finds each cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from ..common.checks import check_choice, check_positive_int
from ..common.rng import SeedLike, seed_of
from ..inference.cells import read_cells
from ..inference.fitted import FittedModel, check_model
from ..inference.posterior import BoundKind, log_likelihood_bound

if TYPE_CHECKING:
    from anndata import AnnData


def log_likelihood(
    adata: AnnData,
    model: FittedModel,
    *,
    kind: BoundKind = "iw",
    n_samples: int = 100,
    beta: float | None = None,
    layer: str | None = None,
    rng: SeedLike = 0,
) -> pd.Series:
    """Lower bound on the log-likelihood log p(x) of each cell, all constants included.

    Parameters
    ----------
    adata
        Cells with raw data as at the fit; genes are matched by name.
    model
        A fitted model.
    kind
        ``"iw"``: importance-weighted (Burda et al. 2016, equation 8), which tends to log p(x) as `n_samples` grows;
        ``"elbo"``: evidence lower bound, its KL with a weight of 1 whatever β the model was trained with.
    n_samples
        Draws of the latent per cell. Memory does not grow with them.
    beta
        Of a model of many β, the one to judge; None for 1 (or the geometric middle of a range without 1).
    layer
        Layer that holds the data, ``"X"`` for `X`; None for where the fit found them.
    rng
        Seed or numpy Generator.

    Returns
    -------
    pandas.Series
        Nats per cell, summed over the modelled genes, indexed by `adata.obs_names`. Nothing is written to `adata`.

    Raises
    ------
    ValueError
        As `embed`.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> model = scvae.fit(adata, n_latent=5, rng=0, verbose=False)
    >>> bound = scvae.tl.log_likelihood(adata, model, kind="elbo")
    >>> tighter = scvae.tl.log_likelihood(adata, model, n_samples=100)
    >>> bool(bound.mean() < tighter.mean() < 0)
    True
    """
    check_model(model)
    check_choice(kind, ("iw", "elbo"), "kind")
    check_positive_int(n_samples, "n_samples")
    cells = read_cells(adata, model, layer)
    bound = log_likelihood_bound(model, cells, kind=kind, n_samples=n_samples, seed=seed_of(rng), beta=beta)
    return pd.Series(bound, index=cells.names, name=f"log_likelihood_{kind}")
