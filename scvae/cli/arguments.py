"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..common.keys import Keys


def add_more_output(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Slots, model file and quiet."""
    output = parser.add_argument_group("more output")
    add_key_added(output)
    output.add_argument("--model", metavar="FILE", type=Path, help="save the model here (safetensors)")
    output.add_argument("--quiet", action="store_true", default=False, help="print warnings and errors only")
    return output


def add_settings(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """What is read and how it is modelled and trained; returns the group of the model."""
    """What all commands that train are told; returns the group of the model's settings."""
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
