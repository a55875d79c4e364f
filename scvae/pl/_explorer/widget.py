"""The explorer as a Jupyter widget; importing this module needs anywidget."""

from __future__ import annotations

from typing import Any, final

import anywidget
import traitlets

from .page import asset, script


@final
class BetaExplorer(anywidget.AnyWidget):
    """The β explorer of `scvae.pl.beta_explorer` in Jupyter.

    Parameters
    ----------
    record, buffer
        The data to show, as in `scvae.pl._beta_explorer.Contents`.

    Attributes
    ----------
    beta
        The selected β; setting it moves the cells.
    color
        The column or gene that the cells are coloured by; setting it recolours them.
    """

    _esm = script()
    _css = asset("explorer.css")
    record = traitlets.Dict(read_only=True).tag(sync=True)
    buffer = traitlets.Bytes(read_only=True).tag(sync=True)
    beta = traitlets.Float().tag(sync=True)
    color = traitlets.Unicode().tag(sync=True)

    def __init__(self, record: dict[str, Any], buffer: bytes) -> None:
        super().__init__()
        self.set_trait("record", record)
        self.set_trait("buffer", buffer)
        self.beta = record["beta"]
        self.color = record["colors"][0]["name"]

    @traitlets.validate("beta")
    def _within_range(self, proposal: traitlets.Bunch) -> float:
        low, high = self.record["betas"][0], self.record["betas"][-1]
        if not low <= proposal["value"] <= high:
            raise traitlets.TraitError(f"beta is {proposal['value']:g}; the explorer has β from {low:g} to {high:g}")
        return float(proposal["value"])

    @traitlets.validate("color")
    def _on_offer(self, proposal: traitlets.Bunch) -> str:
        names = [colour["name"] for colour in self.record["colors"]]
        if proposal["value"] not in names:
            raise traitlets.TraitError(f"color is {proposal['value']!r}; the explorer has {', '.join(names)}")
        return str(proposal["value"])
