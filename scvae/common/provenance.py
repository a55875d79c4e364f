"""Which model a slot is of: what a model writes carries its identity, and goes when another takes its place.

The record ``uns[key_added]`` holds the identity of the model behind each slot: a digest of its weights, and for a model
of many β also the β where the slot is of one. When an embedding is written, slots that were derived from another one
under the same key are removed. The rules are the same for an AnnData and for a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .keys import OF_EFFECTS, Keys

if TYPE_CHECKING:
    from anndata import AnnData

AT = "@"  # between the digest and β
REFINED = "~"  # before the number of gradient steps that an embedding took after the encoder
SLOTS_OF_GRAPH = ("connectivities_key", "distances_key")  # in uns, where scanpy looks up the slots of a graph


@dataclass(frozen=True, slots=True, eq=False)
class Superseded:
    """What an embedding takes the place of.

    Parameters
    ----------
    record
        The entries of the record that stay.
    slots
        Names of the slots that go, by their place in the AnnData ("obs", "obsm", …).
    """

    record: dict[str, Any]
    slots: dict[str, list[str]]


def record_in(adata: AnnData, keys: Keys) -> dict[str, Any]:
    """The record that `adata.uns` holds; empty if there is none.

    Raises
    ------
    ValueError
        If the entry is not a record.
    """
    found = getattr(adata, "uns", {}).get(keys.uns, {})
    if not isinstance(found, Mapping):
        raise ValueError(
            f"adata.uns[{keys.uns!r}] is a {type(found).__name__}, which scvae did not write; pass another key_added"
        )
    return dict(found)


def check_replaceable(uns: Mapping[str, Any], keys: Keys, owner: str = "adata") -> None:
    """Checks, before a long computation, that an entry of uns, of an AnnData or a file, is a record or missing.

    Raises
    ------
    ValueError
        If it is something else, which the new record would replace.
    """
    entry = uns.get(keys.uns, {})
    names = set(entry.keys()) if hasattr(entry, "keys") else {""}
    if names and not names & {"versions", keys.models, keys.origin, *keys.entries}:
        kind = type(entry).__name__
        raise ValueError(
            f"uns[{keys.uns!r}] is a {kind} in {owner} that scvae did not write; pass another key_added to keep it"
        )


def recorded(
    record: Mapping[str, Any], keys: Keys, made_by: str, written: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The record with the identity of the model behind all that it writes, by place; "record" stands for its entries.

    Columns of obs and the embedding, which users edit or replace, are recorded with a checksum.
    """
    entries = dict(record) | dict(written.get("record", {}))
    models, checksums = (dict(entries.pop(name, {})) for name in (keys.models, keys.checksums))
    values = [(place, name, value) for place, slots in written.items() for name, value in slots.items()]
    for _, name, value in values:
        if value is None:
            models.pop(name, None)
    for place, name, value in values:
        if place == "record" and name in keys.entries:
            models[name] = _digest(made_by)
        elif value is not None and (place != "record" or name.startswith(OF_EFFECTS)):
            models[name] = made_by
        if place == "obs" or name == keys.mean:
            checksums[name] = _checksum(value)
    return entries | {keys.models: models, keys.checksums: checksums}


def superseded(
    keys: Keys, made_by: str, at: Callable[[str], Any], read: Callable[[Any], Any] = lambda value: value
) -> Superseded:
    """What an embedding of this model takes the place of.

    Parameters
    ----------
    keys
        Names of the slots.
    made_by
        Identity of the model.
    at
        Gives what is at a place of an AnnData or of a file: a mapping from names.
    read
        Gives a value of this mapping as it is in an AnnData.
    """
    found = read(at("uns")[keys.uns]) if keys.uns in at("uns") else {}
    record = dict(found) if isinstance(found, Mapping) else {}
    models, checksums = record.pop(keys.models, {}), record.pop(keys.checksums, {})
    same = {name for name, model in models.items() if model == made_by}
    of_model = {name for name, model in models.items() if model == _digest(made_by)}
    same |= of_model if REFINED not in made_by else of_model & set(keys.entries)
    is_same = _digest(models.get(keys.mean, "")) == _digest(made_by)
    stays = {name for name in record if name in same or name == keys.origin or (is_same and name not in models)}

    def is_as_written(name: str) -> bool:
        return name in models and _is_as_written(read(at("obs")[name]), checksums.get(name))

    slots = {
        place: [name for name in names if name in at(place) and name not in same]
        for place, names in keys.derived.items()
    }
    of_views = [name for name in models if name.startswith(f"{keys.key_added}_") and name in at("obsm")]
    slots["obsm"] += [name for name in of_views if name not in (*same, *slots["obsm"])]
    slots["obs"] = [name for name in slots["obs"] if is_as_written(name)]  # others are the user's
    graphs = {name: graph for name in at("uns") if (graph := _graph(at("uns")[name], keys, read))}
    slots["uns"] = [name for name, graph in graphs.items() if graph.pop("model") != made_by]
    slots["obsp"] = [slot for name in slots["uns"] for slot in graphs[name].values() if slot in at("obsp")]
    kept = {
        keys.models: {name: model for name, model in models.items() if name in same},
        keys.checksums: {name: checksum for name, checksum in checksums.items() if name in same},
    }
    return Superseded({name: record[name] for name in record if name in stays} | kept, slots)


def is_of(adata: AnnData, keys: Keys, first: str, second: str) -> bool:
    """Whether two slots or entries are of one model at one β; so are those of a version that did not record it."""
    models = record_in(adata, keys).get(keys.models, {})
    return _unrefined(models.get(first, "")) == _unrefined(models.get(second, ""))


def check_of_embedding(adata: AnnData, keys: Keys, place: str, name: str, writer: str) -> None:
    """Checks that a slot is of the model, and of the β, of the embedding.

    Raises
    ------
    ValueError
        If it is not, or if another embedding has been put in the place of the one that scvae wrote; the message names
        the `writer` of the slot. An embedding whose model was not recorded passes.
    """
    record = record_in(adata, keys)
    if keys.mean not in record.get(keys.models, {}):
        return
    if not is_of(adata, keys, name, keys.mean):
        why = f"adata.{place}[{name!r}] is not of the model, or not of the β, of adata.obsm[{keys.mean!r}]"
    elif not _is_as_written(adata.obsm[keys.mean], record.get(keys.checksums, {}).get(keys.mean)):
        why = f"adata.obsm[{keys.mean!r}] was replaced, or has more cells, since scvae wrote it"
    else:
        return
    raise ValueError(f"{why}, so their dimensions may differ; run scvae.tl.embed and {writer} with the same model")


def _digest(identity: str) -> str:
    """The identity without β and gradient steps."""
    return _unrefined(identity).partition(AT)[0]


def _unrefined(identity: str) -> str:
    """The identity without gradient steps."""
    return identity.partition(REFINED)[0]


def _checksum(values: Any) -> str:
    """Number of rows, and a sum over them that does not depend on their order."""
    table = np.asarray(values)
    columns: Iterable[np.ndarray] = table.reshape(len(table), -1).T
    sums = [int(pd.util.hash_array(np.ascontiguousarray(column)).sum()) for column in columns]
    return f"{len(table)} {sum(i * total for i, total in enumerate(sums, 1)) % 2**64:x}"


def _is_as_written(values: Any, checksum: str | None) -> bool:
    """Whether values have this checksum. Of fewer rows it cannot be told: they are taken for a subset."""
    n_written = int(checksum.split()[0]) if checksum else 0
    return checksum is None or len(values) < n_written or _checksum(values) == checksum


def _graph(entry: Any, keys: Keys, read: Callable[[Any], Any]) -> dict[str, str]:
    """Model and slots of a neighbour graph that scvae made from the embedding; empty for all else in uns."""
    if not hasattr(entry, "keys") or not {"params", *SLOTS_OF_GRAPH} <= set(entry.keys()):
        return {}
    params = entry["params"]
    if not hasattr(params, "keys") or not {"model", "use_rep"} <= set(params.keys()):
        return {}
    if read(params["use_rep"]) != keys.mean:
        return {}
    return {"model": read(params["model"])} | {key: read(entry[key]) for key in SLOTS_OF_GRAPH}
