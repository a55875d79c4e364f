"""The card of a model: what it was fitted on, what it is and how it went, in markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..data.libraries import LibrarySizes
from ..data.schema import Categorical, Schema
from .reference import Reference

NAMED = 20  # categories or labels that are listed by name
GENES = 5  # as many genes are named

MAPPED = "model = scvae.tl.map_query(query, model)  # for cells of new batches; else scvae.tl.embed(query, model)"
NO_LICENCE = "None was given. Ask whoever gave you the file before you hand it on."
OF_MODEL = "names of genes and batches", "quantiles of library sizes", "a density of the cells in latent space"


def card_of(
    schema: Schema,
    libraries: LibrarySizes | None,
    summary: Mapping[str, object],
    reference: Reference | None,
    versions: Mapping[str, str],
    licence: str | None,
    file: str,
) -> str:
    """The card; see `FittedModel.card`."""
    parts = {
        "Data": _table(_data(schema, libraries)),
        "Model and fit": _table(summary),
        **({} if reference is None else {"Reference": _table({**reference.summary(), **_labels(reference)})}),
        "Versions": _table(versions),
        "Licence": _line(licence) if licence else NO_LICENCE,
        "Use": _use(schema, reference, file),
        "What the file reveals": _reveals(schema, reference),
    }
    kind = {"counts": "single-cell counts", "binary": "binary single-cell data", "real": "real values of cells"}
    title = f"# {_line(file)}\n\nA variational autoencoder of {kind[schema.kind]}, fitted with scvae."
    return "\n\n".join([title, *(f"## {name}\n\n{text}" for name, text in parts.items())]) + "\n"


def _data(schema: Schema, libraries: LibrarySizes | None) -> dict[str, object]:
    n_cells = () if libraries is None else libraries.n_cells
    rows: dict[str, object] = {} if libraries is None else {"cells": f"{sum(n_cells):,}"}
    rows["values"] = f"{schema.kind}, {'X' if schema.layer is None else f'layer {schema.layer}'}"
    rows["genes"] = f"{len(schema.genes):,}: {_listed(schema.genes, GENES)}"
    rows |= {
        f"view {view.name}": f"{view.kind}, obsm slot {view.obsm}; {len(view.features):,} features: "
        f"{_listed(view.features, GENES)}"
        for view in schema.views
    }
    if schema.batch is not None:
        rows[f"batches ({schema.batch.key})"] = _categories(schema.batch, n_cells)
    rows |= {f"covariate {column.key}": _categories(column, ()) for column in schema.categorical}
    rows |= {f"covariate {column.key}": f"number, mean {column.mean:.4g}" for column in schema.numeric}
    if schema.size_factor_key is not None:
        rows["size factors"] = schema.size_factor_key
    if schema.labels is not None:
        rows[f"labels of the fit ({schema.labels.key})"] = _listed(schema.labels.names, NAMED)
        coarse = [f"{name} (over {len(under)})" for name, under in schema.labels.coarse]
        rows |= {"coarser names of these": _listed(coarse, NAMED)} if coarse else {}
    return rows


def _categories(column: Categorical, n_cells: Sequence[int]) -> str:
    names = [
        name + (f" ({n_cells[i]:,} cells)" if i < len(n_cells) else "") + (", mapped" if name in column.mapped else "")
        for i, name in enumerate(column.categories)
    ]
    return f"{len(names):,}: {_listed(names, NAMED, '; ')}"


def _labels(reference: Reference) -> dict[str, str]:
    """The labels of the cells and how many have each."""
    found = {}
    for key, labels in reference.labels.items():
        n_cells = np.bincount(labels.codes[labels.codes >= 0], minlength=len(labels.categories))
        names = [f"{name} ({n:,})" for name, n in zip(labels.categories, n_cells, strict=True)]
        found[f"{key}: cells"] = _listed(names, NAMED)
    return found


def _use(schema: Schema, reference: Reference | None, file: str) -> str:
    calls = ["import scvae", f"model = scvae.load({file!r})"]
    calls.append(MAPPED if schema.categoricals else "scvae.tl.embed(query, model)")
    if reference is not None:
        few = len(reference.labels) == 1
        key = "" if few or not reference.labels else f", labels_key={next(iter(reference.labels))!r}"
        calls += [f"scvae.tl.transfer_labels(query, model{key})"] if reference.labels else []
        calls += [] if reference.umap is None else ["scvae.tl.place(query, model)"]
        calls.append("scvae.tl.nearest_cells(query, model)")
    return "\n".join(["```python", *calls, "```"])


def _reveals(schema: Schema, reference: Reference | None) -> str:
    held = [*OF_MODEL]
    if schema.labels is not None:
        held.append("latent means of up to 10,000 labelled cells")
    if reference is not None:
        held.append("of each reference cell its latent mean and variance")
        held += ["its labels"] if reference.labels else []
        held += [] if reference.umap is None else ["its place on the UMAP"]
        held += [] if reference.packed is None else ["its name"]
    return (
        f"The file holds no counts, but {', '.join(held)}. The decoder turns latents into expected expression of the "
        "modelled genes, which tells what such averages tell about the donors of the cells."
    )


def _listed(names: Sequence[str], most: int, between: str = ", ") -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return between.join(map(str, names[:most])) + more


def _table(rows: Mapping[str, object]) -> str:
    lines = [f"| {_line(name)} | {_line(value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _line(text: object) -> str:
    """Text as it stands in a cell of a table."""
    return " ".join(str(text).split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
