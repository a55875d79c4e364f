"""Reference cells that travel with a model in its file: latents, labels, a UMAP and names, but no counts."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..common.checks import listing
from ..common.html import named_values, page
from ..common.keys import Keys

if TYPE_CHECKING:
    from anndata import AnnData

PREFIX = "reference."  # of the names of its tensors in a file
LONGEST = 1_000  # bytes of a name, on average, so that a few bytes cannot become many


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """The cells of a reference as `FittedModel.save` keeps them. `FittedModel.reference` has it after `scvae.load`.

    Parameters
    ----------
    mean, variance
        float16 posterior means and variances, cells x n_latent, in the coordinates of the embedding: those of
        ``obsm["X_scvae"]``, rounded to 11 bits.
    beta
        The β of the embedding.
    labels
        The columns of labels: a pandas Categorical each, missing where a cell has no label.
    umap
        float32 coordinates of the cells on the reference's own UMAP, cells x 2; None without one.
    packed
        uint8: names of the cells as compressed JSON, which `ids` unpacks; None if they were not kept.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> model = scvae.fit(adata, n_latent=5, rng=0, verbose=False)
    >>> reference = scvae.load(model.save("ref.safetensors", reference=adata, labels=["cell_type"])).reference
    >>> len(reference), list(reference.labels)
    (200, ['cell_type'])
    >>> reference.to_adata().obsm["X_scvae"].shape
    (200, 5)
    """

    mean: Float[np.ndarray, "cells latent"]
    variance: Float[np.ndarray, "cells latent"]
    beta: float
    labels: Mapping[str, pd.Categorical]
    umap: Float[np.ndarray, "cells 2"] | None = None
    packed: UInt8[np.ndarray, " bytes"] | None = None

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def ids(self) -> pd.Index:
        """The names of the cells, or their positions as text if names were not kept."""
        return pd.RangeIndex(len(self)).astype(str) if self.packed is None else unpacked(self.packed, len(self))

    @property
    def bytes_per_cell(self) -> float:
        """Bytes that a cell takes in the file."""
        return sum(values.nbytes for values in self._arrays().values()) / len(self)

    def to_adata(self, *, key_added: str = "scvae") -> AnnData:
        """The cells as an AnnData without genes, to plot them or to look up cells by their names.

        Parameters
        ----------
        key_added
            Name used in the slots, as in `scvae.tl.embed` and `scvae.tl.place`.

        Returns
        -------
        AnnData
            Labels in `obs`; float32 ``obsm["X_<key_added>"]``, ``obsm["X_<key_added>_var"]`` and, with a UMAP,
            ``obsm["X_<key_added>_umap"]``.
        """
        from anndata import AnnData

        keys = Keys(key_added)
        matrices = {keys.mean: self.mean.astype(np.float32), keys.variance: self.variance.astype(np.float32)}
        if self.umap is not None:
            matrices[keys.umap] = self.umap.copy()
        nothing = sp.csr_matrix((len(self), 0), dtype=np.float32)  # without X, anndata would not concatenate it
        return AnnData(nothing, obs=pd.DataFrame(dict(self.labels), index=self.ids), obsm=matrices)

    def in_words(self) -> str:
        """What is in the reference, in one line."""
        with_umap = "" if self.umap is None else ", UMAP"
        return f"{len(self):,} cells{''.join(f', {key}' for key in self.labels)}{with_umap}"

    def summary(self) -> pd.Series:
        """What is in the reference.

        Returns
        -------
        pandas.Series
            Named values.
        """
        kinds = {
            key: f"{len(values.categories)} labels in {(values.codes >= 0).sum():,} cells"
            for key, values in self.labels.items()
        }
        rows = {
            "cells": f"{len(self):,}",
            "latent dimensions": f"{self.mean.shape[1]}, means and variances (float16)",
            **kinds,
            "UMAP": "no" if self.umap is None else "yes",
            "names of cells": "no" if self.packed is None else "yes",
            "β": f"{self.beta:g}",
            "bytes per cell": f"{self.bytes_per_cell:.1f}",
        }
        return pd.Series(rows, name="reference", dtype=object)

    def __repr__(self) -> str:
        rows = self.summary()
        width = max(map(len, rows.index))
        return "Reference\n" + "\n".join(f"  {name:<{width}}  {value}" for name, value in rows.items())

    def _repr_html_(self) -> str:
        return page("Reference", named_values(dict(self.summary())))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that a file holds; the rest is in `to_json`."""
        return {PREFIX + name: torch.from_numpy(np.array(values)) for name, values in self._arrays().items()}

    def _arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        named: dict[str, Any] = {"mean": self.mean, "variance": self.variance}
        named |= {f"label.{i}": values.codes for i, values in enumerate(self.labels.values())}
        if self.umap is not None:
            named["umap"] = self.umap
        if self.packed is not None:
            named["ids"] = self.packed
        return named

    def to_json(self) -> dict[str, Any]:
        """The part that JSON holds."""
        labels = [{"key": key, "names": list(values.categories)} for key, values in self.labels.items()]
        return {"beta": self.beta, "labels": labels, "umap": self.umap is not None, "ids": self.packed is not None}

    @classmethod
    def taken_from(cls, tensors: dict[str, Tensor], record: dict[str, Any] | None) -> Reference | None:
        """The reference in a file, whose tensors are removed from `tensors`; None if it has none.

        Raises
        ------
        ValueError
            If its parts are missing or do not belong together.
        """
        if record is None:
            return None
        try:
            arrays = {
                name.removeprefix(PREFIX): tensors.pop(name).numpy()
                for name in [name for name in tensors if name.startswith(PREFIX)]
            }
            labels = {
                each["key"]: pd.Categorical.from_codes(arrays[f"label.{i}"], each["names"])
                for i, each in enumerate(record["labels"])
            }
            found = cls(
                mean=arrays["mean"],
                variance=arrays["variance"],
                beta=record["beta"],
                labels=labels,
                umap=arrays["umap"] if record["umap"] else None,
                packed=arrays["ids"] if record["ids"] else None,
            )
            found._check()
        except (KeyError, TypeError, ValueError, zlib.error) as error:
            raise ValueError(f"its reference is damaged ({error})") from error
        return found

    def _check(self) -> None:
        """Raises ValueError if the parts do not have as many cells as the means."""
        parts = {"variances": self.variance, "umap": self.umap, "names": self.ids, **self.labels}
        wrong = [name for name, part in parts.items() if part is not None and len(part) != len(self)]
        if wrong:
            raise ValueError(f"{listing(wrong)} of other cells than the means")


def packed(ids: pd.Index) -> np.ndarray[Any, Any]:
    """The names as compressed JSON, uint8."""
    text = json.dumps([str(name) for name in ids], ensure_ascii=False, separators=(",", ":"))
    return np.frombuffer(zlib.compress(text.encode(), 9), np.uint8)


def unpacked(packed: np.ndarray[Any, Any], n_cells: int) -> pd.Index:
    """The inverse of `packed`; ValueError if the names are cut, or longer than names are."""
    stream = zlib.decompressobj()
    text = stream.decompress(packed.tobytes(), 2 + LONGEST * n_cells)
    if not stream.eof:
        raise ValueError("the names of its cells are cut, or too long")
    return pd.Index(json.loads(text), dtype=object)
