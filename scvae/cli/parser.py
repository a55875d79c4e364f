"""Parser of the commands of `scvae` and their options."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn, final

from .._version import __version__
from ..common.files import as_path
from ..common.keys import Keys, check_slot_name

USAGE_ERROR = 2


@final
class Parser(argparse.ArgumentParser):
    """A parser that prints each error as one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"scvae: error: {one_line(message)} (see {self.prog} --help)\n")


def make_parser() -> Parser:
    """The parser of all commands; the attribute `command` of its result is the command given."""
    parser = Parser(
        prog="scvae",
        description="Variational autoencoders for single-cell counts: from raw counts to an embedding.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"scvae {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_fit(commands)
    _add_tune_beta(commands)
    _add_embed(commands)
    _add_label(commands)
    _add_map(commands)
    _add_diagnose(commands)
    _add_demo(commands)
    return parser


def _add_command(
    commands: argparse._SubParsersAction[Parser],
    name: str,
    *,
    summary: str,
    description: str,
    epilog: str | None = None,
) -> Parser:
    """Adds a command; options that are not given are left out of the result."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=epilog,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.set_defaults(command=name)
    return parser


def _add_fit(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _add_command(
        commands,
        "fit",
        summary="train a model on h5ad files or zarr stores and write the embedding",
        description="Trains a model on raw counts and writes the embedding into the input files or to OUTPUT.",
        epilog="Defaults are those of scvae.fit; see help(scvae.fit) in Python. For several processes: torchrun "
        "--nproc-per-node 2 -m scvae fit in.h5ad -o out.h5ad",
    )
    add_sources(parser)
    model = add_settings(parser)
    model.add_argument("--labels-key", metavar="COLUMN", help="obs column with cell types to listen to")
    model.add_argument("--unlabelled", metavar="NAME", help="value of that column in cells without a label")
    model.add_argument("--label-weight", metavar="W", type=float, help="weight of the labels in the objective")
    model.add_argument(
        "--label-hierarchy",
        metavar="COLUMN",
        nargs="+",
        help="obs columns from coarse to fine with a tree of labels, or an ontology (cl.obo), if some labels are "
        "coarser names of others",
    )
    model.add_argument(
        "--beta",
        metavar="BETA",
        type=float,
        nargs="+",
        help="weight of the KL term, at least 0; two values, LOW HIGH, train one model for every β between them",
    )
    add_more_output(parser)
    parser.set_defaults(model=None)


def _add_tune_beta(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _add_command(
        commands,
        "tune-beta",
        summary="compare weights of the KL term, and write the embedding at the recommended one",
        description="Trains a model for a range of weights β of the KL term, measures the embedding at several β, and "
        "writes a copy of the file with a table of the results and the embedding at the recommended β.",
        epilog="Defaults are those of scvae.tune_beta; see help(scvae.tune_beta) in Python.",
    )
    add_input(parser)
    _add_output(parser, "h5ad file or zarr store to write: a copy of the input with the results", required=True)
    model = add_settings(parser)
    model.add_argument("--betas", metavar="BETA", nargs="+", type=float, help="the weights to compare, at least two")
    model.add_argument("--labels-key", metavar="COLUMN", help="obs column with known labels to compare with")
    model.add_argument("--method", metavar="NAME", help="path (one model for all β) or sweep (a model for each)")
    output = add_more_output(parser)
    output.add_argument("--plot", metavar="FILE", type=as_path, help="plot the rate-distortion curve (png, pdf or svg)")
    output.add_argument(
        "--explorer", metavar="FILE", type=as_path, help="write an interactive page with UMAPs along β (html)"
    )
    parser.set_defaults(model=None, plot=None, explorer=None)


def _add_embed(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _add_command(
        commands,
        "embed",
        summary="embed the cells of h5ad files or zarr stores with a saved model",
        description="Embeds cells with a saved model and writes the embedding into the input files or to OUTPUT.",
    )
    add_sources(parser)
    parser.add_argument("--model", metavar="FILE", type=as_path, required=True, help="model that scvae fit saved")
    add_layer(parser, "layer with the data, X for X, raw for raw (default: as in the fit)")
    parser.add_argument("--beta", metavar="BETA", type=float, help="for a model with a range of β: the β to embed at")
    parser.add_argument(
        "--views", metavar="NAME", nargs="+", help="for a model of several measurements: those to embed by, e.g. rna"
    )
    add_key_added(parser)
    parser.set_defaults(beta=None, views=None)


def _add_label(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _add_command(
        commands,
        "label",
        summary="name the cells of an h5ad file by a saved model that was fitted with labels",
        description="Names cells by a model that was fitted with --labels-key, and writes a copy of the file with a "
        "label, its uncertainty and an outlier score for each cell.",
        epilog="Defaults are those of scvae.tl.predict_labels; see help(scvae.tl.predict_labels) in Python.",
    )
    add_input(parser)
    parser.add_argument("--model", metavar="FILE", type=as_path, required=True, help="model that scvae fit saved")
    _add_output(parser, "h5ad file or zarr store to write: a copy of the input with the labels", required=True)
    parser.add_argument(
        "--hierarchy",
        metavar="COLUMN",
        nargs="+",
        help="obs columns from coarse to fine with a tree of labels, an ontology (cl.obo), or learnt: names are as "
        "deep as they are sure",
    )
    parser.add_argument(
        "--max-error", metavar="SHARE", type=float, help="with --hierarchy: largest share of wrong names"
    )
    parser.add_argument("--unknown-above", metavar="SCORE", type=float, help="outlier score of unknown cells, 0 to 1")
    parser.add_argument("--probabilities", action="store_true", help="also write the probability of each label")
    parser.add_argument("--batch-key", metavar="COLUMN", help="obs column with the batch, if not that of the fit")
    add_layer(parser, "layer with the data, X for X, raw for raw (default: as in the fit)")
    add_key_added(parser)


def _add_map(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _add_command(
        commands,
        "map",
        summary="map the cells of an h5ad file onto a reference that came in a model's file",
        description="Maps cells onto the reference in a file that model.save(path, reference=adata) wrote, and writes "
        "a copy of the input with their embedding, labels with uncertainty and outlier score, places on the "
        "reference's UMAP, and nearest reference cells. Batches that the model does not know are learnt first.",
        epilog="Defaults are those of scvae.tl.map_query, transfer_labels, place and nearest_cells; see their help in "
        "Python.",
    )
    add_input(parser)
    parser.add_argument(
        "--reference", metavar="FILE", type=as_path, required=True, help="model with a reference (safetensors)"
    )
    _add_output(parser, "h5ad file or zarr store to write: a copy of the input with the results", required=True)
    parser.add_argument("--labels-key", metavar="COLUMN", help="the reference's labels to give, if it has several")
    parser.add_argument("--unknown-above", metavar="SCORE", type=float, help="outlier score of unknown cells, 0 to 1")
    parser.add_argument("--n-neighbors", metavar="N", type=int, help="nearest reference cells to write (default: 10)")
    parser.add_argument("--batch-key", metavar="COLUMN", help="obs column with the batch, if not that of the fit")
    parser.add_argument("--new-batches", action="store_true", help="all batches are new, whatever their names")
    parser.add_argument("--epochs", metavar="N", type=int, help="passes over the cells of new batches")
    add_layer(parser, "layer with the data, X for X, raw for raw (default: as in the fit)")
    add_more_output(parser)
    parser.set_defaults(model=None)


def _add_diagnose(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _add_command(
        commands,
        "diagnose",
        summary="report problems of a saved model, with causes and remedies",
        description="Examines a saved model on the cells of an h5ad file and prints a report: the verdict, the "
        "measurements behind it, and the cause and remedy of each disease.",
        epilog="Defaults are those of scvae.tl.diagnose; see help(scvae.tl.diagnose) in Python.",
    )
    add_input(parser)
    parser.add_argument("--model", metavar="FILE", type=as_path, required=True, help="model that scvae fit saved")
    add_layer(parser, "layer with the data, X for X, raw for raw (default: as in the fit)")
    parser.add_argument("--beta", metavar="BETA", type=float, help="for a model with a range of β: the β to examine")
    parser.add_argument("--n-cells", metavar="N", type=int, help="largest number of cells to examine")
    parser.add_argument("--compare-heads", action="store_true", help="also fit other heads, and report which fits best")
    parser.add_argument(
        "--condition-key",
        metavar="COLUMN",
        help="column of obs with a condition: audit whether the correction for batches removed or made its differences",
    )
    parser.add_argument("--seed", dest="rng", metavar="N", type=int, help="the same seed gives the same result")
    add_key_added(parser)
    _add_output(parser, "h5ad file or zarr store to write: a copy of the input with the report")


def _add_demo(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _add_command(
        commands,
        "demo",
        summary="fit, cluster and plot the bundled 2,700 blood cells",
        description="Fits, clusters and plots the bundled 2,700 blood cells (10x Genomics PBMC 3k).",
    )
    parser.add_argument(
        "--out-dir", metavar="FOLDER", type=as_path, default=Path("demo"), help="where to write (default: demo)"
    )


def one_line(message: object) -> str:
    """A message without line breaks."""
    return " ".join(str(message).split())


def add_more_output(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds the options for slots, model file and quiet."""
    output = parser.add_argument_group("more output")
    add_key_added(output)
    output.add_argument("--model", metavar="FILE", type=as_path, help="save the model here (safetensors)")
    output.add_argument("--quiet", action="store_true", default=False, help="print warnings and errors only")
    return output


def add_settings(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds the options for data, training and model; returns the group of the model."""
    data = parser.add_argument_group("data")
    add_layer(data, "layer with the raw counts, raw for those in raw (default: X)")
    data.add_argument("--mask-var", metavar="COLUMN", help="var column that marks the genes to model")
    data.add_argument("--batch-key", metavar="COLUMN", help="obs column with the batch of each cell")
    data.add_argument("--covariate-keys", metavar="COLUMN", nargs="+", help="further obs columns to correct for")
    data.add_argument("--size-factor-key", metavar="COLUMN", help="obs column in place of the library size")
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", metavar="N", type=int, help="passes over the cells")
    training.add_argument(
        "--memory", metavar="GB", type=float, help="if counts need more, read them from disk each epoch (default: 1)"
    )
    training.add_argument("--seed", dest="rng", metavar="N", type=int, help="the same seed gives the same result")
    training.add_argument("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps")
    training.add_argument(
        "--checkpoint", metavar="FILE", type=as_path, help="save the training state here; resume if the file exists"
    )
    model = parser.add_argument_group("model")
    model.add_argument("--likelihood", metavar="NAME", help="nb, zinb, poisson, bernoulli or gaussian")
    model.add_argument("--n-latent", metavar="N", type=_n_latent, help="latent dimensions, or auto")
    model.add_argument("--metric", metavar="NAME", help="coordinates of the embedding: expression (default) or latent")
    model.add_argument("--protein-key", metavar="SLOT", help="slot of obsm with proteins of the same cells to fit, too")
    model.add_argument(
        "--protein-likelihood", metavar="NAME", help="nb, nb_mixture, poisson, or gaussian for log or CLR values"
    )
    return model


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Adds one or more inputs, and an optional output."""
    parser.add_argument(
        "input",
        metavar="INPUT",
        type=as_path,
        nargs="+",
        help="h5ad file or zarr store, cells x genes; several, or a folder of them, are read as one data set",
    )
    _add_output(
        parser,
        "h5ad file to write: a copy with the results if the input is one h5ad file, else the cells with their "
        "columns and the results, without values; without OUTPUT, results are written into the input",
    )


def _add_output(parser: argparse.ArgumentParser, text: str, *, required: bool = False) -> None:
    """Adds the output file and the option to replace it."""
    parser.add_argument("-o", "--output", metavar="OUTPUT", type=as_path, default=None, required=required, help=text)
    parser.add_argument("--force", action="store_true", default=False, help="replace existing outputs")


def add_input(parser: argparse.ArgumentParser) -> None:
    """Adds the file to read."""
    parser.add_argument("input", metavar="INPUT", type=as_path, help="h5ad file, cells x genes")


def add_key_added(parser: argparse._ActionsContainer) -> None:
    """Adds the name of the slots."""
    parser.add_argument(
        "--key-added",
        metavar="NAME",
        type=_slot_name,
        default=Keys().key_added,
        help="name used in the slots written (default: scvae)",
    )


def add_layer(parser: argparse._ActionsContainer, text: str) -> None:
    """Adds the layer of the data."""
    parser.add_argument("--layer", metavar="NAME", help=text)


def _n_latent(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither an integer nor 'auto'") from None


def _slot_name(text: str) -> str:
    try:
        return check_slot_name(text, "the name")
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot name a slot: {error}") from None
