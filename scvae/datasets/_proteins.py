"""Simulated surface proteins: background on every cell, foreground on the cells that carry the protein."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.special import expit

from ._decoder import Decoder
from ._random import Codes, Floats, Stream, Streams, log_normal

BACKGROUND = 5.0  # median over proteins of the unspecific antibody counts on any cell
FOREGROUND = 100.0  # median over proteins of the specific counts on a cell that carries the protein
SPREAD = 0.5  # standard deviation over proteins of the logs of both
CELL_SPREAD = 0.3  # standard deviation over cells of the log of their size
STEEPNESS = 8.0  # per standard deviation of the hidden signal: few cells carry a protein partially
SHARES = (0.1, 0.6)  # smallest and largest share of cells that carry a protein
INVERSE_DISPERSION = 10.0


def add_proteins(
    adata: AnnData, n_proteins: int, codes: Codes, n_batches: int, batch_effect: float, stream: Streams
) -> None:
    """Draws counts of `n_proteins` and writes them, their means and the foreground's share of the means to ``obsm``.

    Each protein depends on z through a random network h, thresholded at a quantile q over the cells: the share carried
    is c = sigmoid(8 (h - q)), and counts are NB(mean = s_i exp(B_bp) (background_p + c_ip foreground_p), theta = 10)
    with the cell's size s_i and the batch's offset B.
    """
    z: Any = adata.obsm["z"]
    decoder = Decoder.draw(z.shape[1], n_proteins, n_batches, 1.0, 0.0, batch_effect, stream(Stream.PROTEINS, 0))
    proteins = stream(Stream.PROTEINS, 1)
    background = log_normal(BACKGROUND, SPREAD, n_proteins, proteins)
    foreground = log_normal(FOREGROUND, SPREAD, n_proteins, proteins)
    shares = proteins.uniform(*SHARES, n_proteins)
    carried = _carried(decoder, z, shares) * foreground
    size = log_normal(1.0, CELL_SPREAD, len(z), stream(Stream.PROTEINS, 2))
    mean = size[:, None] * np.exp(decoder.batch_offset[codes]) * (background + carried)
    draw = stream(Stream.PROTEINS, 3)
    counts = draw.poisson(draw.gamma(INVERSE_DISPERSION, mean / INVERSE_DISPERSION))

    def table(values: np.ndarray) -> pd.DataFrame:
        names = [f"protein_{p}" for p in range(n_proteins)]
        return pd.DataFrame(values.astype(np.float32), index=adata.obs_names, columns=names)

    adata.obsm["protein"] = table(counts)
    adata.obsm["protein_mean"] = table(mean)
    adata.obsm["protein_foreground"] = table(carried / (background + carried))


def _carried(decoder: Decoder, z: Floats, shares: np.ndarray) -> np.ndarray:
    """Degree to which each cell carries each protein, in [0, 1]: cells x proteins."""
    hidden = decoder(z, np.zeros(len(z), np.int64))  # one batch for all: batches affect counts, not proteins carried
    cut = np.array([np.quantile(column, 1 - share) for column, share in zip(hidden.T, shares, strict=True)])
    carried: np.ndarray = expit(STEEPNESS * (hidden - cut))
    return carried
