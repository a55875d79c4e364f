"""What a check of a diagnosis finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["disease", "remark"]

CLEAR = 3.0  # standard errors
PAST_Z = "the decoder sees the input past z"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One finding of `scvae.tl.diagnose`, with its cause and remedy.

    Parameters
    ----------
    name
        Its name, such as "total collapse".
    severity
        ``"disease"``: results suffer; ``"remark"``: good to know.
    sentence
        What was found, with the numbers.
    cause
        The likely cause.
    remedy
        What to do.
    """

    name: str
    severity: Severity
    sentence: str
    cause: str
    remedy: str
