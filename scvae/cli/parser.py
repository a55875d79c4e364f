"""The commands of `scvae` and their options; nothing is run from here."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn, final

from .._version import __version__
from .arguments import (
    add_files,
    add_force,
    add_input,
    add_key_added,
    add_layer,
    add_more_output,
    add_settings,
    add_sources,
)

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
