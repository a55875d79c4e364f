"""What `scvae tune-beta` draws: the rate-distortion curve, and the page with UMAPs along β."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.keys import Keys

if TYPE_CHECKING:
    from anndata import AnnData

    from ..inference.fitted import FittedModel


def draw_curve(adata: AnnData, key_added: str, path: Path) -> None:
    """Draws the rate-distortion curve into a file."""
    from matplotlib.figure import Figure

    from ..pl import rate_distortion

    figure = Figure(figsize=(9.5, 4), layout="constrained")  # pyplot would look for a display
    rate_distortion(adata, key_added=key_added, ax=figure.subplots(1, 2), save=path)


def check_explorer(given: argparse.Namespace) -> None:
    """Refuses an explorer that is no page, or of a sweep."""
    if given.explorer.suffix.lower() not in {".html", ".htm"}:
        raise ValueError(f"--explorer {given.explorer} is not an HTML file; end its name in .html")
    if getattr(given, "method", "path") == "sweep":
        raise ValueError("--explorer needs one model for all β, but --method sweep fits one for each; leave one out")


def explore(adata: AnnData, model: FittedModel, keys: Keys, given: argparse.Namespace) -> Any:
    """Writes the explorer and returns its UMAPs."""
    from ..pl import beta_explorer
    from ..tl import beta_embeddings

    beta_embeddings(adata, model, rng=model.seed, key_added=given.key_added, verbose=not given.quiet)
    color = getattr(given, "labels_key", None)
    beta_explorer(adata, color=color, key_added=given.key_added, save=given.explorer)
    return adata.obsm[keys.beta_umaps]
