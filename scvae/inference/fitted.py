"""A fitted model: a trained network in words, on a card and as one safetensors file, with a reference if asked."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from ..common.checks import check_bool
from ..common.files import as_path, check_place, write_tensors, written_whole
from ..common.html import named_values, page
from ..kernels.context import computing
from ..model.latent.discrete import Discrete
from ..model.vae import VAE
from .card import card_of
from .reference_cells import reference_of
from .trained import Trained

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from ..data.sources import Paths

FORMAT = "scvae model"
CARD = ".md"  # ending of the file of a card
METRIC = "metric"  # name of its matrix among the tensors of a file


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FittedModel(Trained):
    """A trained model and its record. It holds no reference to the data.

    Parameters
    ----------
    network
        The trained VAE, in evaluation mode.
    schema
        Genes, covariates and layer of the fit; new data are checked against them.
    likelihood, n_latent
        As given to `scvae.fit`.
    beta
        As given to `scvae.fit`: one β, or the smallest and largest β of a range.
    network_config, training_config
        All other settings.
    outcome
        How the training ended.
    history
        One row per epoch; see `scvae.fit`.
    seed
        Seed of all random numbers of the fit.
    versions
        Versions of scvae and of the libraries that were used to fit the model.
    trained_on
        `Cells.fingerprint` of all cells of the fit, held out or not.
    libraries
        Library sizes of the fit, and of batches mapped later; None for real values, which have none, and for models
        saved before scvae recorded them.
    threads
        Number of threads of the CPU that the fit used; None for models saved before scvae recorded it.
    metric
        The coordinates in which latent variables are written; None for those of the network, as with
        ``scvae.fit(metric="latent")`` and in models saved before there was another.
    density
        Where the cells of the fit lie in latent space (see `scvae.tl.fit_density`); None for models saved before scvae
        fitted it.
    labels
        What `scvae.tl.predict_labels` needs; None for a fit without labels.
    reference
        Reference cells that came with the file of the model; None if it has none (see `save`).
    licence
        Licence of the file, as given to `save`; None if none was.
    view_libraries
        Library sizes of each further measurement (`schema.views`) in the cells of the fit that have it; 1 for real
        values.
    coverages
        How often the intervals of each further measurement hold in the cells that the fit held out (see
        `scvae.tl.impute`); None where they are too few, and empty for models saved before scvae counted.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> model = scvae.fit(adata, n_latent=5, rng=0, verbose=False)
    >>> model.outcome.beta_attained
    1.0
    >>> list(model.history)[:3]
    ['epoch', 'train_elbo', 'train_log_likelihood']
    >>> model.summary()["genes"]
    100
    """

    def summary(self) -> pd.Series:
        """A summary of the fit for a notebook.

        Returns
        -------
        pandas.Series
            Named values: data, settings and results.
        """
        outcome = self.outcome
        pruned = f", pruned from {outcome.pruned_from}" if outcome.pruned_from else ""
        return pd.Series(
            {
                "likelihood": self.likelihood,
                "genes": len(self.schema.genes),
                **{
                    f"view {view.name!r}": f"{len(view.features)} features, {view.likelihood}"
                    for view in self.schema.views
                },
                "batches": len(self.schema.batch.categories) if self.schema.batch else 1,
                "latent dimensions": f"{self.n_latent} ({outcome.active_dimensions} active{pruned})",
                **_groups_in_words(self.network),
                "β": _betas_in_words(self.beta, outcome.beta_attained),
                "held-out ELBO": f"{outcome.held_out_elbo:.1f} nats per cell",
                "epochs": f"{outcome.epochs} (best: {outcome.best_epoch})",
                "converged": f"{'yes' if outcome.converged else 'no'}: {outcome.reason}",
                "seconds": f"{outcome.seconds:.1f}",
                "seed": self.seed,
                **({} if self.reference is None else {"reference": self.reference.in_words()}),
            },
            name="scvae model",
            dtype=object,
        )

    def __repr__(self) -> str:
        rows = self.summary()
        width = max(map(len, rows.index))
        return "FittedModel\n" + "\n".join(f"  {name:<{width}}  {value}" for name, value in rows.items())

    def _repr_html_(self) -> str:
        return page("FittedModel", named_values(dict(self.summary())))

    @computing()
    def save(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = True,
        reference: AnnData | MuData | Paths | None = None,
        labels: Sequence[str] | str | None = (),
        umap: bool | str = False,
        ids: bool | None = None,
        layer: str | None = None,
        beta: float | None = None,
        card: bool = False,
        licence: str | None = None,
    ) -> Path:
        """Writes the model to one safetensors file, which contains its record as JSON (no pickle).

        With `reference`, the file also holds what others need to map their cells onto these: a model and a reference
        in one file, without counts. The cells are embedded; posterior means and variances are kept in float16, labels
        as codes, UMAP coordinates in float32. `scvae.tl.transfer_labels`, `scvae.tl.place` and
        `scvae.tl.nearest_cells` then work with the model alone. A model that was loaded with a reference keeps it.

        Parameters
        ----------
        path
            File to write. It is written under a temporary name and renamed, so it is never left incomplete.
        overwrite
            Whether an existing file may be replaced.
        reference
            Cells with raw data, as in the fit; usually those of the fit: AnnData, MuData with the modalities of the
            model, or paths of h5ad files or zarr stores, whose values stay on disk. Not changed.
        labels
            Columns of `reference.obs` with labels, from coarse to fine if there are several. A label takes a byte per
            cell, two with more than 127 names.
        umap
            Whether to keep a UMAP: that in ``reference.obsm["X_umap"]``, to the bit if it is float32, or under another
            name given here. Without ``"X_umap"``, a UMAP of the latents is made with scanpy's settings.
        ids
            Whether to keep the names of the cells, compressed. None keeps them if a cell then takes at most 100 bytes,
            which holds for barcodes with 20 latent dimensions, a UMAP and a label. Without names, cells are called by
            their positions.
        layer
            Layer of `reference` with the data; None for the layer used in the fit.
        beta
            For a model with a range of β, the β to embed at; None for 1 (if the range excludes 1, its geometric mean).
        card
            Whether to write the card of the model, too, beside the file, with the ending ``.md`` (see `card`).
        licence
            The licence of the file, kept in it and on the card; None for that of a model that was loaded with one.

        Returns
        -------
        pathlib.Path
            The path of the file.

        Raises
        ------
        FileExistsError
            If the file, or with `card` that of the card, exists and `overwrite` is false.
        FileNotFoundError
            If the folder does not exist.
        ValueError
            As for `scvae.tl.embed`; if a column has nearly as many labels as cells or a label ``"unknown"``; if names
            of cells are repeated; if `labels`, `umap`, `ids`, `layer` or `beta` is given without `reference`.
            MissingKeyError (also a KeyError) if a column or an entry of `obsm` does not exist.
        """
        path = as_path(path)
        places = [path, path.with_suffix(CARD)] if check_bool(card, "card") else [path]
        for place in places:
            check_place(place)
            if place.exists() and not overwrite:
                raise FileExistsError(f"{place} exists; pass overwrite=True to replace it.")
        if card and path.suffix == CARD:
            raise ValueError(f"{path} would be the model and its card; end its name in .safetensors")
        labels = (labels,) if isinstance(labels, str) else tuple(labels or ())
        asked: dict[str, Any] = {"labels": labels, "umap": umap, "ids": ids, "layer": layer, "beta": beta}
        if reference is None:
            _refuse_without_reference(asked)
        model = self if reference is None else replace(self, reference=reference_of(self, reference, **asked))
        model = model if licence is None else replace(model, licence=str(licence))
        model._write(path)
        if card:
            with written_whole(path.with_suffix(CARD)) as temporary:
                temporary.write_text(model.card(file=path.name), encoding="utf-8")
        return path

    def card(self, *, file: str = "model.safetensors") -> str:
        """A card of the model for those who get its file.

        It says what the model was fitted on (cells, genes, batches, labels), its settings and outcome, what is in the
        reference, the versions and the licence as given, how to use the file, and what it reveals.

        Parameters
        ----------
        file
            Name of the file.

        Returns
        -------
        str
            Markdown.
        """
        summary = dict(self.summary().drop("reference", errors="ignore"))  # which has a table of its own
        return card_of(self.schema, self.libraries, summary, self.reference, self.versions, self.licence, file)

    def _write(self, path: Path) -> None:
        record = {
            "schema": self.schema.to_json(),
            "likelihood": self.likelihood,
            "n_latent": self.n_latent,
            "beta": self.beta,
            "network_config": dataclasses.asdict(self.network_config),
            "training_config": dataclasses.asdict(self.training_config),
            "outcome": dataclasses.asdict(self.outcome),
            "history": {name: column.tolist() for name, column in self.history.items()},
            "seed": self.seed,
            "versions": self.versions,
            "threads": self.threads,
            "trained_on": self.trained_on,
            "libraries": None if self.libraries is None else self.libraries.to_json(),
            "density": None if self.density is None else self.density.to_json(),
            **({} if self.labels is None else {"labels": self.labels.to_json()}),
            **({} if self.reference is None else {"reference": self.reference.to_json()}),
            **({} if self.licence is None else {"licence": self.licence}),
            **({"view_libraries": [sizes.to_json() for sizes in self.view_libraries]} if self.view_libraries else {}),
            **({"coverages": [found and found.to_json() for found in self.coverages]} if self.coverages else {}),
        }
        tensors = dict(self.network.state_dict())
        if self.metric is not None:
            tensors[METRIC] = torch.from_numpy(self.metric.matrix)
        if self.density is not None:
            tensors |= self.density.tensors()
        if self.labels is not None:
            tensors |= self.labels.tensors()
        if self.reference is not None:
            tensors |= self.reference.tensors()
        write_tensors(path, tensors, FORMAT, record)


def _refuse_without_reference(asked: dict[str, Any]) -> None:
    given = [name for name, value in asked.items() if not (value is None or value is False or value == ())]
    if given:
        raise ValueError(f"{given[0]} says how to keep a reference; pass reference=adata with it, or leave it out")


def _betas_in_words(beta: float | tuple[float, float], attained: float) -> str:
    if isinstance(beta, tuple):
        return f"{beta[0]:g} to {beta[1]:g} (values shown here are at {attained:g})"
    return f"{beta:g} (attained {attained:g})"


def _groups_in_words(network: VAE) -> dict[str, str]:
    """The row of the summary with the groups of a discrete latent, and how evenly cells use them."""
    prior = network.prior
    if not isinstance(prior, Discrete):
        return {}
    name = {"code": "codes", "category": "categories"}[prior.kind]
    return {name: f"{len(prior.share)} (perplexity {prior.perplexity:.1f})"}


def check_model(model: object, name: str = "model") -> None:
    """Checks that `model` is a FittedModel.

    Raises
    ------
    TypeError
        If it is not; the message names its type.
    """
    if not isinstance(model, FittedModel):
        raise TypeError(
            f"{name} is a {type(model).__name__}; pass a FittedModel, as returned by scvae.fit or scvae.load"
        )
