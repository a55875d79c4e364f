"""The command `scvae`: fits, tunes, embeds, maps and diagnoses h5ad files, and runs a demonstration on bundled data."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.distributed import is_launched, process_group
from ..common.keys import Keys
from .files import (
    check_cells_output,
    check_input,
    check_output,
    check_paths_differ,
    check_picture,
    check_writable,
    opened,
    results_of,
    write_copy,
)
from .parser import USAGE_ERROR, make_parser, one_line
from .tuning import check_explorer, draw_curve, explore

if TYPE_CHECKING:
    from anndata import AnnData


INTERRUPTED = 130  # 128 + SIGINT, as shells count
WRITTEN = ("model", "plot", "explorer", "checkpoint")  # options with files to write
KEYWORDS = (
    "layer",
    "mask_var",
    "batch_key",
    "covariate_keys",
    "size_factor_key",
    "likelihood",
    "n_latent",
    "beta",
    "metric",
    "rng",
    "device",
    "key_added",
    "checkpoint",
    "betas",
    "labels_key",
    "unlabelled",
    "label_weight",
    "label_hierarchy",
    "protein_key",
    "protein_likelihood",
    "method",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; a user error prints one line on stderr, and output files appear only when complete.

    Parameters
    ----------
    arguments
        The arguments after `scvae`; None for those of the process.

    Returns
    -------
    int
        Exit code: 0 for success, 2 for a user error, 130 after Ctrl-C outside training.

    Raises
    ------
    SystemExit
        After ``--help`` and ``--version`` (code 0), and if the arguments cannot be parsed (code 2).
    """
    given = make_parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *_place: _complain("warning", message)
        try:
            _run(given)
        except KeyboardInterrupt:
            return INTERRUPTED
        except (ValueError, OSError, FloatingPointError) as error:
            _complain("error", error)
            return USAGE_ERROR
    return 0


def _run(given: argparse.Namespace) -> None:
    """Runs a command, in all processes together if torchrun has started several."""
    run = COMMANDS[given.command]
    if not is_launched():
        run(given)
        return
    if given.command not in {"fit", "tune-beta"}:
        raise ValueError(f"{given.command} runs in one process only; start it without torchrun")

    with process_group():
        run(given)


def _is_first() -> bool:
    """Whether this process writes files and prints."""
    return not is_launched() or int(os.environ["RANK"]) == 0


def _fit(given: argparse.Namespace) -> None:
    _check_files(given)

    from ..training.fit import NotWrittenError, fit

    keys = Keys(given.key_added)
    keywords = _keywords(given)
    layer = getattr(given, "layer", None)
    slots = [key for key in [getattr(given, "protein_key", None)] if key is not None]
    with results_of(given.input, given.output, layer, slots, force=given.force, is_writer=_is_first()) as results:
        try:
            model = fit(results.cells, **keywords)
        except NotWrittenError as error:
            if given.model is None:
                raise OSError(str(error.__cause__)) from error
            error.model.save(given.model)
            raise OSError(
                f"{error.__cause__}; {given.model} has the model, with which scvae embed writes it"
            ) from error
        results.take(lambda adata: _results(adata, keys))
        if given.model is not None and _is_first():
            model.save(given.model)
    if not _is_first():
        return
    if given.quiet:
        return
    outcome = model.outcome
    rows = {
        "cells": f"{results.n_cells:,}",
        "genes": f"{len(model.genes):,}",
        **{view.name: f"{len(view.features):,} features, {view.likelihood}" for view in model.schema.views},
        "seconds": f"{outcome.seconds:.1f} ({outcome.epochs} epochs)",
        "held-out ELBO": f"{outcome.held_out_elbo:.1f} nats per cell",
        "active dimensions": f"{outcome.active_dimensions} of {model.n_latent}",
        "converged": "yes" if outcome.converged else f"no: {outcome.reason}",
        "seed": model.seed,
        "embedding": f"{results.place}, obsm[{keys.mean!r}]",
    }
    _print_rows(rows if given.model is None else rows | {"model": given.model})


def _tune_beta(given: argparse.Namespace) -> None:
    _check_files(given)
    if given.plot is not None:
        check_picture(given.plot)
    if given.explorer is not None:
        check_explorer(given)

    from ..common.files import written_whole
    from ..tl._tune_beta import tune_beta

    keys = Keys(given.key_added)
    with opened(given.input, getattr(given, "layer", None)) as adata:
        path = tune_beta(adata, **_keywords(given))
        results = _results(adata, keys)
        n_cells = adata.n_obs
        if given.plot is not None and _is_first():
            with written_whole(given.plot) as temporary:
                draw_curve(adata, given.key_added, temporary)
        if given.explorer is not None and _is_first():
            results["obsm"][keys.beta_umaps] = explore(adata, path.model, keys, given)
            results["uns"][keys.uns] = adata.uns[keys.uns]
    if not _is_first():
        return
    if given.model is not None:
        path.model.save(given.model)
    write_copy(given.input, given.output, results, force=given.force)
    if given.quiet:
        return
    rows = {
        "cells": f"{n_cells:,}",
        "genes": f"{len(path.model.genes):,}",
        "judged on": path.judged_on,
        "recommended β": f"{path.recommended:.4g}",
        "seed": path.model.seed,
        "embedding": f"{given.output}, obsm[{keys.mean!r}]",
        "table": f"{given.output}, uns[{keys.uns!r}][{keys.beta_path!r}]",
    }
    places = (("plot", given.plot), ("explorer", given.explorer), ("model", given.model))
    _print_rows(rows | {name: place for name, place in places if place})


def _check_files(given: argparse.Namespace, written: tuple[str, ...] = WRITTEN) -> None:
    """Refuses inputs that cannot be read and outputs that cannot be written, before training starts."""
    inputs = given.input if isinstance(given.input, list) else [given.input]
    for path in inputs:
        check_input(path, may_be_folder=isinstance(given.input, list))
    if not _is_first():
        return
    outputs = {f"--{name}": getattr(given, name, None) for name in written}
    check_paths_differ({"output": given.output} | outputs)
    for source in inputs:
        if given.output is not None:
            check_cells_output(given.output, source, force=given.force, may_replace_input=len(inputs) == 1)
        for name, path in outputs.items():
            if path is not None:
                # an existing checkpoint is resumed, so it does not need --force
                force = given.force or name == "--checkpoint"
                check_output(path, source, force=force, may_replace_input=False)


def _keywords(given: argparse.Namespace) -> dict[str, Any]:
    """The options as keyword arguments of `fit` or `tune_beta`."""
    from ..config import TrainingConfig

    options = vars(given)
    keywords = {name: options[name] for name in KEYWORDS if name in options}
    for name in {"beta", "label_hierarchy"} & set(keywords):
        keywords[name] = _one_or_several(keywords[name])
    given_training = {name: options[name] for name in ("epochs", "memory") if name in options}
    training = TrainingConfig(**given_training) if given_training else None
    return keywords | {"training": training, "verbose": not given.quiet}


def _one_or_several(values: Sequence[Any]) -> Any:
    return values[0] if len(values) == 1 else tuple(values)


def _results(adata: AnnData, keys: Keys) -> dict[str, dict[str, Any]]:
    """The slots that `fit` or `embed` has written to `adata`."""
    return {
        "obsm": {key: adata.obsm[key] for key in (keys.mean, keys.variance)},
        "varm": {keys.loadings: adata.varm.get(keys.loadings)},  # None removes those of an earlier fit
        "uns": {keys.uns: adata.uns[keys.uns]},
    }


def _embed(given: argparse.Namespace) -> None:
    check_paths_differ({"output": given.output, "--model": given.model})
    _check_files(given, written=())

    from ..inference.load import load
    from ..tl import embed

    model = load(given.model)
    keys = Keys(given.key_added)
    layer = getattr(given, "layer", model.schema.layer)
    read = None if layer == "X" else layer
    with results_of(given.input, given.output, read, model.schema.slots, force=given.force) as results:
        options = {"beta": given.beta, "views": given.views, "key_added": given.key_added}
        embed(results.cells, model, layer=layer or "X", **options)
        results.take(lambda adata: _results(adata, keys))
    _print_rows({"cells": f"{results.n_cells:,}", "embedding": f"{results.place}, obsm[{keys.mean!r}]"})


def _label(given: argparse.Namespace) -> None:
    check_input(given.input)
    check_paths_differ({"output": given.output, "--model": given.model})
    check_cells_output(given.output, given.input, force=given.force)

    from ..data.labels import UNKNOWN
    from ..inference.load import load
    from ..tl import predict_labels

    model, options = load(given.model), vars(given)
    keys = Keys(given.key_added)
    names = ("max_error", "unknown_above", "probabilities", "batch_key", "key_added")
    keywords = {name: options[name] for name in names if name in options}
    if "hierarchy" in options:
        keywords["hierarchy"] = _one_or_several(given.hierarchy)
    layer = options.get("layer", model.schema.layer)
    with opened(given.input, None if layer == "X" else layer) as adata:
        predict_labels(adata, model, layer=layer or "X", **keywords)
        results = {
            "obs": {keys.label: adata.obs[keys.label].array}
            | {key: adata.obs[key].to_numpy() for key in (keys.label_uncertainty, keys.outlier)},
            "obsm": {keys.label_probability: adata.obsm.get(keys.label_probability)},
            "uns": {keys.uns: adata.uns[keys.uns]},
        }
        named = adata.obs[keys.label].value_counts()
        n_cells = adata.n_obs
    write_copy(given.input, given.output, results, force=given.force)
    rows = {
        "cells": f"{n_cells:,}",
        "unknown": f"{named[UNKNOWN]:,}",
        "names": f"{(named.drop(UNKNOWN) > 0).sum():,}",
        "labels": f"{given.output}, obs[{keys.label!r}]",
    }
    _print_rows(rows)


def _map(given: argparse.Namespace) -> None:
    check_paths_differ({"--reference": given.reference, "output": given.output, "--model": given.model})
    _check_files(given)

    from ..data.labels import UNKNOWN
    from ..inference.load import load
    from .mapping import map_onto

    model, options = load(given.reference), vars(given)
    kept, keys = model.reference, Keys(given.key_added)
    if kept is None:
        raise ValueError(f"{given.reference} has a model, but no reference; add one: model.save(path, reference=adata)")
    if "labels_key" not in options and len(kept.labels) > 1:
        raise ValueError(f"{given.reference} has labels {', '.join(kept.labels)}; pass one of them as --labels-key")
    layer = options.get("layer", model.schema.layer)
    with opened(given.input, None if layer == "X" else layer) as adata:
        mapped, results = map_onto(adata, model, kept, options, layer=layer or "X", verbose=not given.quiet)
        n_cells = adata.n_obs
    if given.model is not None:
        mapped.save(given.model)
    write_copy(given.input, given.output, results, force=given.force)
    if given.quiet:
        return
    slots = {
        "embedding": ("obsm", keys.mean),
        "labels": ("obs", keys.label),
        "UMAP": ("obsm", keys.umap),
        "nearest cells": ("obsm", keys.nearest[0]),
    }
    rows: dict[str, object] = {"cells": f"{n_cells:,}", "reference": f"{given.reference}, {len(kept):,} cells"}
    if keys.label in results["obs"]:
        rows["unknown"] = f"{(results['obs'][keys.label] == UNKNOWN).sum():,}"
    rows |= {name: f"{given.output}, {at}[{key!r}]" for name, (at, key) in slots.items() if key in results[at]}
    _print_rows(rows if given.model is None else rows | {"model": given.model})


def _diagnose(given: argparse.Namespace) -> None:
    check_input(given.input)
    check_paths_differ({"output": given.output, "--model": given.model})
    if given.output is not None:
        check_cells_output(given.output, given.input, force=given.force)

    from ..inference.load import load
    from ..tl import diagnose

    model, options = load(given.model), vars(given)
    keys = Keys(given.key_added)
    names = ("beta", "n_cells", "compare_heads", "condition_key", "rng", "key_added")
    keywords = {name: options[name] for name in names if name in options}
    layer = options.get("layer", model.schema.layer)
    with opened(given.input, None if layer == "X" else layer) as adata:
        print(diagnose(adata, model, layer=layer or "X", verbose=False, **keywords))
        results = {"uns": {keys.uns: adata.uns[keys.uns]}}
    if given.output is not None:
        write_copy(given.input, given.output, results, force=given.force)


def _demo(given: argparse.Namespace) -> None:
    folder: Path = given.out_dir
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; pass another --out-dir")
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder)

    from .. import datasets
    from ..common.files import written_whole
    from .demo import analyse, draw

    adata, row = analyse(datasets.pbmc3k())
    with written_whole(folder / "pbmc3k_scvae.h5ad") as temporary:
        adata.write_h5ad(temporary, compression="gzip")
    with written_whole(folder / "umap.png") as temporary:
        draw(adata, temporary)
    widths = [max(len(name), len(value)) for name, value in row.items()]
    print("  ".join(f"{name:>{width}}" for name, width in zip(row, widths, strict=True)))
    print("  ".join(f"{value:>{width}}" for value, width in zip(row.values(), widths, strict=True)))
    print(f"wrote {folder / 'pbmc3k_scvae.h5ad'} and {folder / 'umap.png'}")


def _print_rows(rows: Mapping[str, object]) -> None:
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")


def _complain(kind: str, message: object) -> None:
    """Prints one line from the first process, or from another one if the first process is lost."""
    if _is_first() or 0 in getattr(message, "missing", ()):
        print(f"scvae: {kind}: {one_line(message)}", file=sys.stderr)


COMMANDS = {
    "fit": _fit,
    "tune-beta": _tune_beta,
    "embed": _embed,
    "label": _label,
    "map": _map,
    "diagnose": _diagnose,
    "demo": _demo,
}
