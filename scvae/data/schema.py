"""The schema of a fit: names and numbers, but no data, with which later data are read in the same way."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..config import ViewLikelihood
from .categories import spelling
from .labels import Labels

RNA = "rna"  # what a model with further measurements calls its genes, unless the modality has another name
Kind = Literal["counts", "binary", "real"]


@dataclass(frozen=True, slots=True)
class Categorical:
    """A column of `obs` read as categories.

    Parameters
    ----------
    key
        Name of the column.
    categories
        The categories in the order of their codes 0, 1, ...
    mapped
        The categories that were mapped onto a model fitted without them; the encoder has a shift for each.
    """

    key: str
    categories: tuple[str, ...]
    mapped: tuple[str, ...] = ()

    def codes(self, values: pd.Series) -> NDArray[np.int64]:
        """int64 code of the category of each value, -1 for an unknown one (see `data.categories` for the rule)."""
        exact = {name: code for code, name in enumerate(self.categories)}
        # models of version 0.1.0 may know both "1" and "1.0"
        known = {spelling(name): code for name, code in reversed(exact.items())} | exact
        which, names = pd.factorize(values.astype(object).map(str))
        codes = np.array([known.get(name, known.get(spelling(name), -1)) for name in names], dtype=np.int64)
        found: NDArray[np.int64] = codes[which]
        return found


@dataclass(frozen=True, slots=True)
class Numeric:
    """A column of `obs` read as a number and standardised: (value - mean) / scale.

    Parameters
    ----------
    key
        Name of the column.
    mean
        Mean over the cells of the fit, in the column's own unit.
    scale
        Standard deviation over these cells (1 for a constant column), in the column's own unit.
    """

    key: str
    mean: float
    scale: float


@dataclass(frozen=True, slots=True)
class ViewSchema:
    """A further measurement of the cells, besides the genes of the schema.

    Parameters
    ----------
    name
        Its name.
    features
        Names of what it measures, in the order of the model.
    kind
        Kind of its values.
    likelihood
        Its likelihood.
    obsm
        The slot of `obsm` in which cells have it.
    measured
        Column of `obs` that says which cells have it; None if the values alone do.
    weight
        Factor of its log-likelihood in training.
    """

    name: str
    features: tuple[str, ...]
    kind: Kind
    likelihood: ViewLikelihood
    obsm: str
    measured: str | None = None
    weight: float = 1.0

    @property
    def alone(self) -> Schema:
        """The schema by which a table of this view alone is read."""
        return Schema(self.features, self.kind, None, None, (), (), None)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> ViewSchema:
        """The inverse of `dataclasses.asdict`."""
        return cls(**record | {"features": tuple(record["features"])})


@dataclass(frozen=True, slots=True)
class Schema:
    """Everything needed to read other cells in the same way as those of the fit.

    Parameters
    ----------
    genes
        Names of the modelled genes, in the order of the model.
    kind
        Kind of the values: "counts", "binary" (0 or 1) or "real".
    layer
        The layer that was read; None for `X`.
    batch
        The batch column, if there is one.
    categorical
        The categorical covariates, without the batch.
    numeric
        The numeric covariates.
    size_factor_key
        Column of `obs` that replaces the library size; None for the sum over the modelled genes.
    size_factor_scale
        Counts in the modelled genes per unit of the size factor, over all cells of the fit.
    labels
        The labels that the fit listened to; None if it had none.
    views
        Further measurements of the cells.
    name
        What a model with further measurements calls the genes above.
    """

    genes: tuple[str, ...]
    kind: Kind
    layer: str | None
    batch: Categorical | None
    categorical: tuple[Categorical, ...]
    numeric: tuple[Numeric, ...]
    size_factor_key: str | None
    size_factor_scale: float = 1.0
    labels: Labels | None = None
    views: tuple[ViewSchema, ...] = ()
    name: str = RNA

    @property
    def view_names(self) -> tuple[str, ...]:
        """The names of all measurements: that of the genes first."""
        return (self.name, *(view.name for view in self.views))

    @property
    def slots(self) -> tuple[str, ...]:
        """The slots of `obsm` with the further measurements."""
        return tuple(view.obsm for view in self.views)

    @property
    def categoricals(self) -> tuple[Categorical, ...]:
        """All categorical columns in the order of `codes`: the batch first, then the covariates."""
        return self.categorical if self.batch is None else (self.batch, *self.categorical)

    def layer_of(self, asked: str | None) -> str | None:
        """The layer to read (None for `X`), given a user's choice of None (the layer of the fit), ``"X"`` or a name."""
        return self.layer if asked is None else None if asked == "X" else asked

    @property
    def n_conditions(self) -> int:
        """Width of the condition vector: one column per category and one per numeric covariate."""
        return sum(len(column.categories) for column in self.categoricals) + len(self.numeric)

    @property
    def mapped_columns(self) -> tuple[int, ...]:
        """Columns of the condition vector that belong to mapped categories."""
        is_mapped = [name in column.mapped for column in self.categoricals for name in column.categories]
        return tuple(place for place, mapped in enumerate(is_mapped) if mapped)

    def to_json(self) -> dict[str, Any]:
        """The schema as strings, numbers, lists and dicts."""
        return {
            "genes": list(self.genes),
            "kind": self.kind,
            "layer": self.layer,
            "batch": None if self.batch is None else _categorical_to_json(self.batch),
            "categorical": [_categorical_to_json(column) for column in self.categorical],
            "numeric": [asdict(column) for column in self.numeric],
            "size_factor_key": self.size_factor_key,
            "size_factor_scale": self.size_factor_scale,
            **({} if self.labels is None else {"labels": self.labels.to_json()}),
            **({"views": [asdict(view) for view in self.views], "name": self.name} if self.views else {}),
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Schema:
        """The inverse of `to_json`.

        Raises
        ------
        KeyError
            If an entry is missing.
        """
        batch = record["batch"]
        return cls(
            genes=tuple(record["genes"]),
            kind=record["kind"],
            layer=record["layer"],
            batch=None if batch is None else _categorical_from_json(batch),
            categorical=tuple(_categorical_from_json(column) for column in record["categorical"]),
            numeric=tuple(Numeric(column["key"], column["mean"], column["scale"]) for column in record["numeric"]),
            size_factor_key=record["size_factor_key"],
            size_factor_scale=record.get("size_factor_scale", 1.0),
            labels=Labels.from_json(record.get("labels")),
            views=tuple(ViewSchema.from_json(view) for view in record.get("views", ())),
            name=record.get("name", RNA),
        )


def _categorical_to_json(column: Categorical) -> dict[str, Any]:
    return {"key": column.key, "categories": list(column.categories), "mapped": list(column.mapped)}


def _categorical_from_json(record: dict[str, Any]) -> Categorical:
    return Categorical(record["key"], tuple(record["categories"]), tuple(record.get("mapped", ())))
