"""`metacells`: counts summed over groups of similar cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from ..common.checks import check_adata, check_obs_column, check_positive_int
from ..common.keys import Keys
from ..common.provenance import check_replaceable
from ..common.rng import SeedLike, numpy_generator, seed_of
from ..common.slots import write_made
from ..data.containers import matrix_of, name_of, var_names_of
from ..inference.cells import read_cells, taking_mudata
from ..inference.fitted import FittedModel, check_model
from ..inference.groups import discrete_of, group_of
from ..inference.posterior import posterior_moments
from ..inference.trained import identity_of
from ..kernels.context import computing

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

CELLS_PER_METACELL = 75  # Persad et al. 2023
CLUSTERING = 58  # random stream
STARTS = 3  # of k-means


@computing()
@taking_mudata
def metacells(
    adata: AnnData | MuData,
    model: FittedModel,
    *,
    n_metacells: int | None = None,
    labels_keys: str | Sequence[str] = (),
    beta: float | None = None,
    layer: str | None = None,
    key_added: str = "scvae",
    rng: SeedLike = 0,
) -> AnnData:
    """Sums the counts of groups of similar cells: the codes of a model of codes, or k-means clusters of z.

    A metacell has the counts of some dozens of cells in one state, so that it has few zeros and can be taken for a cell
    in methods that need depth, as gene-gene correlations (Baran et al. 2019; Persad et al. 2023). Take clusters of a
    default fit: on two real sets they were about as pure as codes and SEACells, and more compact than codes on one.

    Parameters
    ----------
    adata
        Cells in memory with counts (or binary data), as in the fit; genes of the model are matched by name. The counts
        of all genes are summed. Cells of different batches come into one metacell if the model places them together: to
        keep batches apart, pass the cells of one at a time.
    model
        A fitted model.
    n_metacells
        Number of k-means clusters of the embedding, at most one for each cell. None takes the codes of a model with
        ``NetworkConfig(latent="quantized")``, and else one metacell for 75 cells, as Persad et al. advise.
    labels_keys
        Columns of `adata.obs` with labels: the metacell gets the label of most of its cells.
    beta
        For a model with a range of β, the β of the embedding; None as in `scvae.tl.embed`.
    layer
        Layer with the data, ``"X"`` for `X` or ``"raw"`` for `raw`; None for the layer used in the fit.
    key_added
        Name used in the slots written.
    rng
        Seed or numpy Generator of k-means.

    Returns
    -------
    AnnData
        Metacells x all genes of the layer that was read, with

        ``X``
            float32 sums of the counts, CSR; also in the layer that the model reads, if it has one.
        ``obs``
            ``"n_cells"``; for each of `labels_keys` the commonest label under the same name, and
            ``"<label>_purity"``, its share among the cells with a label.
        ``obsm["X_<key_added>"]``
            float32 mean of the posterior means.

        Slots written to `adata`:

        ``obs["<key_added>_metacell"]``
            The name of each cell's metacell.

    Raises
    ------
    ValueError
        As for `embed`; if the model is of real values, which have no sum; if there are more metacells than cells.
    TypeError
        If the matrix is not in memory.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=300, n_genes=100, rng=0)
    >>> model = scvae.fit(adata, n_latent=5, rng=0, verbose=False)
    >>> few = scvae.tl.metacells(adata, model, n_metacells=20, labels_keys="cell_type")
    >>> few.shape
    (20, 100)
    >>> list(few.obs)
    ['n_cells', 'cell_type', 'cell_type_purity']
    """
    check_model(model)
    keys = Keys(key_added)
    check_adata(adata)
    check_replaceable(adata.uns, keys)
    if model.schema.kind == "real":
        raise ValueError(f"the model has likelihood={model.likelihood!r}, but only counts and 0/1 data can be summed")
    columns = [labels_keys] if isinstance(labels_keys, str) else list(labels_keys)
    labels = {key: check_obs_column(adata, key) for key in columns}
    source = model.schema.layer_of(layer)
    matrix = matrix_of(adata, source)
    if not isinstance(matrix, np.ndarray) and not sp.issparse(matrix):
        raise TypeError(f"{name_of(source)} is not in memory; pass adata.to_memory()")
    if n_metacells is not None and check_positive_int(n_metacells, "n_metacells") > adata.n_obs:
        raise ValueError(f"n_metacells is {n_metacells}, but there are {adata.n_obs:,} cells; pass a smaller number")
    moments = posterior_moments(model, read_cells(adata, model, layer), beta=beta)
    embedding = model.written(moments[0])
    prior = discrete_of(model)
    if n_metacells is None and prior is not None and prior.kind == "code":
        name, code = "code", np.asarray(group_of(model, moments).codes)
    else:
        n = n_metacells or max(1, adata.n_obs // CELLS_PER_METACELL)
        name, code = "metacell", _clusters(embedding, n, seed_of(rng))
    groups, code = np.unique(code, return_inverse=True)
    member = sp.csr_matrix((np.ones(len(code), np.float32), (code, np.arange(len(code)))), (len(groups), len(code)))
    names = [f"{name}_{group}" for group in groups]
    result = _summed(member, matrix, var_names_of(adata, source), names, model.schema.layer)
    result.obs["n_cells"] = np.bincount(code)
    for key, column in labels.items():
        result.obs[key], result.obs[f"{key}_purity"] = _commonest(column, code, len(groups))
    result.obsm[keys.mean] = (member @ embedding / np.bincount(code)[:, None]).astype(np.float32)
    column = pd.Categorical.from_codes(code, names)
    write_made(adata, keys, identity_of(model, beta), obs={keys.metacell: column})
    return result


def _clusters(embedding: np.ndarray, n: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    state = int(numpy_generator(seed, CLUSTERING).integers(2**31))
    return np.asarray(KMeans(n, n_init=STARTS, random_state=state).fit_predict(embedding.astype(np.float64)))


def _summed(member: sp.csr_matrix, matrix: Any, genes: pd.Index, names: list[str], layer: str | None) -> AnnData:
    from anndata import AnnData

    sums = sp.csr_matrix(member @ matrix).astype(np.float32)
    layers = {} if layer is None else {layer: sums.copy()}
    return AnnData(sums, obs=pd.DataFrame(index=names), var=pd.DataFrame(index=genes), layers=layers)


def _commonest(column: pd.Series, code: np.ndarray, n: int) -> tuple[pd.Categorical, np.ndarray]:
    """The commonest label of each group, and its share among the cells with a label."""
    labels, names = pd.factorize(column.astype("object").where(column.notna()), sort=True)
    counts = np.zeros((n, max(1, len(names))), np.int64)
    np.add.at(counts, (code[labels >= 0], labels[labels >= 0]), 1)
    total, most = counts.sum(1), counts.argmax(1)
    share = np.where(total > 0, counts.max(1) / np.maximum(total, 1), np.nan)
    return pd.Categorical.from_codes(np.where(total > 0, most, -1), names), share
