"""`map_query`: cells of unseen batches brought into the latent space of a fitted model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.checks import check_adata, check_positive_int, listing
from ..common.distributed import process_group
from ..common.keys import Keys
from ..data.covariates import widened
from ..data.intake import Cells
from ..data.schema import Schema
from ..inference.cells import read_cells, with_batch_key
from ..inference.fitted import FittedModel, check_model
from ..training.refit import map_cells
from ..training.results import write_results

if TYPE_CHECKING:
    from anndata import AnnData


@process_group()
def map_query(
    adata: AnnData,
    model: FittedModel,
    *,
    batch_key: str | None = None,
    epochs: int | None = None,
    beta: float | None = None,
    layer: str | None = None,
    key_added: str = "scvae",
    verbose: bool = True,
) -> FittedModel:
    """Maps cells of batches that a model does not know onto the cells it does know, which stay where they are.

    A batch that the model was not fitted on gets parameters of its own: the decoder's weights for it (with
    ``NetworkConfig(dispersion="gene-batch")`` its inverse dispersions, too) and a shift of the encoder's first layer.
    They alone are trained, by the objective of the fit on the query's cells (after Lotfollahi et al. 2022, "Mapping
    single-cell data to reference atlases by transfer learning"); every other weight stays as it is to the bit, and so
    do the embedding and the decoded expression of all cells of known batches. New categories of the other categorical
    covariates are learnt in the same way.

    A cell of a new batch is embedded ten steps of the gradient from where the encoder puts it, towards the best
    posterior by the decoder, here and wherever the model returned meets it, as in `scvae.tl.embed`: the encoder was
    trained on no cell of the batch, and its one shift does not make up for another technology. With 2,000 genes this
    takes about thirty times as long as the encoder alone.

    Genes are matched by name. Genes that the query lacks are no zeros: they have no part in the likelihood nor in those
    steps, and in training the encoder is given what the decoder expects of them.

    Parameters
    ----------
    adata
        The query: cells with raw data as at the fit, and the model's batch and covariate columns in `obs`. Cells of
        batches that the model knows may be among them: they are embedded, and nothing is learnt from them.
    model
        A model fitted with a `batch_key` or a categorical covariate. It stays as it is.
    batch_key
        Column of `adata.obs` with the batch, where it is named otherwise than at the fit; None for the name of the fit.
        The model returned keeps that name: for `scvae.tl.embed` and other tools the column has to be there under it.
    epochs
        Passes over the cells of new batches; None for as many as make 400 steps, but at least two.
    beta
        β at which the embedding is written, of a model of many; None for 1 (or the geometric middle of a range
        without 1).
    layer
        Layer that holds the data, ``"X"`` for `X`; None for where the fit found them.
    key_added
        Name of the slots written.
    verbose
        Whether to show one progress bar.

    Returns
    -------
    FittedModel
        A new model on the same device that knows old and new batches. It can be saved, used for both, and be mapped
        onto again. Its history, outcome and `trained_on` are those of the reference. Slots written to `adata`:

        ``obsm["X_<key_added>"]``, ``obsm["X_<key_added>_var"]``
            float32 posterior means and variances, cells x n_latent, in the space of the reference.
        ``varm["<key_added>_loadings"]``
            As `scvae.fit`, with a linear decoder.
        ``uns["<key_added>"]``
            The reference's record, and under ``mapping``: ``new`` (the new categories of each column),
            ``genes_found`` and ``genes_missing``, ``coverage`` (share of the modelled genes found), ``epochs``,
            ``converged``, ``reason``, ``held_out_elbo`` (nats per cell over query cells not trained on) and
            ``history``.

    Warns
    -----
    UserWarning
        If genes of the model are missing, with how many were found.

    Raises
    ------
    ValueError
        If no category is new, so that there is nothing to learn (`scvae.tl.embed` embeds such cells), if `batch_key` is
        given for a model without batches or names a covariate, or as `embed`. `adata` is then as it was.
    NonFiniteLossError
        If training diverges.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=600, n_genes=100, n_batches=3, rng=0)
    >>> is_new = adata.obs["batch"] == "batch_2"
    >>> reference, query = adata[~is_new].copy(), adata[is_new].copy()
    >>> model = scvae.fit(reference, batch_key="batch", rng=0, verbose=False)
    >>> mapped = scvae.tl.map_query(query, model, verbose=False)
    >>> mapped.schema.batch.categories
    ('batch_0', 'batch_1', 'batch_2')
    """
    check_model(model)
    check_adata(adata)
    keys = Keys(key_added)
    if epochs is not None:
        epochs = check_positive_int(epochs, "epochs")
    model.beta_of(beta)
    known = with_batch_key(model.schema, batch_key)
    there = _with_new(adata, known)
    cells = read_cells(adata, there, layer)
    schema = with_batch_key(there, model.schema.batch.key if model.schema.batch else None)
    mapped, training = map_cells(model, cells, schema, epochs=epochs, verbose=verbose)
    write_results(adata, mapped, cells, keys, beta=beta, more={"mapping": _record(model, training, cells)})
    return mapped


def _with_new(adata: AnnData, known: Schema) -> Schema:
    """The schema with the new categories of `adata`, of which there must be some."""
    if not known.categoricals:
        raise ValueError(
            "the model was fitted without batch_key and without categorical covariates, so a new batch has nothing to "
            "learn; embed these cells with scvae.tl.embed, or fit the reference with batch_key"
        )
    schema = widened(adata, known, mapped=True)
    if schema == known:
        keys = listing(f"adata.obs[{column.key!r}]" for column in schema.categoricals)
        raise ValueError(
            f"the model knows every category in {keys}, so there is nothing to learn; embed these cells with "
            "scvae.tl.embed, or give those of a new batch a name of its own"
        )
    return schema


def _record(model: FittedModel, training: FittedModel, cells: Cells) -> dict[str, Any]:
    """What mapping adds to the record of the reference."""
    n_genes, n_missing = len(model.genes), 0 if cells.missing is None else len(cells.missing)
    pairs = zip(model.schema.categoricals, training.schema.categoricals, strict=True)
    outcome = training.outcome
    return {
        "new": {old.key: np.array(new.categories[len(old.categories) :], dtype=str) for old, new in pairs},
        "genes_found": n_genes - n_missing,
        "genes_missing": n_missing,
        "coverage": 1.0 - n_missing / n_genes,
        "epochs": outcome.epochs,
        "converged": outcome.converged,
        "reason": outcome.reason,
        "held_out_elbo": outcome.held_out_elbo,
        "history": {name: column.to_numpy(copy=True) for name, column in training.history.items()},
    }
