"""`generate`: new cells, similar to those of the fit or to given cells."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from ..common.checks import check_adata, check_positive_int, listing, missing_key, speaking_of
from ..common.keys import Keys
from ..common.rng import SeedLike, numpy_generator, seed_of, torch_generator
from ..data.batches import Batch, chunks
from ..data.cells import Cells
from ..data.libraries import LibrarySizes
from ..data.modalities import modalities_of
from ..data.schema import Categorical, Numeric
from ..inference.cells import read_cells
from ..inference.cloud import density_of
from ..inference.decoding import TABLE, batch_codes
from ..inference.density import Density
from ..inference.drawing import TABLES, draw_values, drawn_cells, further_slots, stacked
from ..inference.fitted import FittedModel, check_model
from ..inference.needs import check_without_skip
from ..inference.posterior import at_beta, posterior_moments, whole_libraries
from ..inference.views import facing
from ..kernels.block import Dense
from ..kernels.context import computing, working_on

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

CELLS, LATENT, VALUES, FURTHER = 52, 53, 54, 57  # random streams
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
    like: AnnData | MuData | None = None,
    batch: str | Sequence[str] | None = None,
    covariates: Mapping[str, Any] | None = None,
    beta: float | None = None,
    layer: str | None = None,
    key_added: str = "scvae",
    rng: SeedLike = 0,
) -> AnnData:
    """Draws new cells from a model: like those of the fit, or like given cells.

    The batch is drawn, then z and the rank of the library size among those of the batch, then x ~ p(x | z, s). z and
    rank come from the density of the cells of the fit, which the model holds, or, with `like`, from a density fitted to
    the given cells: a mixture of normals with full covariance matrices (see `scvae.tl.fit_density`). Each batch has its
    own weights of the components. The prior N(0, I) also covers the gaps between cell types, so it is used only for
    models that were saved before scvae fitted a density; their library sizes are drawn independently of z. A prior that
    was trained (see `scvae.NetworkConfig`) is not drawn from either: it knows neither batches nor library sizes.

    A classifier tells new cells from real held-out cells with an AUC of 0.64 (mean of three data sets; 0.93 if they are
    drawn from the prior, 0.61 if they are drawn `like` all cells of the fit; 0.5 is best). Pass `like` to draw cells of
    one type or of one condition, at another β, or for a mapped batch with types that the reference lacks.

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
        batch gets new cells in proportion to its cells there. New cells resemble those of their batch.
    covariates
        Values of the model's other covariates: {column: one value, or one for each new cell}. With `like`, a covariate
        not given is copied from the cell nearest in z and library size; without `like`, all must be given.
    beta
        For a model with a range of β, the β of posterior and decoder; None for 1 (if the range excludes 1, its
        geometric mean). Another β needs `like`, or a density at that β (see `scvae.tl.fit_density`).
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
        ``obsm[<slot of a view>]``
            For each further measurement of the model: float32 DataFrame of values drawn, cells x features, at library
            sizes drawn independently of z.
        ``uns["<key_added>"]["drawn"]``
            ``source`` ("density of the fit", "given cells" or "prior"), ``components`` of the mixture (unless it is the
            prior), ``beta``, ``seed``.

    Raises
    ------
    ValueError
        If a batch or category is unknown, `like` has no cells of a batch in `batch`, a covariate is neither given nor
        in `like`, an argument has no effect, the model has a density at another β only, or it was saved before library
        sizes were recorded. With `like`, also as for `embed`.

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
    check_without_skip(model, "scvae.tl.generate")
    keys = Keys(key_added)
    n, seed = check_positive_int(n, "n"), seed_of(rng)
    if like is None and layer is not None:
        raise ValueError("layer has no effect without like, because it names a layer of like; leave it out")
    at = model.beta_of(beta)
    chosen = None if batch is None else batch_codes(model, batch, "batch")
    given = _read_covariates(model, covariates or {}, n)
    if like is None:
        origin = _from_model(model, n, chosen, given, at, seed)
    else:
        with speaking_of("like"), modalities_of(like, model.schema.name) as cells_like:
            like_cells = read_cells(check_adata(cells_like), model, layer)
        origin = _from_cells(model, like_cells, n, chosen, given, at, seed)
    pieces = []
    further: list[list[Any]] = [[] for _ in model.schema.views]
    libraries = _further_libraries(model, origin, seed)
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
            cells = at_beta(model, cells, at)
            pieces.append(draw_values(model, z, cells, generator))
            for place, library in enumerate(libraries):
                of_view = replace(cells, library=torch.from_numpy(library[part]).to(model.device))
                further[place].append(draw_values(facing(model, place), z, of_view, generator))
    obs = _obs(model, origin)
    return drawn_cells(
        model,
        stacked(pieces, model.schema.kind),
        obs,
        obsm={keys.mean: model.written(origin.z)} | further_slots(model, further, obs.index),
        uns={keys.uns: {keys.origin: origin.record | {"beta": at, "seed": seed}}},
    )


def _further_libraries(model: FittedModel, origin: _Origin, seed: int) -> list[Float[np.ndarray, " cells"]]:
    """Library sizes of the further measurements, drawn among those of the fit (in the cell's batch, if it has any)."""
    rng, found = numpy_generator(seed, FURTHER), []
    own = origin.codes[:, 0] if model.schema.batch is not None else np.zeros(len(origin.z), np.int64)
    for view, sizes in zip(model.schema.views, model.view_libraries, strict=True):
        library = sizes.at(sizes.measured(own, rng), rng.random(len(own)))
        found.append(np.ones(len(own), np.float32) if view.kind == "real" else library)
    return found


def _from_model(
    model: FittedModel, n: int, chosen: tuple[int, ...] | None, given: _Given, beta: float, seed: int
) -> _Origin:
    """z and library size from the model's density; batches in proportion to their cells in the fit."""
    schema, sizes, rng = model.schema, model.libraries, numpy_generator(seed, CELLS)
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
    z, library, record = _drawn(model, None if model.density is None else model.density_at(beta), sizes, batch, seed)
    return _Origin(
        z=z,
        library=library,
        codes=_replaced(codes, given.codes),
        numeric=_replaced(np.empty((n, len(schema.numeric)), np.float32), given.numeric),
        record={"source": "prior" if model.density is None else "density of the fit"} | record,
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
    """z and library size from a density fitted to the cells; covariates from the nearest cell."""
    rng, schema = numpy_generator(seed, CELLS), model.schema
    wanted = tuple(np.unique(cells.group).tolist()) if chosen is None else chosen
    counts = np.array([(cells.group == code).sum() for code in wanted])
    if not counts.all():
        assert schema.batch is not None
        lacking = [schema.batch.categories[code] for code in np.array(wanted)[counts == 0]]
        raise ValueError(f"like has no cells of the batch {listing(lacking)}; add such cells or leave it out of batch")
    if counts.sum() < len(cells):
        cells = cells.taken(np.flatnonzero(np.isin(cells.group, wanted)))
    libraries = whole_libraries(model, cells, beta=beta)
    n_batches = len(schema.batch.categories) if schema.batch else 1
    sizes = None if schema.kind == "real" else LibrarySizes.of(libraries, cells.group, n_batches)
    batch = np.array(wanted)[rng.choice(len(wanted), size=n, p=counts / counts.sum())]
    z, library, record = _drawn(model, density_of(model, cells, seed=seed, beta=beta), sizes, batch, seed)
    there, first = np.unique(cells.group, return_index=True)
    origin = first[np.searchsorted(there, batch)]
    if schema.categorical or schema.numeric:  # without covariates, only the batch of the cell is used
        origin = _nearest(model, cells, libraries, z, library, batch, beta)
    return _Origin(
        z=z,
        library=library,
        codes=_replaced(cells.codes[origin], given.codes),
        numeric=_replaced(cells.numeric[origin], given.numeric),
        record={"source": "given cells"} | record,
    )


def _drawn(
    model: FittedModel, density: Density | None, sizes: LibrarySizes | None, batch: Int[np.ndarray, " cells"], seed: int
) -> tuple[Float[np.ndarray, "cells latent"], Float[np.ndarray, " cells"], dict[str, Any]]:
    """z and library size of new cells, and the number of components; without a density, z comes from the prior."""
    generator = torch_generator(seed, LATENT)
    if density is None:
        z = copy.deepcopy(model.network.prior).cpu().sample(len(batch), generator).numpy()
        rank = torch.rand((len(batch), 1), generator=generator, dtype=torch.float64).numpy()
    else:
        z, rank = density.draw(batch, generator)
    library = np.ones(len(batch), np.float32) if sizes is None else sizes.at(batch, rank[:, 0])
    return z, library, {} if density is None else {"components": density.n_components}


def _nearest(
    model: FittedModel,
    cells: Cells,
    libraries: Float[np.ndarray, " cells"],
    z: Float[np.ndarray, "drawn latent"],
    library: Float[np.ndarray, " drawn"],
    batch: Int[np.ndarray, " drawn"],
    beta: float,
) -> Int[np.ndarray, " drawn"]:
    """For each new cell the nearest cell of its batch by z and the log library size, which has more weight."""
    from sklearn.neighbors import NearestNeighbors

    mean, variance = posterior_moments(model, cells, beta=beta)
    log_library = np.log(np.maximum(libraries, 1.0).astype(np.float64))
    z_scale, library_scale = np.sqrt(mean.var(0) + variance.mean(0)), (log_library.std() or 1.0) / LIBRARY_WEIGHT
    points = np.column_stack([mean / z_scale, log_library / library_scale])
    drawn = np.column_stack([z / z_scale, np.log(np.maximum(library, 1.0)) / library_scale])
    nearest = np.empty(len(z), np.int64)
    for code in np.unique(batch):
        members, new = np.flatnonzero(cells.group == code), np.flatnonzero(batch == code)
        search = NearestNeighbors(n_neighbors=1).fit(points[members])
        nearest[new] = members[search.kneighbors(drawn[new], return_distance=False)[:, 0]]
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
