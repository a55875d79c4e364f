"""The names of every slot that scvae writes into an AnnData; nothing else spells them out."""

from __future__ import annotations

from dataclasses import dataclass


def check_slot_name(value: object, name: str) -> str:
    """`value` itself, if a slot of an AnnData can have this name and a file can hold it; a ValueError otherwise."""
    if not isinstance(value, str) or not value or "/" in value:
        raise ValueError(f"{name} is {value!r}; pass a name without '/', which files take for a folder")
    return value


@dataclass(frozen=True, slots=True)
class Keys:
    """Slot names that follow from `key_added`.

    Parameters
    ----------
    key_added
        The user's name for a fit, ``"scvae"`` by default.
    """

    key_added: str = "scvae"

    def __post_init__(self) -> None:
        check_slot_name(self.key_added, "key_added")

    @property
    def mean(self) -> str:
        """obsm: posterior means, cells x n_latent."""
        return f"X_{self.key_added}"

    @property
    def variance(self) -> str:
        """obsm: posterior variances, cells x n_latent."""
        return f"X_{self.key_added}_var"

    @property
    def samples(self) -> str:
        """obsm: draws from the posterior, cells x draws x n_latent."""
        return f"X_{self.key_added}_samples"

    @property
    def stability(self) -> str:
        """obs: share of a cell's neighbours that two draws of the latent have in common."""
        return f"{self.key_added}_stability"

    @property
    def loadings(self) -> str:
        """varm: loadings of the genes, genes x n_latent, if the decoder is linear."""
        return f"{self.key_added}_loadings"

    @property
    def label(self) -> str:
        """obs: the label transferred from a reference."""
        return f"{self.key_added}_label"

    @property
    def label_uncertainty(self) -> str:
        """obs: probability that it is wrong."""
        return f"{self.key_added}_label_uncertainty"

    @property
    def outlier(self) -> str:
        """obs: share of the reference cells, all or of one label, that have nearer neighbours."""
        return f"{self.key_added}_outlier"

    @property
    def effects(self) -> str:
        """varm: what a standard deviation of each latent dimension does to the genes, genes x n_latent."""
        return f"{self.key_added}_effects"

    @property
    def traversal(self) -> str:
        """varm: what going from the low to the high end of each latent dimension does, genes x n_latent."""
        return f"{self.key_added}_traversal"

    @property
    def uns(self) -> str:
        """uns: parameters, history and provenance of the fit."""
        return self.key_added

    @property
    def beta_path(self) -> str:
        """Within uns[key_added]: the table of `tune_beta`."""
        return "beta_path"

    @property
    def judged_on(self) -> str:
        """Within uns[key_added]: what the held-out columns of that table rest on."""
        return "beta_path_judged_on"

    @property
    def beta_umaps(self) -> str:
        """obsm: aligned UMAPs at many β, cells x (2 betas), the two coordinates at each β side by side."""
        return f"X_{self.key_added}_umap_betas"

    @property
    def beta_embeddings(self) -> str:
        """Within uns[key_added]: the β's of those UMAPs, and rate and distortion at each."""
        return "beta_embeddings"

    @property
    def diagnosis(self) -> str:
        """Entry of uns[key_added]: what `scvae.tl.diagnose` found."""
        return "diagnosis"

    @property
    def denoised(self) -> str:
        """layers or obsm: expected expression."""
        return f"{self.key_added}_denoised"

    @property
    def denoising(self) -> str:
        """Within uns[key_added]: how the denoised expression was made."""
        return "denoised"

    @property
    def cell(self) -> str:
        """obs of a sample: the cell that was drawn from."""
        return f"{self.key_added}_cell"

    @property
    def draw(self) -> str:
        """obs of a sample: number of the draw, from 0."""
        return f"{self.key_added}_draw"

    @property
    def origin(self) -> str:
        """Within uns[key_added]: how drawn cells were made."""
        return "drawn"
