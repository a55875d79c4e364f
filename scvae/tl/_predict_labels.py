"""`predict_labels`: names cells by the classifier of a model that was fitted with labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..common.checks import check_adata, check_obs_column, check_probability
from ..common.keys import Keys, as_keys
from ..common.provenance import check_replaceable
from ..common.slots import target_of, write_made
from ..data.label_tree import Hierarchy
from ..data.labels import UNKNOWN
from ..diagnostics.expression_pca import most_alike
from ..inference.cells import read_new, taking_mudata
from ..inference.fitted import FittedModel, check_model
from ..inference.label_prediction import calibrated, labels_of, predict
from ..inference.label_transfer import N_PEERS
from ..inference.naming import Judges, as_given, confidence, named, tree_for
from ..inference.posterior import posterior_moments
from ..kernels.context import computing

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData


@computing()
@taking_mudata
def predict_labels(
    adata: AnnData | MuData,
    model: FittedModel,
    *,
    hierarchy: Hierarchy | None = None,
    max_error: float = 0.05,
    unknown_above: float = 0.7,
    probabilities: bool = False,
    batch_key: str | None = None,
    layer: str | None = None,
    key_added: str = "scvae",
    copy: bool = False,
) -> AnnData | None:
    """Labels cells by the classifier of a model that was fitted with ``labels_key``.

    The probability of a label is the softmax of the classifier's logits at the posterior mean, divided by a temperature
    (Guo et al. 2017). The temperature is set by the labels of cells that the fit held out of the training, together
    with the share of them that is wrong, so that the probability is that of the true label. Cells off the reference are
    called unknown together with similar cells, by the score of `scvae.tl.transfer_labels`, for which the model keeps
    the latent positions of up to 5,000 labelled cells. That score is for types that no label stands for; the
    probability says which label, if it is one of them.

    With `hierarchy`, a cell gets the deepest name in a tree of labels of which the evidence is sure enough: its own
    type, else the parent, and so on, else ``"unknown"``. If the cells are exchangeable with those of the fit, at most a
    share of `max_error` of the names given is expected to be wrong (conformal selection, Jin & Candès 2023; the
    held-out cells of the fit are what it is judged by; for one with a coarser label, by `label_hierarchy` of the fit,
    every name that agrees with it is right). Cells of another technology are not exchangeable: more names
    are wrong then. The rule looks at all cells of a call together, so a name may depend on the other cells.

    Take `transfer_labels` if the model was fitted without labels, or the labels changed since; it needs the reference.

    Parameters
    ----------
    adata
        Cells to label, those of the fit or others. The model must know their batches: for new batches, use the model
        that `scvae.tl.map_query` returns.
    model
        A model that was fitted with labels.
    hierarchy
        The tree of labels: a dict or Series from child to parent; a nested dict (``{"T": {"CD4 T": {}, "CD8 T": {}}}``,
        or with lists as its innermost values); a table with a column for each level, from coarse to fine, as
        ``reference.obs[["lineage", "cell_type"]]``; names of such columns of `adata.obs`, or of labels in the model's
        file if `adata.obs` lacks them; or ``"learnt"`` for a tree that joins labels which are taken for each other in
        held-out cells; or the path of an ontology in the OBO format (``"cl.obo"``, the Cell Ontology; needs
        ``pip install 'scvae-torch[ontology]'``), whose names, ids or exact synonyms the labels must be. It is cut to
        classes that part the labels; where two of them share some labels only, the larger is kept. A label that is not
        in the tree is a child of its root. None gives each cell its most probable label.
    max_error
        With `hierarchy`: the largest expected share of wrong names among those given, in [0, 1].
    unknown_above
        Outlier score above which a cell is called ``"unknown"``, in [0, 1]; 1 calls no cell unknown for this reason.
    probabilities
        Whether to write the probabilities of all labels.
    batch_key
        Column of `adata.obs` with the batch, if its name differs from that in the fit, as in `scvae.tl.map_query`.
    layer
        Layer with the data, ``"X"`` for `X` or ``"raw"`` for `raw`; None for the layer used in the fit.
    key_added
        Name used in the slots written.
    copy
        Whether to return a copy with the results and leave `adata` unchanged.

    Returns
    -------
    AnnData or None
        The copy, or None. Slots written, the first three as by `transfer_labels`:

        ``obs["<key_added>_label"]``
            The most probable label, or the name of a node of the tree, or ``"unknown"``; categorical.
        ``obs["<key_added>_label_uncertainty"]``
            1 - probability of that label or node, in [0, 1]; of the most probable one for cells called unknown.
        ``obs["<key_added>_outlier"]``
            Share of the labelled cells that are nearer to their neighbours than the cell is to its own, in [0, 1].
        ``obsm["<key_added>_label_probability"]``
            With `probabilities`: float32 table, cells x labels.
        ``uns["<key_added>"]["label_confidence"]``
            For `scvae.pl.label_confidence`: error and coverage of the labels of held-out cells of the fit, by level of
            the tree, and the threshold used.

    Warns
    -----
    UserWarning
        If too few labelled cells were held out of the training for any name at `max_error` (19 are needed for 0.05), or
        an ontology lacks some labels.

    Raises
    ------
    ValueError
        As for `embed`; if the model was fitted without labels, or `hierarchy` is not a tree over its labels.
        MissingKeyError (also a KeyError) if a column does not exist. `adata` is then unchanged.
    TypeError
        If `hierarchy` has another form.
    FileNotFoundError, ImportError
        If `hierarchy` is the path of an ontology that does not exist, or obonet, which reads it, is not installed.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=300, n_genes=60, n_types=3, rng=0)
    >>> model = scvae.fit(adata, labels_key="cell_type", rng=0, verbose=False)
    >>> scvae.tl.predict_labels(adata, model)
    >>> adata.obs[["scvae_label", "scvae_label_uncertainty", "scvae_outlier"]].shape
    (300, 3)
    """
    check_model(model)
    keys = Keys(key_added)
    check_adata(adata)
    check_replaceable(adata.uns, keys)
    limit = check_probability(unknown_above, "unknown_above")
    max_error = check_probability(max_error, "max_error")
    known, labels = labels_of(model)
    judges = Judges(as_given(calibrated(known, known.held_out), known.uniform), labels.members[known.truth])
    tree = tree_for(hierarchy, lambda key: _column(adata, model, key), judges, labels.names)
    cells = read_new(adata, model, layer, batch_key=batch_key)
    mean, _ = posterior_moments(model, cells)
    peers = most_alike(cells, N_PEERS, kind=model.schema.kind, seed=model.seed)
    found = predict(model, known, labels.members, mean, peers, cells.group)
    is_off = found.outlier > limit
    limited = max_error if hierarchy is not None else None
    names = named(tree, judges, found.probability, is_off, limited, random=known.uniform)
    target = target_of(adata, copy=copy)
    table = pd.DataFrame(found.probability.astype(np.float32), index=adata.obs_names, columns=as_keys(labels.names))
    write_made(
        target,
        keys,
        model.digest,
        obs={
            keys.label: pd.Categorical(names.label, categories=[*tree.names, UNKNOWN]),
            keys.label_uncertainty: 1.0 - names.probability,
            keys.outlier: found.outlier,
        },
        obsm={keys.label_probability: table if probabilities else None},
        record={keys.label_confidence: confidence(tree, judges, names, max_error)},
    )
    return target if copy else None


def _column(adata: AnnData, model: FittedModel, key: str) -> pd.Series:
    """A column of labels: of `adata`, or of the reference that came with the model."""
    kept = {} if model.reference is None else model.reference.labels
    if key in kept and key not in adata.obs:
        return pd.Series(kept[key])
    return check_obs_column(adata, key)
