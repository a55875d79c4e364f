"""The names of all slots that scvae writes into an AnnData; no other module spells them out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

LONGEST = 200  # bytes of a name that a file system can hold, with some to spare
OF_EFFECTS = "effects_"  # begins the name of an entry that is of a model at one β
# uns or obsm has results of scanpy under these names
OF_SCANPY = "dendrogram|diffmap|draw_graph|hvg|leiden|log1p|louvain|neighbors|paga|pca|rank_genes_groups|tsne|umap"


def check_slot_name(value: object, name: str) -> str:
    """`value` itself, if it can name a slot both in an AnnData and in a file; raises ValueError otherwise."""
    if (
        not isinstance(value, str)
        or not value.isprintable()
        or value != value.strip()
        or value.startswith((".", "__"))
        or not can_be_key(value)
    ):
        raise ValueError(
            f"{name} is {value!r}, which h5ad and zarr files cannot hold as the name of a slot; pass a short name "
            "without '/' and backslash that begins with neither '.' nor '__'"
        )
    return value


def can_be_key(name: str) -> bool:
    """Whether a key, or a column of a table, can have this name in h5ad files and in zarr stores.

    There "/" (in zarr a backslash, too) separates groups, "." and ".." are groups, and some names are zarr's own.
    """
    own = re.search(r"[/\\\x00]|^\.{0,2}$|^\.z|^zarr\.json$|^_index$", name)
    return own is None and len(name.encode()) <= LONGEST


def as_keys(names: Iterable[str]) -> list[str]:
    """Keys for names that a user chose: each name itself, or one like it that files can hold; no two are the same."""
    keys: list[str] = []
    for name in names:
        key = name if can_be_key(name) else re.sub(r"[/\\.\x00]", "_", name)[: LONGEST // 5] + "_"
        while key in keys:
            key += "_"
        keys.append(key)
    return keys


@dataclass(frozen=True, slots=True)
class Keys:
    """Slot names derived from `key_added`.

    Parameters
    ----------
    key_added
        The user's name for a fit, ``"scvae"`` by default.
    """

    key_added: str = "scvae"

    def __post_init__(self) -> None:
        if re.fullmatch(OF_SCANPY, check_slot_name(self.key_added, "key_added")):
            raise ValueError(f"key_added is {self.key_added!r}, where scanpy keeps its own results; pass another name")

    @property
    def mean(self) -> str:
        """obsm: posterior means, cells x n_latent."""
        return f"X_{self.key_added}"

    @property
    def variance(self) -> str:
        """obsm: posterior variances, cells x n_latent."""
        return f"X_{self.key_added}_var"

    @property
    def components(self) -> str:
        """obsm: shares of the components of the prior in each cell, cells x components."""
        return f"X_{self.key_added}_components"

    @property
    def embedding(self) -> tuple[str, ...]:
        """obsm: all that an embedding writes."""
        return self.mean, self.variance, self.components

    @property
    def samples(self) -> str:
        """obsm: samples from the posterior, cells x draws x n_latent."""
        return f"X_{self.key_added}_samples"

    @property
    def stability(self) -> str:
        """obs: fraction of a cell's neighbours shared by two draws of the latent variables."""
        return f"{self.key_added}_stability"

    @property
    def loadings(self) -> str:
        """varm: gene loadings of a linear decoder, genes x n_latent."""
        return f"{self.key_added}_loadings"

    @property
    def label(self) -> str:
        """obs: the label transferred from a reference."""
        return f"{self.key_added}_label"

    @property
    def label_uncertainty(self) -> str:
        """obs: probability that the transferred label is wrong."""
        return f"{self.key_added}_label_uncertainty"

    @property
    def outlier(self) -> str:
        """obs: fraction of the reference cells (all, or those of one label) whose neighbours are closer."""
        return f"{self.key_added}_outlier"

    @property
    def label_probability(self) -> str:
        """obsm: probability of each label, cells x labels."""
        return f"{self.key_added}_label_probability"

    @property
    def label_confidence(self) -> str:
        """Within uns[key_added]: how coverage and error of labels depend on their probability, by level."""
        return "label_confidence"

    @property
    def label_genes(self) -> str:
        """varm: attribution of the label of each group of cells to each gene, genes x groups."""
        return f"{self.key_added}_label_genes"

    @property
    def density(self) -> str:
        """obs: log density of the cells of the fit at the posterior mean of a cell."""
        return f"{self.key_added}_density"

    @property
    def abundance(self) -> tuple[str, str, str]:
        """obs: log odds that a cell is of the group, their standard error, and the false discovery rate."""
        name = f"{self.key_added}_abundance"
        return name, f"{name}_se", f"{name}_fdr"

    @property
    def abundances(self) -> str:
        """Within uns[key_added]: the neighbourhoods of `scvae.tl.differential_abundance`, and what was compared."""
        return "abundance"

    @property
    def effects(self) -> str:
        """varm: effect on each gene of one standard deviation of each latent dimension, genes x n_latent."""
        return f"{self.key_added}_effects"

    def effects_view(self, view: str) -> str:
        """Within uns[key_added]: effects on the features of a further measurement, and their traversal."""
        return f"{OF_EFFECTS}{view}"

    @property
    def traversal(self) -> str:
        """varm: change of each gene from the low to the high end of each latent dimension, genes x n_latent."""
        return f"{self.key_added}_traversal"

    @property
    def code(self) -> str:
        """obs: the code of a cell, in a model of codes."""
        return f"{self.key_added}_code"

    @property
    def category(self) -> str:
        """obs: the most probable category of a cell, in a model of categories."""
        return f"{self.key_added}_category"

    @property
    def categories(self) -> str:
        """obsm: probability of each category, cells x categories."""
        return f"X_{self.key_added}_categories"

    @property
    def metacell(self) -> str:
        """obs: the metacell that a cell is part of."""
        return f"{self.key_added}_metacell"

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
        """Within uns[key_added]: the cells behind the held-out columns of that table."""
        return "beta_path_judged_on"

    @property
    def umap(self) -> str:
        """obsm: places of cells on the UMAP of a reference, cells x 2."""
        return f"X_{self.key_added}_umap"

    @property
    def nearest(self) -> tuple[str, str]:
        """obsm: names of the nearest reference cells, and the distances to them, cells x neighbours."""
        return f"{self.key_added}_nearest", f"{self.key_added}_nearest_distance"

    @property
    def beta_umaps(self) -> str:
        """obsm: aligned UMAPs at many values of β, cells x (2 betas), the two coordinates of each β side by side."""
        return f"X_{self.key_added}_umap_betas"

    @property
    def beta_embeddings(self) -> str:
        """Within uns[key_added]: the values of β of those UMAPs, with the rate and distortion at each."""
        return "beta_embeddings"

    @property
    def diagnosis(self) -> str:
        """Within uns[key_added]: the findings of `scvae.tl.diagnose`."""
        return "diagnosis"

    @property
    def denoised(self) -> tuple[str, str, str]:
        """layers or obsm: expected expression, and the lower and upper ends of its interval."""
        return self.denoised_view(None)

    def denoised_view(self, view: str | None) -> tuple[str, str, str]:
        """obsm: as `denoised`, of a further measurement; those of the first for None."""
        name = self.key_added if view is None else f"{self.key_added}_{view}"
        return f"{name}_denoised", f"{name}_denoised_lower", f"{name}_denoised_upper"

    def imputed(self, view: str) -> tuple[str, str, str]:
        """obsm: a further measurement with predictions where cells lack it, and the ends of their intervals."""
        return f"{self.key_added}_{view}", f"{self.key_added}_{view}_lower", f"{self.key_added}_{view}_upper"

    def imputing(self, view: str) -> str:
        """Within uns[key_added]: how a further measurement was predicted."""
        return f"imputed_{view}"

    @property
    def denoising(self) -> str:
        """Within uns[key_added]: how the denoised expression was computed."""
        return "denoised"

    @property
    def cell(self) -> str:
        """obs of a sample: the cell whose posterior was drawn from."""
        return f"{self.key_added}_cell"

    @property
    def draw(self) -> str:
        """obs of a sample: number of the draw, from 0."""
        return f"{self.key_added}_draw"

    @property
    def origin(self) -> str:
        """Within uns[key_added]: how the sampled cells were drawn."""
        return "drawn"

    @property
    def models(self) -> str:
        """Within uns[key_added]: the identity of the model behind each slot."""
        return "models"

    @property
    def checksums(self) -> str:
        """Within uns[key_added]: checksums of the embedding and of columns of obs, which tell whether they changed."""
        return "checksums"

    @property
    def derived(self) -> dict[str, tuple[str, ...]]:
        """What tools write for a model besides its embedding, by the place in the AnnData."""
        return {
            "obs": (
                self.stability,
                self.label,
                self.label_uncertainty,
                self.outlier,
                self.density,
                self.code,
                self.category,
                self.metacell,
                *self.abundance,
            ),
            "layers": self.denoised,
            "obsm": (
                self.components,
                self.samples,
                self.umap,
                *self.nearest,
                self.beta_umaps,
                self.categories,
                self.label_probability,
                *self.denoised,
            ),
            "varm": (self.loadings, self.effects, self.traversal, self.label_genes),
        }

    @property
    def entries(self) -> tuple[str, ...]:
        """Within uns[key_added]: what tools write for a model."""
        return (
            self.beta_path, self.judged_on, self.beta_embeddings, self.diagnosis, self.denoising, self.label_confidence,
            self.abundances,
        )  # fmt: skip
