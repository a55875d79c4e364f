"""The reference of a model, made of labelled cells: embedded, with codes of their labels and a UMAP."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float

from ..common.checks import MissingKeyError, check_obs_column, listing, plain, speaking_of
from ..data.labels import labels_in
from ..data.sources import Paths, Source, entry_of_obsm, opened
from .cells import read_cells
from .posterior import posterior_moments
from .reference import Reference, packed
from .trained import Trained

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

USUAL = "X_umap"  # where scanpy keeps it
MOST_BYTES = 100  # of a cell, up to which its name is kept unasked
N_NEIGHBOURS, MIN_DIST = 15, 0.5  # scanpy's defaults for a UMAP


def reference_of(
    model: Trained,
    given: AnnData | MuData | Paths,
    *,
    labels: Sequence[str],
    umap: bool | str,
    ids: bool | None,
    layer: str | None,
    beta: float | None,
) -> Reference:
    """The reference of some cells; see `FittedModel.save` for the arguments and errors."""
    with speaking_of("reference"), opened(given, model.schema.layer_of(layer), first=model.schema.name) as source:
        adata = source.adata
        columns = {key: labels_in(check_obs_column(adata, key), f"adata.obs[{key!r}]") for key in labels}
        layout = _layout_in(source, umap) if umap else None
        names = None if ids is False else packed(_names_of(adata))
        beta = model.beta_of(beta)
        cells = read_cells(adata, model, layer, source.matrix)
        mean, variance = posterior_moments(model, cells, beta=beta)
    written = model.written(mean)
    variance = variance if model.metric is None else model.metric.variances(variance)
    if umap and layout is None:
        layout = _laid_out(written, model.seed)
    found = Reference(mean=_halved(written), variance=_halved(variance), beta=beta, labels=columns, umap=layout)
    named = replace(found, packed=names)
    return found if ids is None and named.bytes_per_cell > MOST_BYTES else named


def _names_of(adata: AnnData) -> pd.Index:
    names = pd.Index(adata.obs_names.astype(str), dtype=object)
    if names.has_duplicates:
        twice = listing(names[names.duplicated()].unique(), 3)
        raise ValueError(
            f"adata.obs_names has names of more than one cell ({twice}); call adata.obs_names_make_unique() first, or "
            "pass ids=False to keep none"
        )
    return names


def _layout_in(source: Source, umap: bool | str) -> Float[np.ndarray, "cells 2"] | None:
    """The coordinates in an entry of obsm; None if the usual one does not exist."""
    umap = plain(umap)
    key = USUAL if umap is True else umap
    if not isinstance(key, str):
        raise TypeError(f"umap is {umap!r}; pass True, False or the name of an entry of adata.obsm")
    try:
        found = np.asarray(entry_of_obsm(source, key), dtype=np.float32)
    except MissingKeyError:
        if umap is True:
            return None
        raise
    if found.ndim != 2 or found.shape[1] != 2 or not np.isfinite(found).all():
        raise ValueError(
            f"adata.obsm[{key!r}] of shape {found.shape} is no UMAP, which has two finite coordinates for each cell; "
            "pass the name of another entry"
        )
    return np.array(found, order="C")


def _laid_out(embedding: Float[np.ndarray, "cells latent"], seed: int) -> Float[np.ndarray, "cells 2"]:
    """A UMAP of the embedding with scanpy's settings."""
    if len(embedding) <= N_NEIGHBOURS:
        raise ValueError(
            f"reference has {len(embedding)} cells, but a UMAP needs more than {N_NEIGHBOURS}; leave umap out"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # umap warns that its TensorFlow part is missing
        import umap
    layout = umap.UMAP(n_neighbors=N_NEIGHBOURS, min_dist=MIN_DIST, random_state=seed % 2**32, n_jobs=1)
    return np.asarray(layout.fit_transform(embedding), dtype=np.float32)


def _halved(values: Float[np.ndarray, "cells latent"]) -> Float[np.ndarray, "cells latent"]:
    """The values in float16."""
    largest = np.abs(values).max(initial=0.0)
    if not largest <= np.finfo(np.float16).max:
        raise ValueError(
            f"the latent means or variances of the reference reach {largest:g}, which 16 bits cannot hold; the model "
            "has hardly a prior: fit it again with a larger beta"
        )
    return values.astype(np.float16)
