"""`generate`: new cells drawn from the prior, or similar to given cells."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from ..common.checks import check_adata, check_positive_int, listing, missing_key, speaking_of
from ..common.keys import Keys, as_keys
from ..common.rng import SeedLike, numpy_generator, seed_of, torch_generator
from ..data.batches import Batch, chunks
from ..data.intake import Cells
from ..data.schema import Categorical, Numeric
from ..inference.cells import read_cells
from ..inference.decoding import TABLE, batch_codes, posterior_draws
from ..inference.drawing import TABLES, draw_values, drawn_cells, stacked
from ..inference.fitted import FittedModel, check_model
from ..inference.mixture import Mixture, fit_mixture
from ..inference.posterior import at_beta, whole_libraries
from ..kernels.block import Dense
from ..kernels.context import computing, working_on

if TYPE_CHECKING:
    from anndata import AnnData

PRIOR, MIXTURE, VALUES = 52, 53, 54  # random streams
FEWEST = 10  # fewest points per column to fit a mixture to
# Weight of the log library size relative to a column of z in the search for the cell whose covariates are copied:
# covariates often depend on depth, which is one column of many.
LIBRARY_WEIGHT = 3.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Origin:
    """Inputs that new cells are decoded from: as in `Cells`, with z in place of the values."""

    z: Float[np.ndarray, "cells latent"]
    library: Float[np.ndarray, " cells"]
    codes: Int[np.ndarray, "cells categoricals"]
    numeric: Float[np.ndarray, "cells numerics"]
    record: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Given:
    """Covariates given by the user: codes and standardised numbers by position among the model's columns."""

    codes: dict[int, Int[np.ndarray, " cells"]]
    numeric: dict[int, Float[np.ndarray, " cells"]]


@computing()
def generate(
    model: FittedModel,
    *,
    n: int,
    like: AnnData | None = None,
    batch: str | Sequence[str] | None = None,
    covariates: Mapping[str, Any] | None = None,
    beta: float | None = None,
    layer: str | None = None,
    key_added: str = "scvae",
    rng: SeedLike = 0,
) -> AnnData:
    """Draws new cells from a model: from the prior, or from the region of latent space that given cells occupy.

    z, library size and batch are drawn, then x ~ p(x | z, s). Without `like`, z ~ N(0, I), and library sizes are drawn
    independently of z from those of the fit (for a mapped batch, of its query), batch by batch. The prior also covers
    the gaps between cell types, and in real data the library size depends on the cell type. Cells drawn `like` those of
    the fit are therefore more realistic.

    With `like`, a Gaussian mixture over z and the log library size is fitted in each batch to one posterior draw per
    cell, i.e. to the aggregate posterior (Makhzani et al. 2016; Ghosh et al. 2020 also fit a density after training).
    The number of components, 1 to 64, is the one with the lowest AIC.

    Parameters
    ----------
    model
        A fitted model.
    n
        Number of new cells.
    like
        Cells with raw data, as in the fit, e.g. those of the fit or of one cell type; genes are matched by name. If
        genes are missing, the counts that the model expects for them are added to the library sizes.
    batch
        One or more of the model's batches to draw new cells for; None for all batches in `like` (or in the fit). Each
        batch gets new cells in proportion to its cells there. With `like`, new cells resemble those of their batch.
    covariates
        Values of the model's other covariates: {column: one value, or one for each new cell}. With `like`, a covariate
        not given is copied from the cell nearest in z and library size; without `like`, all must be given.
    beta
        For a model with a range of β, the β of posterior and decoder; None for 1 (if the range excludes 1, its
        geometric mean). The prior matches the model only at β = 1; it fits the cells less well far from there.
    layer
        Layer of `like` with the data, ``"X"`` for `X` or ``"raw"`` for `raw`; None for the layer used in the fit.
    key_added
        Name used in the slots written.
    rng
        Seed or numpy Generator.

    Returns
    -------
    AnnData
        n cells x modelled genes, suitable for `scvae.tl.embed` and the other tools. Slots:

        ``X``
            float32 values drawn, CSR (dense for real values); also in the layer that the model reads, if it has one.
        ``obs``
            The model's batch column, covariates and size factors, named as in the fit.
        ``obsm["X_<key_added>"]``
            float32 draws of z, cells x n_latent, in the coordinates of the embedding (not posterior means).
        ``uns["<key_added>"]["drawn"]``
            ``source`` ("prior" or "aggregate posterior"), ``components`` of the mixture by batch, ``beta``, ``seed``.

    Raises
    ------
    ValueError
        If a batch or category is unknown, `like` has no cells of a batch in `batch`, a covariate is neither given nor
        in `like`, an argument has no effect, or the model was saved before library sizes were recorded. With `like`,
        also as for `embed`.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> model = scvae.fit(adata, n_latent=5, rng=0, verbose=False)
    >>> scvae.tl.generate(model, n=50).shape
    (50, 100)
    >>> scvae.tl.generate(model, n=50, like=adata[adata.obs["cell_type"] == "type_1"]).shape
    (50, 100)
    """
    check_model(model)
    keys = Keys(key_added)
    n, seed = check_positive_int(n, "n"), seed_of(rng)
    if like is None and layer is not None:
        raise ValueError("layer has no effect without like, because it names a layer of like; leave it out")
    at = model.beta_of(beta)
    chosen = None if batch is None else batch_codes(model, batch, "batch")
    given = _read_covariates(model, covariates or {}, n)
    if like is None:
        origin = _from_prior(model, n, chosen, given, seed)
    else:
        with speaking_of("like"):
            like_cells = read_cells(check_adata(like), model, layer)
        origin = _from_cells(model, like_cells, n, chosen, given, at, seed)
    pieces = []
    with torch.no_grad(), working_on(model.device):
        for part in chunks(n, max(1, int(TABLE / (TABLES * len(model.genes))))):
            cells = Batch(
                x=Dense(torch.zeros(len(part), 0)),
                library=torch.from_numpy(origin.library[part]),
                codes=torch.from_numpy(origin.codes[part]),
                numeric=torch.from_numpy(origin.numeric[part]),
                has_batch=model.schema.batch is not None,
            ).to(model.device)
            z = torch.from_numpy(origin.z[part]).to(model.device)
            generator = torch_generator(seed, VALUES, int(part[0]), device=model.device)
            pieces.append(draw_values(model, z, at_beta(model, cells, at), generator))
    return drawn_cells(
        model,
        stacked(pieces, model.schema.kind),
        _obs(model, origin),
        obsm={keys.mean: model.written(origin.z)},
        uns={keys.uns: {keys.origin: origin.record | {"beta": at, "seed": seed}}},
    )


def _from_prior(model: FittedModel, n: int, chosen: tuple[int, ...] | None, given: _Given, seed: int) -> _Origin:
    """z ~ N(0, I); batches in proportion to their cells in the fit; library sizes from those of the batch."""
    schema, sizes, rng = model.schema, model.libraries, numpy_generator(seed, PRIOR)
    columns = [c.key for c in schema.categorical] + [c.key for c in schema.numeric]
    n_batches = len(schema.batch.categories) if schema.batch else 0
    first = 1 if schema.batch else 0
    there = [schema.categoricals[i].key for i in given.codes] + [schema.numeric[i].key for i in given.numeric]
    absent = [key for key in columns if key not in there]
    if absent:
        raise ValueError(
            f"the model has the covariates {listing(columns)}, but {listing(absent)} of the new cells is not given; "
            "pass covariates={column: value}, or pass cells to copy it from as like="
        )
    known = set() if sizes is None else {code for code, count in enumerate(sizes.n_cells) if count > 0}
    wanted = chosen or tuple(sorted(known)) or tuple(range(max(1, n_batches)))
    if schema.kind != "real" and not known.issuperset(wanted):
        raise ValueError(
            "the model has no library sizes for the new cells (it was saved before they were recorded, or its last "
            "training had no cells of these batches); pass like=, cells that the new ones should resemble"
        )
    counts = np.ones(len(wanted)) if sizes is None else np.array([sizes.n_cells[code] for code in wanted], float)
    batch = np.array(wanted)[rng.choice(len(wanted), size=n, p=counts / counts.sum())]
    codes = np.empty((n, len(schema.categoricals)), np.int64)
    codes[:, :first] = batch[:, None]
    return _Origin(
        z=rng.standard_normal((n, model.n_latent), np.float32),
        library=np.ones(n, np.float32) if sizes is None else sizes.draw(batch, rng),
        codes=_replaced(codes, given.codes),
        numeric=_replaced(np.empty((n, len(schema.numeric)), np.float32), given.numeric),
        record={"source": "prior"},
    )


def _from_cells(
    model: FittedModel,
    cells: Cells,
    n: int,
    chosen: tuple[int, ...] | None,
    given: _Given,
    beta: float,
    seed: int,
) -> _Origin:
    """z and log library size from a mixture in each batch; covariates from the nearest cell."""
    rng = numpy_generator(seed, MIXTURE)
    groups = cells.group
    wanted = tuple(np.unique(groups).tolist()) if chosen is None else chosen
    sizes = np.array([(groups == code).sum() for code in wanted])
    if not sizes.all():
        assert model.schema.batch is not None
        lacking = [model.schema.batch.categories[code] for code in np.array(wanted)[sizes == 0]]
        raise ValueError(f"like has no cells of the batch {listing(lacking)}; add such cells or leave it out of batch")
    origin = np.empty(n, np.int64)
    z, library = np.empty((n, model.n_latent), np.float32), np.ones(n, np.float32)
    components = []
    share = np.array(wanted)[rng.choice(len(wanted), size=n, p=sizes / sizes.sum())]
    for code in wanted:
        members, new = np.flatnonzero(groups == code), np.flatnonzero(share == code)
        points = _points(model, cells.taken(members), beta, seed)
        mixture = fit_mixture(points, rng)
        drawn = mixture.draw(len(new), rng)
        z[new] = drawn[:, : model.n_latent]
        if model.schema.kind != "real":
            low, high = points[:, -1].min(), points[:, -1].max()
            library[new] = np.exp(drawn[:, -1].clip(low, high))
        origin[new] = members[0]  # without covariates, only its batch is used
        if len(new) and (model.schema.categorical or model.schema.numeric):
            origin[new] = members[_nearest(mixture, points, drawn, model.n_latent) % len(members)]
        components.append(mixture.n_components)
    names = [model.schema.batch.categories[code] if model.schema.batch else "all cells" for code in wanted]
    return _Origin(
        z=z,
        library=library,
        codes=_replaced(cells.codes[origin], given.codes),
        numeric=_replaced(cells.numeric[origin], given.numeric),
        record={
            "source": "aggregate posterior",
            "components": dict(zip(as_keys(names), components, strict=True)),
        },
    )


def _points(model: FittedModel, cells: Cells, beta: float, seed: int) -> Float[np.ndarray, "points columns"]:
    """Draws of z with the log library size: one per cell, or, for few cells, as many as a covariance needs."""
    has_library = model.schema.kind != "real"
    n_draws = math.ceil(FEWEST * (model.n_latent + has_library) / len(cells))
    z = np.empty((n_draws, len(cells), model.n_latent))
    with torch.no_grad(), working_on(model.device):
        for drawn in posterior_draws(model, cells, n_samples=n_draws, seed=seed, beta=beta):
            z[:, drawn.positions] = drawn.z.cpu().numpy()
    points = z.reshape(-1, model.n_latent)
    if not has_library:
        return points
    log_library = np.log(np.maximum(whole_libraries(model, cells, beta=beta), 1.0).astype(np.float64))
    return np.column_stack([points, np.tile(log_library, n_draws)])


def _nearest(
    mixture: Mixture,
    points: Float[np.ndarray, "points columns"],
    drawn: Float[np.ndarray, "drawn columns"],
    n_latent: int,
) -> Int[np.ndarray, " drawn"]:
    """For each new cell the nearest of the points by z and the log library size, which has more weight."""
    from sklearn.neighbors import NearestNeighbors

    unit = mixture.scale.copy()
    unit[n_latent:] /= LIBRARY_WEIGHT
    search = NearestNeighbors(n_neighbors=1).fit(points / unit)
    nearest: Int[np.ndarray, " drawn"] = search.kneighbors(drawn / unit, return_distance=False)[:, 0]
    return nearest


def _read_covariates(model: FittedModel, covariates: Mapping[str, Any], n: int) -> _Given:
    """The given covariates as codes and standardised numbers."""
    schema = model.schema
    places = {column.key: i + (schema.batch is not None) for i, column in enumerate(schema.categorical)}
    numbers = {column.key: i for i, column in enumerate(schema.numeric)}
    codes, numeric = {}, {}
    if not isinstance(covariates, Mapping):
        raise TypeError(f"covariates is a {type(covariates).__name__}; pass {{column: value}}")
    for key, value in covariates.items():
        if schema.batch is not None and key == schema.batch.key:
            raise ValueError(f"covariates has {key!r}, which is the model's batch column; pass batch= instead")
        if key in places:
            codes[places[key]] = _codes(schema.categoricals[places[key]], value, n)
        elif key in numbers:
            numeric[numbers[key]] = _numbers(schema.numeric[numbers[key]], value, n)
        else:
            raise missing_key("the model's covariates", key, [*places, *numbers])
    return _Given(codes=codes, numeric=numeric)


def _codes(column: Categorical, value: Any, n: int) -> Int[np.ndarray, " cells"]:
    names = _spread(column.key, value, n)
    codes = column.codes(pd.Series(names))
    if (codes < 0).any():
        unknown = dict.fromkeys(str(name) for name, code in zip(names, codes, strict=True) if code < 0)
        raise ValueError(
            f"covariates[{column.key!r}] has {listing(unknown)}, unknown to the model; pass one of "
            f"{listing(column.categories)}"
        )
    return codes


def _numbers(column: Numeric, value: Any, n: int) -> Float[np.ndarray, " cells"]:
    try:
        numbers = _spread(column.key, value, n).astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"covariates[{column.key!r}] is {value!r}, but the column is numeric; pass numbers") from error
    if not np.isfinite(numbers).all():
        raise ValueError(f"covariates[{column.key!r}] is not finite; pass finite numbers")
    return ((numbers - column.mean) / column.scale).astype(np.float32)


def _spread(key: str, value: Any, n: int) -> np.ndarray:
    """One value for each of n cells."""
    values = np.asarray(value, dtype=object)
    if values.ndim == 0:
        return np.full(n, values.item(), dtype=object)
    if values.shape != (n,):
        raise ValueError(f"covariates[{key!r}] has {values.size:,} values for {n:,} cells; pass one, or one for each")
    return values


def _replaced(columns: np.ndarray, given: dict[int, np.ndarray]) -> np.ndarray:
    """The columns with the given ones replaced."""
    columns = columns.copy()
    for place, values in given.items():
        columns[:, place] = values
    return columns


def _obs(model: FittedModel, origin: _Origin) -> pd.DataFrame:
    """The model's columns, named as in the fit."""
    schema = model.schema
    obs = pd.DataFrame(index=[f"generated_{i}" for i in range(len(origin.z))])
    for place, column in enumerate(schema.categoricals):
        obs[column.key] = pd.Categorical.from_codes(origin.codes[:, place], list(column.categories))
    for place, number in enumerate(schema.numeric):
        obs[number.key] = origin.numeric[:, place].astype(np.float64) * number.scale + number.mean
    if schema.size_factor_key is not None:
        obs[schema.size_factor_key] = origin.library / schema.size_factor_scale
    return obs
