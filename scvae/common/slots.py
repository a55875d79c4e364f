"""Writing of results into the named slots of an AnnData, once, at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .keys import Keys
from .provenance import recorded, superseded

if TYPE_CHECKING:
    from anndata import AnnData


def target_of(adata: AnnData, *, copy: bool) -> AnnData:
    """The AnnData that receives the results: `adata` itself, or a copy of it in memory."""
    if not copy:
        return adata
    return adata.to_memory() if adata.isbacked else adata.copy()


def write(
    adata: AnnData,
    *,
    obs: Mapping[str, Any] | None = None,
    layers: Mapping[str, Any] | None = None,
    obsm: Mapping[str, Any] | None = None,
    varm: Mapping[str, np.ndarray | None] | None = None,
    obsp: Mapping[str, Any] | None = None,
    uns: Mapping[str, Any] | None = None,
) -> None:
    """Sets slots of `adata`. A view first becomes an actual AnnData, so that its parent stays unchanged.

    A value of None removes the slot of `layers`, `obsm` or `varm` that an earlier result left under this name.
    """
    _make_actual(adata)
    for key, value in (obs or {}).items():
        adata.obs[key] = value
    for slot, values in ((adata.layers, layers), (adata.obsm, obsm), (adata.varm, varm), (adata.obsp, obsp)):
        for key, value in (values or {}).items():
            if value is not None:
                slot[key] = value
            elif key in slot:
                del slot[key]
    for key, value in (uns or {}).items():
        adata.uns[key] = value


def write_made(
    adata: AnnData,
    keys: Keys,
    made_by: str,
    *,
    record: Mapping[str, Any] | None = None,
    obs: Mapping[str, Any] | None = None,
    layers: Mapping[str, Any] | None = None,
    obsm: Mapping[str, Any] | None = None,
    varm: Mapping[str, np.ndarray | None] | None = None,
    obsp: Mapping[str, Any] | None = None,
    uns: Mapping[str, Any] | None = None,
) -> None:
    """`write` for what a model has made: the record in uns gets these entries, and the model behind each slot.

    An embedding also removes what was derived from that of another model under the same key.

    Parameters
    ----------
    adata
        Receives the slots.
    keys
        Their names.
    made_by
        Identity of the model.
    record
        Entries of the record.
    obs, layers, obsm, varm, obsp, uns
        As in `write`.
    """
    _make_actual(adata)
    found = adata.uns.get(keys.uns)
    earlier = dict(found) if isinstance(found, Mapping) else {}
    if keys.mean in (obsm or {}):
        replaced = superseded(keys, made_by, lambda place: getattr(adata, place))
        earlier = replaced.record
        for place, names in replaced.slots.items():
            for name in names:
                del getattr(adata, place)[name]
    slots = {"obs": obs or {}, "layers": layers or {}, "obsm": obsm or {}, "varm": varm or {}}
    entry = recorded(earlier, keys, made_by, slots | {"record": record or {}})
    write(adata, **slots, obsp=obsp, uns=dict(uns or {}) | {keys.uns: entry})


def _make_actual(adata: AnnData) -> None:
    if adata.is_view:
        adata._init_as_actual(adata.copy())  # as scanpy's view_to_actual, but without its warning
