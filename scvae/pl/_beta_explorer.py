"""`beta_explorer`: an interactive UMAP with a slider for β, in Jupyter or as one HTML file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int16

from ..common.checks import MissingKeyError
from ..common.files import written_whole
from ..common.keys import Keys
from ..common.provenance import is_of
from ._explorer.colours import Colour, colours_of
from ._explorer.page import page
from ._figure import stored

if TYPE_CHECKING:
    from anndata import AnnData

    from ._explorer.widget import BetaExplorer

WRITER = "scvae.tl.beta_embeddings(adata, model)"
LARGEST = 32_767  # of int16


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """The data that the explorer shows.

    Parameters
    ----------
    record
        Everything except the arrays, in types that JSON can store.
    buffer
        The arrays, little-endian, one after the other: coordinates as int16, then each colour.
    """

    record: dict[str, Any]
    buffer: bytes


def beta_explorer(
    adata: AnnData,
    *,
    color: str | Sequence[str] | None = None,
    key_added: str = "scvae",
    save: str | os.PathLike[str] | None = None,
) -> BetaExplorer | None:
    """Shows the effect of β interactively: a slider moves the cells in the UMAP and the rate-distortion point.

    In Jupyter it is a widget (install ``scvae-torch[explorer]``); with `save` it is one HTML file that needs no
    network, no server and no installation. Both can play the path, colour by one of several columns, highlight a
    category when it is clicked, and name the cell under the pointer.

    Parameters
    ----------
    adata
        Cells with the results of `scvae.tl.beta_embeddings`, or a subset of them: ``adata[of_interest]``.
    color
        Columns of `obs`, categories or numbers, or genes (from `raw` if it has them, else from `X`) to choose from; the
        first is shown first. None takes the columns of `obs` that have 2 to 40 categories or are numeric, at most 12.
        All values of these columns and the names of the cells are in the file.
    key_added
        The `key_added` passed to `scvae.tl.beta_embeddings`.
    save
        HTML file to write instead, e.g. ``"explorer.html"``.

    Returns
    -------
    BetaExplorer or None
        The widget; None with `save`. Its ``beta`` and ``color`` follow the selection and can be set; use them as in
        ``scvae.tl.embed(adata, model, beta=widget.beta)``.

    Raises
    ------
    MissingKeyError
        If the UMAPs, or a column or gene in `color`, are missing.
    ValueError
        If no cell of `adata` has been laid out, or `save` does not end in .html.
    ImportError
        If no `save` is given and anywidget is not installed.

    Notes
    -----
    Categories take the colours in ``uns["<column>_colors"]``, where scanpy stores them; without these, up to 8
    categories get colour-blind-safe colours. With more than 40 categories, the smallest are merged into one. The colour
    scale of numbers ranges from the 1st to the 99th percentile of the values other than 0.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> model = scvae.fit(adata, beta=(0.1, 10), n_latent=5, rng=0, verbose=False)
    >>> scvae.tl.beta_embeddings(adata, model, betas=[0.1, 1, 10], verbose=False)
    >>> scvae.pl.beta_explorer(adata, color="cell_type", save="explorer.html")
    """
    keys = Keys(key_added)
    if save is not None and Path(save).suffix.lower() not in {".html", ".htm"}:
        raise ValueError(f"save is {str(save)!r}; the explorer is an HTML file, so pass a name that ends in .html")
    record = stored(adata, keys, keys.beta_embeddings, WRITER)
    if keys.beta_umaps not in adata.obsm:
        raise MissingKeyError(f"adata.obsm has no {keys.beta_umaps!r}; {WRITER} writes it")
    contents = _contents(adata, record, keys, colours_of(adata, color))
    if save is None:
        return _widget(contents)
    with written_whole(save) as temporary:
        temporary.write_text(page(contents.record, contents.buffer), encoding="utf-8")
    return None


def _contents(adata: AnnData, found: Mapping[str, Any], keys: Keys, colours: Sequence[Colour]) -> Contents:
    beta = np.asarray(found["beta"], dtype=float)
    umaps = np.asarray(adata.obsm[keys.beta_umaps], dtype=np.float32)
    if umaps.shape[1] != 2 * len(beta):
        raise ValueError(
            f"adata.obsm[{keys.beta_umaps!r}] has {umaps.shape[1]} columns, but {len(beta)} values of β need "
            f"{2 * len(beta)}; run scvae.tl.beta_embeddings again"
        )
    shown = np.flatnonzero(np.isfinite(umaps).all(axis=1))
    if not len(shown):
        raise ValueError(
            f"none of these {adata.n_obs:,} cells was laid out; run scvae.tl.beta_embeddings on them, if necessary "
            "with a larger max_cells"
        )
    places = _places(umaps[shown].reshape(len(shown), len(beta), 2))
    parts = [places.tobytes()]
    entries: list[dict[str, Any]] = []
    for colour in colours:
        entries.append(colour.record | {"offset": sum(map(len, parts))})
        values = colour.values[shown].astype(colour.values.dtype.newbyteorder("<")).tobytes()
        parts.append(values + b"\0" * (len(values) % 2))  # two-byte numbers must start at even offsets
    of_this_model = is_of(adata, keys, keys.beta_path, keys.beta_embeddings)
    recommended = _recommended(adata.uns[keys.uns].get(keys.beta_path) if of_this_model else None, beta)
    record = {
        "n_cells": len(shown),
        "betas": beta.tolist(),
        "rate": np.asarray(found["rate"], dtype=float).tolist(),
        "distortion": np.asarray(found["distortion"], dtype=float).tolist(),
        "recommended": recommended,
        "beta": recommended or float(beta[len(beta) // 2]),
        "names": adata.obs_names[shown].astype(str).tolist(),
        "extent": [int(np.abs(places[..., axis].astype(int)).max()) for axis in (0, 1)],
        "colors": entries,
        "note": _note(len(shown), adata.n_obs, len(beta), str(found["judged_on"])),
    }
    return Contents(record, b"".join(parts))


def _places(umaps: Float[np.ndarray, "cells betas 2"]) -> Int16[np.ndarray, "betas cells 2"]:
    """Centred coordinates as little-endian integers."""
    ends = np.stack([umaps.min(axis=(0, 1)), umaps.max(axis=(0, 1))])
    centred = umaps - ends.mean(axis=0)
    scale = LARGEST / max(float(np.abs(centred).max()), float(np.finfo(np.float32).tiny))
    return np.ascontiguousarray(np.rint(centred * scale).transpose(1, 0, 2), dtype="<i2")


def _recommended(table: Any, beta: Float[np.ndarray, " betas"]) -> float | None:
    """The β that `scvae.tune_beta` recommends, if it was run and this β is in the range shown."""
    if table is None:
        return None
    value = float(np.asarray(table["beta"])[np.asarray(table["recommended"], dtype=bool)][0])
    return value if beta[0] <= value <= beta[-1] else None


def _note(n_shown: int, n_cells: int, n_betas: int, judged_on: str) -> str:
    cells = f"{n_shown:,} cells" if n_shown == n_cells else f"{n_shown:,} of {n_cells:,} cells"
    return (
        f"{cells}, aligned UMAPs at {n_betas} values of β; positions in between are interpolated. "
        f"Distances between clusters mean little in a UMAP. Rate and distortion: mean of {judged_on}."
    )


def _widget(contents: Contents) -> BetaExplorer:
    try:
        from ._explorer.widget import BetaExplorer
    except ImportError as error:
        raise ImportError(
            f"the explorer in Jupyter needs anywidget ({error}): pip install 'scvae-torch[explorer]'. Without it, "
            "save='explorer.html' writes a file that any browser can open"
        ) from error
    return BetaExplorer(contents.record, contents.buffer)
