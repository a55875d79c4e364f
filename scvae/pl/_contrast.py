"""`visible`: a colour that stands out from the panel it is drawn on, whatever the user's style."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from ._figure import INK, whole_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

ENOUGH = 3.0  # contrast of graphics with what lies next to them (WCAG 2.2, 1.4.11)
WHITE, BLACK = np.ones(3), np.zeros(3)


def visible(colour: str, panel: Axes | Figure, alpha: float = 1.0) -> str:
    """The colour as it is drawn on a panel or figure; `INK` stands for the style's colour of text.

    Its contrast there is at least 3:1. The palettes are made for white, where some of their colours have less; these
    need to keep what they have on white. A colour without enough contrast is mixed with white or black, by as little as
    is needed. `alpha` is the opacity it will be drawn with.
    """
    from matplotlib import rcParams
    from matplotlib.colors import to_hex, to_rgba

    *rgb, own = to_rgba(rcParams["text.color"] if to_hex(colour) == INK else colour)
    opacity, face = alpha * own, _face(panel)
    ends = WHITE if _contrast(WHITE, face) > _contrast(BLACK, face) else BLACK
    enough = min(ENOUGH, _contrast(_over(np.array(rgb), opacity, WHITE), WHITE))
    for share in np.linspace(0.0, 1.0, 21):
        mixed = np.rint(255 * _over(ends, share, np.array(rgb))) / 255
        if _contrast(_over(mixed, opacity, face), face) >= enough:
            break
    return to_hex((*mixed, own), keep_alpha=own < 1)


def visible_shades(panel: Axes, name: str | None = None) -> ListedColormap:
    """A colour map, or the user's, in which each colour is visible on a panel."""
    from matplotlib import colormaps, rcParams
    from matplotlib.colors import ListedColormap, to_hex

    shades = colormaps[name or rcParams["image.cmap"]](np.linspace(0, 1, 256))
    return ListedColormap([visible(to_hex(shade), panel) for shade in shades])


def _face(panel: Axes | Figure) -> Float[np.ndarray, " 3"]:
    """What a panel is drawn on: its own colour over that of the figure; white where both are transparent."""
    from matplotlib.colors import to_rgba

    behind = WHITE
    for part in (whole_figure(panel), panel):
        *rgb, alpha = to_rgba(part.get_facecolor())
        behind = _over(np.array(rgb), alpha, behind)
    return behind


def _over(front: Float[np.ndarray, " 3"], opacity: float, behind: Float[np.ndarray, " 3"]) -> Float[np.ndarray, " 3"]:
    return opacity * front + (1 - opacity) * behind


def _contrast(one: Float[np.ndarray, " 3"], other: Float[np.ndarray, " 3"]) -> float:
    """The contrast ratio of two colours, from 1 to 21, by the definition of WCAG 2.2."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(rgb: Float[np.ndarray, " 3"]) -> float:
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))
