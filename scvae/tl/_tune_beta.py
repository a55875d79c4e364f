"""`tune_beta`: measures the effect of β on a model of given cells, and recommends a β."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int

from ..common.checks import check_adata, check_choice, check_obs_column
from ..common.distributed import process_group
from ..common.html import columns, page, paragraph
from ..common.keys import Keys
from ..common.progress import passing, progress_bar
from ..common.provenance import check_replaceable
from ..common.rng import SeedLike, seed_of
from ..config import NetworkConfig, TrainingConfig, View, ViewLikelihood
from ..data.beta_range import evenly_spaced, given_betas
from ..data.cells import Cells
from ..data.intake import DataKeys
from ..data.modalities import modalities_of
from ..diagnostics.rate_distortion import Yardstick, embedding_at, make_yardstick, rate_distortion
from ..diagnostics.recommendation import recommend
from ..inference.cells import read_cells, warn_of_absent
from ..inference.fitted import FittedModel
from ..inference.metric import MetricName
from ..kernels.context import computing
from ..likelihoods import LikelihoodName
from ..training.fit import read_and_train, shared_seed
from ..training.measurements import checked_views, of_modalities
from ..training.refit import fit_next
from ..training.results import write_results
from ..training.settings import Request

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

DEFAULT_RANGE = (0.1, 10.0)
N_BETAS = 9
LEAST_CELLS = 20  # fewest cells for meaningful neighbours and clusters

ALLOWED_WITH_MODEL = {"layer", "rng", "verbose", "views"}  # the arguments for views are looked at themselves
WARM_EPOCHS = 0.5  # share of the epochs of a fit, for the later models of a sweep

Method = Literal["path", "sweep"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BetaPath:
    """Result of `tune_beta`.

    Parameters
    ----------
    table
        One row per β; see `tune_beta`.
    recommended
        The recommended β, one of those in the table.
    models
        The path model alone, or the models of a sweep in the order of the table.
    judged_on
        Number of cells behind the likelihood columns, and whether the fit held them out.
    """

    table: pd.DataFrame
    recommended: float
    models: tuple[FittedModel, ...]
    judged_on: str

    @property
    def model(self) -> FittedModel:
        """The model to use at the recommended β, as in ``scvae.tl.embed(adata, path.model, beta=path.recommended)``."""
        return self.models[0] if len(self.models) == 1 else self.models[int(self.table["recommended"].argmax())]

    def __repr__(self) -> str:
        lines = self.table.drop(columns="recommended").to_string(index=False, float_format="{:.4g}".format).split("\n")
        marks = ["  ", *("→ " if chosen else "  " for chosen in self.table["recommended"])]
        rows = "\n".join(f"  {mark}{line}" for mark, line in zip(marks, lines, strict=True))
        return f"BetaPath\n  recommended β = {self.recommended:g}; {self.judged_on}\n{rows}"

    def _repr_html_(self) -> str:
        shown = self.table.drop(columns="recommended")
        rows = [[f"{value:.4g}" for value in row] for row in shown.to_numpy(dtype=float)]
        marked = int(self.table["recommended"].to_numpy().argmax())
        said = paragraph(f"recommended β = {self.recommended:g}; {self.judged_on}")
        return page("BetaPath", said, columns([str(name) for name in shown], rows, marked=marked))


@computing()
@process_group()
def tune_beta(
    adata: AnnData | MuData,
    *,
    model: FittedModel | None = None,
    betas: Sequence[float] | np.ndarray | None = None,
    labels_key: str | None = None,
    method: Method = "path",
    layer: str | None = None,
    mask_var: str | Sequence[bool] | np.ndarray | pd.Series | None = None,
    batch_key: str | None = None,
    covariate_keys: str | Sequence[str] | None = (),
    size_factor_key: str | None = None,
    also: Mapping[str, View] | None = None,
    protein_key: str | None = None,
    protein_likelihood: ViewLikelihood = "nb",
    modalities: Mapping[str, ViewLikelihood] | None = None,
    likelihood: LikelihoodName = "nb",
    n_latent: int | Literal["auto"] | None = None,
    metric: MetricName = "expression",
    rng: SeedLike = None,
    device: str | torch.device = "auto",
    key_added: str = "scvae",
    network: NetworkConfig | None = None,
    training: TrainingConfig | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    verbose: bool = True,
) -> BetaPath:
    """Measures the effect of β on a model of these cells, recommends a β, and writes the embedding at it to `adata`.

    Small β favours fidelity, large β favours structure. Choosing β means choosing a point on the curve of rate
    R = KL(q(z | x) || p(z)) against distortion D = -E_q[log p(x | z)] (Alemi et al. 2018, "Fixing a broken ELBO").

    Only β with a held-out ELBO below the best by at most a fifth of the rate there are considered. Among these, the
    recommended β has the Leiden clusters most stable under resampling (averaged with the neighbouring β).

    Parameters
    ----------
    adata
        Cells x genes, raw data as for `scvae.fit`, or a MuData with the modalities of the fit.
    model
        A path model, from ``scvae.fit(adata, beta=(low, high))``; None fits one. If a model is given, `layer` is the
        only argument of the fit that may be set.
    betas
        Values of β to evaluate, at least two; None takes 9 from 0.1 to 10, or over the range of `model`, evenly spaced
        on a log scale. A path model is fitted over the range that they span.
    labels_key
        Column of `adata.obs` with known labels to compare with; cells with a missing label are left out of the
        comparison. The labels do not affect the recommendation.
    method
        ``"path"``: one model for every β, trained once (Bae et al. 2023, "Multi-rate VAE"); ``"sweep"``: one model for
        each of `betas`, from the largest to the smallest; each after the first starts from the weights of the previous
        one and trains for half as many epochs.
    layer, mask_var, batch_key, covariate_keys, size_factor_key, likelihood, n_latent, metric, device, network, training
        As in `scvae.fit`.
    also, protein_key, protein_likelihood, modalities
        Further measurements of the cells, as in `scvae.fit`: β is then chosen for the embedding by all of them, and
        distortion and likelihoods are those of all that a cell has.
    rng
        Seed or numpy Generator for the fit and the scores; None takes the seed of `model`, or draws one.
    key_added
        Name used in the slots written.
    checkpoint
        As in `scvae.fit`; with ``method="path"`` only.
    verbose
        Whether to show progress bars. Nothing else is printed.

    Returns
    -------
    BetaPath
        ``table``, ``recommended``, ``model``. The table has one row per β in ascending order, with the columns

        ``beta``
            and ``recommended``, true in one row;
        ``distortion``, ``rate``, ``objective``, ``elbo``, ``log_likelihood``
            D, R, D + βR, -(D + R) and the importance-weighted bound on log p(x), each in nats per cell, on at most
            1,000 cells held out in the fit (of all cells, if `model` was fitted to other cells or held none out; see
            ``judged_on``);
        ``active_dimensions``
            latent dimensions with a mean KL above 0.05 nats on these cells;
        ``mutual_information``, ``mutual_information_bound``
            I_q(x; z) of these cells in nats, at most the logarithm of their number; and an upper bound on it without
            this cap;
        ``leiden_stability``, ``graph_agreement``, ``modularity``, ``trustworthiness``, ``n_clusters``
            structure of the embedding without labels, on at most 5,000 cells drawn from all: agreement (adjusted Rand
            index) of Leiden clusters with those of resampled cells; share of nearest neighbours that two draws of
            z ~ q(z | x) have in common; modularity of the Leiden clusters; how well neighbours in the embedding match
            neighbours in principal components of log-normalised expression (at most 2,000 cells; with further
            measurements, the mean over all, each on the cells that have it); and the number of Leiden clusters at
            resolution 1;
        ``nmi``, ``ari``, ``silhouette``
            with `labels_key`: agreement of Leiden clusters with the labels, best over resolutions 0.1 to 2, and the
            silhouette of the labels.

        Slots written to `adata`, all at the end: those of `scvae.fit`, with the embedding at the recommended β, and

        ``uns["<key_added>"]["beta_path"]``
            The table.
        ``uns["<key_added>"]["beta_path_judged_on"]``
            The cells behind the held-out columns.

    Raises
    ------
    ValueError
        As for `scvae.fit`; if there are fewer than 20 cells, or a β is not positive or outside the range of `model`.
        `adata` is then unchanged.
    KeyboardInterrupt
        After Ctrl-C during the training of a sweep or during the measurements: nothing is written. Ctrl-C during the
        training of a path model ends only the training, as in `scvae.fit`.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> path = scvae.tune_beta(adata, betas=[0.3, 1, 3], n_latent=5, rng=0, verbose=False)
    >>> path.table["beta"].tolist()
    [0.3, 1.0, 3.0]
    >>> path.recommended in [0.3, 1, 3]
    True
    """
    keys = Keys(key_added)
    check_choice(method, ("path", "sweep"), "method")
    if isinstance(network, NetworkConfig):
        _check_network(network, method)
    points = _points(betas, model)
    views = checked_views(also, protein_key, protein_likelihood)
    law: ViewLikelihood = likelihood
    if model is None:
        first, law, views = of_modalities(adata, modalities, likelihood, views, None)
    else:
        first = model.schema.name
    covariate_keys = () if covariate_keys is None else covariate_keys
    data = DataKeys(layer, mask_var, batch_key, covariate_keys, size_factor_key, views=views, name=first)
    request = Request(
        likelihood=law,
        n_latent=n_latent,
        metric=metric,
        rng=rng,
        device=device,
        network=network,
        training=training,
        checkpoint=checkpoint,
        verbose=verbose,
    )
    if model is not None:
        _refuse_without_effect(
            data, request, method=method != "path", also=also, protein_key=protein_key, modalities=modalities
        )
    with modalities_of(adata, first) as cells_in:
        return _tuned(cells_in, model, method, points, labels_key, data, request, keys)


def _tuned(
    adata: AnnData,
    model: FittedModel | None,
    method: Method,
    points: list[float],
    labels_key: str | None,
    data: DataKeys,
    request: Request,
    keys: Keys,
) -> BetaPath:
    check_adata(adata)
    check_replaceable(adata.uns, keys)
    if adata.n_obs < LEAST_CELLS:
        raise ValueError(f"adata has {adata.n_obs} cells; tune_beta needs at least {LEAST_CELLS}")
    labels = None if labels_key is None else _label_codes(adata, labels_key)
    if model is not None:
        seed = model.seed if request.rng is None else seed_of(request.rng)
        models: tuple[FittedModel, ...] = (model,)
        cells = read_cells(adata, model, data.layer)
        warn_of_absent(adata, model.schema, None)
    else:
        seed = shared_seed(request.rng, None)
        models, cells = _fit_all(adata, method, points, data, replace(request, rng=seed))
    yardstick = make_yardstick(models[0], cells, labels, seed=seed)
    table = _table(models, yardstick, points, seed=seed, verbose=request.verbose)
    recommended = recommend(table)
    table["recommended"] = table["beta"] == recommended
    judged_on = f"{len(yardstick.judged):,} cells {yardstick.role}"
    found = BetaPath(table=table, recommended=recommended, models=models, judged_on=judged_on)
    record = {keys.beta_path: table.copy(), keys.judged_on: judged_on}
    write_results(adata, found.model, cells, keys, beta=recommended, more=record)
    return found


def _check_network(network: NetworkConfig, method: Method) -> None:
    """Refuses a latent whose rate β does not change, and a path of networks that know one β."""
    if network.latent == "quantized":
        raise ValueError(
            "NetworkConfig.latent='quantized' has no β to tune: its rate has no gradient and is set by n_codes; fit "
            "with several n_codes and compare scvae.tl.log_likelihood of held-out cells"
        )
    normal = NetworkConfig()
    of_one = [name for name in ("latent", "prior", "skip") if getattr(network, name) != getattr(normal, name)]
    if of_one and method == "path":
        raise ValueError(
            f"NetworkConfig.{of_one[0]}={getattr(network, of_one[0])!r} needs one β for each model; pass method='sweep'"
        )


def _label_codes(adata: AnnData, key: str) -> Int[np.ndarray, " cells"]:
    """Code of each cell's label, -1 if it is missing."""
    codes, names = pd.factorize(check_obs_column(adata, key))
    if len(names) < 2:
        raise ValueError(f"adata.obs[{key!r}] has {len(names)} label(s); pass a column with at least 2")
    return np.asarray(codes, dtype=np.int64)


def _points(betas: Sequence[float] | np.ndarray | None, model: FittedModel | None) -> list[float]:
    """The β to evaluate, ascending; those not chosen by the user have four digits."""
    span = DEFAULT_RANGE if model is None else model.beta
    if not isinstance(span, tuple):
        raise ValueError(
            f"model was trained at β = {span:g} alone; pass a model from scvae.fit(adata, beta=(low, high)), "
            "or leave model out to fit one"
        )
    if betas is None:
        return evenly_spaced(*span, N_BETAS)
    points = given_betas(betas)
    return points if model is None else [model.beta_of(beta) for beta in points]


def _refuse_without_effect(data: DataKeys, request: Request, **others: object) -> None:
    """Refuses settings of a fit, and any of the `others` that is set, if a fitted model is given."""
    given = [
        field.name
        for record in (data, request)
        for field in fields(record)
        if field.name not in ALLOWED_WITH_MODEL and getattr(record, field.name) is not field.default
    ]
    given += [name for name, value in others.items() if value]
    if given:
        raise ValueError(f"{', '.join(given)} cannot be set for a fitted model; leave out either model or these")


def _fit_all(
    adata: AnnData, method: Method, points: list[float], data: DataKeys, request: Request
) -> tuple[tuple[FittedModel, ...], Cells]:
    """The path model, or the models of the sweep in the order of `points`; and the cells as read."""
    if method == "path":
        model, cells = read_and_train(adata, data, replace(request, beta=(points[0], points[-1])))
        return (model,), cells
    if request.checkpoint is not None:
        raise ValueError("checkpoint is for one training, but method='sweep' trains several models; leave it out")
    if request.training is not None and request.training.inference == "per_cell":
        raise ValueError("TrainingConfig.inference='per_cell' has no encoder for the next β of a sweep; leave it out")
    if request.n_latent == "auto":
        raise ValueError("n_latent='auto' keeps only the dimensions that the largest β needs; pass a number to a sweep")
    # from large to small β: overfitting at a small β would persist and make held-out cells worse than from scratch
    model, cells = read_and_train(adata, data, replace(request, beta=points[-1]))
    models = [model]
    epochs = max(1, round(WARM_EPOCHS * (model.training_config.epochs or 1)))
    for beta in reversed(points[:-1]):
        if _was_interrupted(models[-1]):
            raise KeyboardInterrupt
        with passing():
            models.append(fit_next(models[-1], cells, beta=beta, epochs=epochs, verbose=request.verbose))
    return tuple(reversed(models)), cells


def _was_interrupted(model: FittedModel) -> bool:
    """Whether training was interrupted: a partial sweep must not be returned as a complete one."""
    return not model.outcome.converged and model.outcome.epochs < (model.training_config.epochs or 0)


def _table(
    models: tuple[FittedModel, ...], yardstick: Yardstick, points: list[float], *, seed: int, verbose: bool
) -> pd.DataFrame:
    """One row per β."""
    rows = []
    of_each = models * len(points) if len(models) == 1 else models
    with closing(progress_bar(len(points), unit="β", leave=False, verbose=verbose)) as bar:
        for beta, model in zip(points, of_each, strict=True):
            measured = rate_distortion(model, yardstick.judged, beta=beta, seed=seed)
            parts = (measured, *embedding_at(model, yardstick, beta=beta, seed=seed))
            rows.append({k: v for part in parts if part for k, v in dataclasses.asdict(part).items()})
            bar.update()
    return pd.DataFrame(rows)
