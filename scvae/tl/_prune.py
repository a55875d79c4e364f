"""`prune`: a model without the latent dimensions it does not use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..common.checks import check_positive_int
from ..common.distributed import process_group
from ..common.keys import Keys
from ..inference.cells import read_cells
from ..inference.fitted import FittedModel, check_model
from ..training.refit import prune_cells
from ..training.results import write_results

if TYPE_CHECKING:
    from anndata import AnnData


@process_group()
def prune(
    adata: AnnData,
    model: FittedModel,
    *,
    epochs: int | None = None,
    beta: float | None = None,
    layer: str | None = None,
    key_added: str = "scvae",
    verbose: bool = True,
) -> FittedModel:
    """Drops the latent dimensions that a model does not use, and fine-tunes what is left.

    A dimension is unused if its KL, averaged over the cells held out at the fit, is at most 0.05 nats: its posterior is
    then nearly the prior for every cell. Of a model of many β, that must hold at the smallest. The weights of all
    others are kept; what an unused dimension adds on average to the decoder's first layer goes into that layer's bias.
    Fine-tuning goes on at the final β, with a one-cycle schedule up to 0.3 of the fit's learning rate, on the cells
    that the fit was trained on: the same cells are held out, since all random numbers follow from the model's seed.

    Parameters
    ----------
    adata
        The cells that the model was fitted on; genes are matched by name.
    model
        A fitted model. It stays as it is.
    epochs
        Passes over the training cells; None for a quarter of those of the fit.
    beta
        β at which the embedding is written, of a model of many; None for the β of the fit.
    layer
        Layer that holds the data, ``"X"`` for `X`; None for where the fit found them.
    key_added
        Name of the slots written.
    verbose
        Whether to show one progress bar.

    Returns
    -------
    FittedModel
        A new model on the same device, with fewer latent dimensions; `outcome.pruned_from` says how many there were.
        Its history and its outcome are those of the fit and the fine-tuning together, its `training_config` is that of
        the fit. If no dimension is unused, a copy of `model`. Slots written to `adata`, as by `scvae.fit`:

        ``obsm["X_<key_added>"]``, ``obsm["X_<key_added>_var"]``
            float32 posterior means and variances, cells x dimensions left.
        ``varm["<key_added>_loadings"]``
            float32 loadings, genes x dimensions left, if the decoder is linear.
        ``uns["<key_added>"]``
            Settings, history and outcome, with ``pruned_from``.

    Warns
    -----
    UserWarning
        If all dimensions are in use, so that none was dropped, or none is, so that the posterior has collapsed and only
        the dimension with the largest KL was kept.

    Raises
    ------
    ValueError
        As `embed`; if `epochs` is below 1; or if these are not the cells of the fit in their order.
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
    keys = Keys(key_added)
    if epochs is not None:
        epochs = check_positive_int(epochs, "epochs")
    model.beta_of(beta)
    cells = read_cells(adata, model, layer)
    if cells.fingerprint() != model.trained_on:
        raise ValueError(
            "adata does not hold the cells that the model was fitted on, in their order; pass those: of others, it is "
            "not known which the fit held out, and some of these would be trained on"
        )
    pruned, _ = prune_cells(model, cells, epochs=epochs, verbose=verbose)
    write_results(adata, pruned, cells, keys, beta=beta)
    return pruned
