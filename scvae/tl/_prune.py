"""`prune`: removes the latent dimensions that a model does not use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..common.checks import check_positive_int
from ..common.distributed import process_group
from ..common.keys import Keys
from ..data.intake import with_labels
from ..inference.cells import read_cells, taking_mudata
from ..inference.fitted import FittedModel, check_model
from ..inference.groups import refuse_discrete
from ..inference.needs import check_amortized, check_without_skip
from ..kernels.context import computing
from ..training.refit import prune_cells
from ..training.results import write_results

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData


@computing()
@process_group()
@taking_mudata
def prune(
    adata: AnnData | MuData,
    model: FittedModel,
    *,
    epochs: int | None = None,
    beta: float | None = None,
    layer: str | None = None,
    key_added: str = "scvae",
    verbose: bool = True,
) -> FittedModel:
    """Removes the latent dimensions that a model does not use, and fine-tunes the rest.

    A dimension is unused if its KL, averaged over the cells held out in the fit, is at most 0.05 nats: its posterior is
    then close to the prior for every cell. For a model with a range of β, this must hold at the smallest β. The weights
    of the other dimensions are kept, and the mean contribution of an unused dimension to the decoder's first layer is
    added to that layer's bias. Fine-tuning uses the final β, a one-cycle schedule up to 0.3 of the fit's learning rate,
    and the same training and held-out cells, because all random numbers derive from the model's seed.

    Parameters
    ----------
    adata
        The cells that the model was fitted on; genes are matched by name.
    model
        A fitted model. It is not changed.
    epochs
        Passes over the training cells; None for a quarter of the epochs of the fit.
    beta
        For a model with a range of β, the β to embed at; None for 1 (if the range excludes 1, its geometric mean).
    layer
        Layer with the data, ``"X"`` for `X` or ``"raw"`` for `raw`; None for the layer used in the fit.
    key_added
        Name used in the slots written.
    verbose
        Whether to show one progress bar.

    Returns
    -------
    FittedModel
        A new model on the same device, with fewer latent dimensions; `outcome.pruned_from` is the earlier number.
        Its history and outcome cover the fit and the fine-tuning; its `training_config` is that of the fit.
        If all dimensions are in use, a copy of `model`. Slots written to `adata`, as by `scvae.fit`:

        ``obsm["X_<key_added>"]``, ``obsm["X_<key_added>_var"]``
            float32 posterior means and variances, cells x remaining dimensions.
        ``varm["<key_added>_loadings"]``
            float32 loadings, genes x remaining dimensions, if the decoder is linear.
        ``uns["<key_added>"]``
            Settings, history and outcome, with ``pruned_from``.

    Warns
    -----
    UserWarning
        If all dimensions are in use and none was removed, or if none is in use (posterior collapse) and only the
        dimension with the largest KL was kept.

    Raises
    ------
    ValueError
        As for `embed`; if `epochs` is below 1; if `adata` does not hold the cells of the fit in the same order.
    NonFiniteLossError
        If the fine-tuning diverges.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=60, n_latent=2, rng=0)
    >>> model = scvae.fit(adata, n_latent=12, rng=0, verbose=False)
    >>> pruned = scvae.tl.prune(adata, model, verbose=False)
    >>> adata.obsm["X_scvae"].shape[1] == pruned.n_latent < 12
    True
    """
    check_model(model)
    check_without_skip(model, "scvae.tl.prune")
    check_amortized(model, "scvae.tl.prune")
    keys = Keys(key_added)
    if epochs is not None:
        epochs = check_positive_int(epochs, "epochs")
    model.beta_of(beta)
    remedy = "a code has no dimensions of its own: fit with a smaller n_latent"
    refuse_discrete(model, "scvae.tl.prune", kinds=("code",), remedy=remedy)
    cells = with_labels(read_cells(adata, model, layer), adata, model.schema)
    if cells.fingerprint() != model.trained_on:
        raise ValueError(
            "adata does not hold the cells that the model was fitted on, in the same order; pass those cells, so that "
            "the cells held out in the fit are held out again"
        )
    pruned, _ = prune_cells(model, cells, epochs=epochs, verbose=verbose)
    write_results(adata, pruned, cells, keys, beta=beta)
    return pruned
