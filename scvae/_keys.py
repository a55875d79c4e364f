"""The names of every slot that scvae writes into an AnnData; nothing else spells them out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keys:
    """Slot names that follow from `key_added`.

    Parameters
    ----------
    key_added
        The user's name for a fit, ``"scvae"`` by default.
    """

    key_added: str = "scvae"

    @property
    def mean(self) -> str:
        """obsm: posterior means, cells x n_latent."""
        return f"X_{self.key_added}"

    @property
    def variance(self) -> str:
        """obsm: posterior variances, cells x n_latent."""
        return f"X_{self.key_added}_var"

    @property
    def uns(self) -> str:
        """uns: parameters, history and provenance of the fit."""
        return self.key_added
