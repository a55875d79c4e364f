"""`embed`: the latent embedding of training cells or new cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..common.checks import check_positive_int
from ..common.keys import Keys
from ..common.provenance import check_replaceable
from ..common.rng import SeedLike, seed_of
from ..common.slots import target_of
from ..data.sources import Paths, Source, opened, small
from ..data.write_back import write_back
from ..inference.cells import read_cells, warn_of_absent
from ..inference.fitted import FittedModel, check_model
from ..inference.groups import group_slots, refuse_discrete
from ..inference.posterior import latent_draws, posterior_moments
from ..inference.views import given_views, views_of_cells
from ..kernels.context import computing
from ..training.results import write_embedding

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData


@computing()
def embed(
    adata: AnnData | MuData | Paths | Source,
    model: FittedModel,
    *,
    beta: float | None = None,
    n_samples: int = 0,
    refine: int = 0,
    views: str | Sequence[str] | None = None,
    also: Mapping[str, AnnData] | None = None,
    layer: str | None = None,
    rng: SeedLike = 0,
    key_added: str = "scvae",
    copy: bool = False,
) -> AnnData | None:
    """Embeds cells with a fitted model: those it was trained on or new ones.

    Parameters
    ----------
    adata
        Cells with raw data, as in the fit. Genes are matched by name, in any order; genes that the model does not know
        are ignored. `obs` must have the model's covariate columns, with categories it knows (see `batch_key` of
        `scvae.fit` for what is the same category); a batch that has the name of one of the model is taken for it. Or
        files, as in `scvae.fit`: their values stay on disk. Or a MuData with the modalities of the model.
    model
        A fitted model.
    beta
        For a model with a range of β, the β to embed at; None for 1 (if the range excludes 1, its geometric mean).
    n_samples
        Posterior draws per cell to write as well, to check how much a result depends on the uncertainty of the latent
        positions: ``adata.obsm["X_scvae_samples"][:, i]`` is one embedding of all cells. `scvae.tl.neighbors` combines
        several draws in one graph.
    refine
        Number of gradient steps that the mean and variance of each cell take after the encoder, towards the best normal
        q(z | x) under the decoder: what amortisation costs is given back (Cremer et al. 2018). The steps depend on the
        model's seed only. Such an embedding is another than that of the encoder, from which all other tools start.
        Take 200 where the place of single cells matters, not for a map of many: types are told apart hardly better,
        and a new cell takes 6 to 11 ms instead of 0.02 to 0.04 (500 genes).
    views
        For a model of several measurements, the names of those to embed the cells by (``"rna"``, ``"protein"``), as if
        they had no other; None for all that each cell has.
    also
        A second AnnData with a further measurement, by its name, in place of its slot of `obsm`.
    layer
        Layer with the data, ``"X"`` for `X` or ``"raw"`` for `raw`; None for the layer used in the fit.
    rng
        Seed or numpy Generator of the draws.
    key_added
        Name used in the slots written.
    copy
        Whether to return a copy with the results and leave `adata` unchanged; for files, an AnnData of the
        cells without values and genes; for a MuData, an AnnData of its first modality with all cells.

    Returns
    -------
    AnnData or None
        The copy, or None. Slots written to `adata`, or into the files:

        ``obsm["X_<key_added>"]``
            float32 posterior means, cells x n_latent.
        ``obsm["X_<key_added>_var"]``
            float32 posterior variances, cells x n_latent; without covariances, as `scvae.fit` says.
        ``obsm["X_<key_added>_samples"]``
            float32 draws, cells x n_samples x n_latent, if `n_samples` is above 0.
        ``uns["<key_added>"]``, ``varm["<key_added>_loadings"]``, ``obsm["X_<key_added>_components"]``
            The record of the model, the loadings of a linear decoder and the components of a mixture as prior, as
            written by `scvae.fit`. ``refine`` is in the record, and ``cells_with`` for several measurements: the
            number of cells embedded by each.
        ``obs["<key_added>_category"]``, ``obsm["X_<key_added>_categories"]``, ``obs["<key_added>_code"]``
            With a model of types or codes, as written by `scvae.fit`.

        Results of another model under this key are removed, as by `scvae.fit`; so are those of the embedding at another
        β, or with another `refine` (effects, draws, stability and its graph).

    Raises
    ------
    ValueError
        If fewer than half of the model's genes are found, a batch is unknown, the data do not suit the likelihood, or
        the model was not trained for `beta`; if a cell has none of the `views`.

    Warns
    -----
    UserWarning
        If `adata` lacks the slot of a further measurement and `views` does not say that it is to be left out.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> model = scvae.fit(adata[:150].copy(), n_latent=5, rng=0, verbose=False)
    >>> new = adata[150:, ::-1].copy()  # other cells, their genes in another order
    >>> scvae.tl.embed(new, model)
    >>> new.obsm["X_scvae"].shape
    (50, 5)
    """
    check_model(model)
    keys = Keys(key_added)
    n_samples, refine = (
        check_positive_int(value, name) if value != 0 else 0
        for value, name in ((n_samples, "n_samples"), (refine, "refine"))
    )
    if refine:
        remedy = "leave refine out, because rounding has no gradient to follow"
        refuse_discrete(model, "scvae.tl.embed(refine=)", kinds=("code",), remedy=remedy)
    schema = model.schema
    layer_read = schema.layer_of(layer)
    with opened(adata, layer_read, to_change=not copy, keys=keys, first=schema.name, slots=schema.slots) as source:
        check_replaceable(source.adata.uns, keys)
        cells = given_views(read_cells(source.adata, model, layer, source.matrix, also), schema, views)
        if views is None:
            warn_of_absent(source.adata, schema, also)
        moments = posterior_moments(model, cells, beta=beta, refine=refine)
        draws = model.written(latent_draws(*moments, n_samples, seed_of(rng))) if n_samples else None
        target = target_of(source.adata, copy=copy and not source.files)
        more = {"cells_with": views_of_cells(cells, model.schema)} if model.schema.views else None
        write_embedding(target, model, moments, keys, beta=beta, refine=refine, more=more, obsm={keys.samples: draws})
    if not copy:
        slots = group_slots(model, keys)
        obsm = [*keys.embedding, keys.samples, *slots["obsm"]]
        write_back(source, obsm=obsm, varm=[keys.loadings], uns=[keys.uns], obs=slots["obs"])
        return None
    return small(source) if source.files else target
