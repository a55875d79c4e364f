"""The commands of `scvae` and their options; nothing is run from here."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn, final

from .._version import __version__
from ..common.keys import Keys

USAGE_ERROR = 2


@final
class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line; `error` is the place that argparse provides for that."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"scvae: error: {one_line(message)} (see {self.prog} --help)\n")


def make_parser() -> Parser:
    """The parser of all commands; `command` says which one was given."""
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
    _add_diagnose(commands)
    _add_demo(commands)
    return parser


def _add_fit(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "fit",
        help="train a model on h5ad files or zarr stores and write the embedding",
        description="Trains a model on raw counts and writes the embedding: into the files themselves, or elsewhere.",
        epilog="What is not given is as in scvae.fit. In Python: help(scvae.fit). In several processes: torchrun "
        "--nproc-per-node 2 -m scvae fit in.h5ad -o out.h5ad",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    add_sources(parser)
    model = add_settings(parser)
    model.add_argument(
        "--beta",
        metavar="BETA",
        type=float,
        nargs="+",
        help="weight of the KL term, at least 0; two, LOW HIGH, for a model of every β between",
    )
    add_more_output(parser)
    parser.set_defaults(command="fit", model=None)


def _add_tune_beta(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "tune-beta",
        help="look at many weights of the KL term, and write the embedding at the one recommended",
        description="Trains a model for many weights β of the KL term, measures the embedding at each, and writes a "
        "copy of the file with the table and the embedding at the β recommended.",
        epilog="What is not given is as in scvae.tune_beta. In Python: help(scvae.tune_beta).",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    add_files(parser)
    model = add_settings(parser)
    model.add_argument("--betas", metavar="BETA", nargs="+", type=float, help="the weights to look at, two at least")
    model.add_argument("--labels-key", metavar="COLUMN", help="obs column with known labels to compare with")
    model.add_argument("--method", metavar="NAME", help="path (one model for all β) or sweep (a model for each)")
    output = add_more_output(parser)
    output.add_argument("--plot", metavar="FILE", type=Path, help="draw the curve here (png, pdf or svg)")
    output.add_argument(
        "--explorer", metavar="FILE", type=Path, help="write a page that moves the cells along β here (html)"
    )
    parser.set_defaults(command="tune-beta", model=None, plot=None, explorer=None)


def _add_embed(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "embed",
        help="embed the cells of h5ad files or zarr stores with a saved model",
        description="Writes the embedding that a saved model gives to cells: into their files, or elsewhere.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    add_sources(parser)
    parser.add_argument("--model", metavar="FILE", type=Path, required=True, help="model that scvae fit saved")
    add_layer(parser, "layer with the data, X for X (default: as at the fit)")
    parser.add_argument("--beta", metavar="BETA", type=float, help="for a model of many β: the one to embed at")
    add_key_added(parser)
    parser.set_defaults(command="embed", beta=None)


def _add_diagnose(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "diagnose",
        help="say what is wrong with a saved model, if anything, and what to do",
        description="Examines a saved model on the cells of an h5ad file and prints a report: the verdict, the "
        "measurements behind it, and for each disease its cause and remedy.",
        epilog="What is not given is as in scvae.tl.diagnose. In Python: help(scvae.tl.diagnose).",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    add_input(parser)
    parser.add_argument("--model", metavar="FILE", type=Path, required=True, help="model that scvae fit saved")
    add_layer(parser, "layer with the data, X for X (default: as at the fit)")
    parser.add_argument("--beta", metavar="BETA", type=float, help="for a model of many β: the one to examine")
    parser.add_argument("--n-cells", metavar="N", type=int, help="look at so many cells at most")
    parser.add_argument(
        "--compare-heads", action="store_true", help="fit nb, zinb and poisson too, and tell which fits the counts"
    )
    parser.add_argument("--seed", dest="rng", metavar="N", type=int, help="the same seed gives the same result")
    add_key_added(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUTPUT",
        type=Path,
        default=None,
        help="h5ad file to write, the input with the report",
    )
    add_force(parser)
    parser.set_defaults(command="diagnose")


def _add_demo(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "demo",
        help="fit, cluster and draw the bundled 2,700 blood cells",
        description="Fits, clusters and draws the bundled 2,700 blood cells (10x Genomics PBMC 3k).",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--out-dir", metavar="FOLDER", type=Path, default=Path("demo"), help="where to write (default: demo)"
    )
    parser.set_defaults(command="demo")


def one_line(message: object) -> str:
    """A message without line breaks."""
    return " ".join(str(message).split())


def add_more_output(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Slots, model file and quiet."""
    output = parser.add_argument_group("more output")
    add_key_added(output)
    output.add_argument("--model", metavar="FILE", type=Path, help="save the model here (safetensors)")
    output.add_argument("--quiet", action="store_true", default=False, help="print warnings and errors only")
    return output


def add_settings(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """What is read and how it is modelled and trained; returns the group of the model."""
    data = parser.add_argument_group("data")
    add_layer(data, "layer with the raw counts (default: X)")
    data.add_argument("--mask-var", metavar="COLUMN", help="var column that marks the genes to model")
    data.add_argument("--batch-key", metavar="COLUMN", help="obs column with the batch of each cell")
    data.add_argument("--covariate-keys", metavar="COLUMN", nargs="+", help="more obs columns to correct for")
    data.add_argument("--size-factor-key", metavar="COLUMN", help="obs column in place of the library size")
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", metavar="N", type=int, help="passes over the cells")
    training.add_argument(
        "--memory", metavar="GB", type=float, help="read counts from disk in every epoch if they need more (default: 1)"
    )
    training.add_argument("--seed", dest="rng", metavar="N", type=int, help="the same seed gives the same result")
    training.add_argument("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps")
    training.add_argument(
        "--checkpoint", metavar="FILE", type=Path, help="save the training here; go on from it if it is there"
    )
    model = parser.add_argument_group("model")
    model.add_argument("--likelihood", metavar="NAME", help="nb, zinb, poisson, bernoulli or gaussian")
    model.add_argument("--n-latent", metavar="N", type=_n_latent, help="latent dimensions, or auto")
    return model


def add_files(parser: argparse.ArgumentParser) -> None:
    """Input and output."""
    add_input(parser)
    parser.add_argument(
        "-o", "--output", metavar="OUTPUT", type=Path, required=True, help="h5ad file to write, the input with results"
    )
    add_force(parser)


def add_sources(parser: argparse.ArgumentParser) -> None:
    """One input or several, and an output that may be left out."""
    parser.add_argument(
        "input",
        metavar="INPUT",
        type=Path,
        nargs="+",
        help="h5ad file or zarr store, cells x genes; several, or a folder of them, are one set of cells",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUTPUT",
        type=Path,
        default=None,
        help="h5ad file to write: of one h5ad file a copy with the results, otherwise the cells with their columns and "
        "the results, without values; left out, results go into the input itself",
    )
    add_force(parser)


def add_force(parser: argparse.ArgumentParser) -> None:
    """Leave to replace files."""
    parser.add_argument("--force", action="store_true", default=False, help="replace outputs that exist")


def add_input(parser: argparse.ArgumentParser) -> None:
    """The file to read."""
    parser.add_argument("input", metavar="INPUT", type=Path, help="h5ad file, cells x genes")


def add_key_added(parser: argparse._ActionsContainer) -> None:
    """The name of the slots."""
    parser.add_argument(
        "--key-added",
        metavar="NAME",
        type=_slot_name,
        default=Keys().key_added,
        help="name of the slots (default: scvae)",
    )


def add_layer(parser: argparse._ActionsContainer, text: str) -> None:
    """Where the data are."""
    parser.add_argument("--layer", metavar="NAME", help=text)


def _n_latent(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither an integer nor auto") from None


def _slot_name(text: str) -> str:
    if not text or "/" in text:
        raise argparse.ArgumentTypeError(f"{text!r} cannot name a slot of an h5ad file; leave out '/'")
    return text
