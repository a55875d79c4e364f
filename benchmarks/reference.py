"""A reference in a model's file: is mapping onto it what mapping onto its AnnData is, and how large and fast is it?

Usage: python benchmarks/reference.py [DATA.h5ad=BATCH ...] [--only table tree place million] [--seeds 1] [--table]

Files and held-out batches are those of map_query.py.

table: the queries are mapped with what scvae.load makes of a file that holds the reference without counts. Compared
between the reference's AnnData and the file: the labels of 15 nearest reference cells, and those of
scvae.tl.transfer_labels with their calibration error. Also the share of query cells that scvae.tl.place puts where 15
nearest cells on the reference's UMAP are mostly of their type, and the bytes a cell takes in the file.
tree: the labels of the same queries as deep in a learnt tree as max_error=0.05 allows: the share of cells with a name,
and the shares of wrong names and of single labels among these. The query is of another batch than the cells that names
are judged by.
place: a fifth of the cells of each file is left out of fit and reference. Do their places on the UMAP of the others
follow their type? Beside scvae.tl.place: the mean of the same neighbours' coordinates, UMAP's own transform (of
umap-learn, which needs its fitted object), and the left-out cells in the latent space, as a bound.
million: a file with a million reference cells of 10 and 20 dimensions: bytes per cell, seconds to load it, and seconds
(with those of the processor for nearest_cells) of the tools for a query of 1,000 cells.

Rows are written to benchmarks/results/reference/PART.json. --table only prints the existing rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parent / "_map_query"))
from task import NAMELESS, NEIGHBOURS, Row, Task

RESULTS = Path(__file__).parent / "results" / "reference"
LEFT_OUT = 0.2
MANY = 1_000_000
PARTS = ("table", "tree", "place", "million")


def table(path: Path, held_out: str, seed: int) -> Iterator[Row]:
    """One row a task: accuracies with the AnnData and with the file."""
    import scvae

    task = Task.read(path, held_out)
    reference = task.reference.copy()
    reference.obs["cell_type"] = reference.obs["cell_type"].where(~reference.obs["cell_type"].isin(NAMELESS))
    model = scvae.fit(reference, batch_key="batch", rng=seed, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        file = model.save(Path(folder) / "ref.safetensors", reference=reference, labels="cell_type", umap=True)
        saved = time.perf_counter() - started
        alone = Path(folder) / "alone.safetensors"
        model.save(alone)
        grown = (file.stat().st_size - alone.stat().st_size) / reference.n_obs
        loaded = scvae.load(file)
    row = task.row(seed=seed, reference_cells=reference.n_obs, bytes_per_cell=grown, save_seconds=saved)
    for kind, cells in task.queries.items():
        query = cells.copy()
        started = time.perf_counter()
        mapped = scvae.tl.map_query(query, loaded, verbose=False)
        row[f"{kind}_seconds"] = time.perf_counter() - started
        for side, latent in (
            ("adata", reference.obsm["X_scvae"]),
            ("file", loaded.reference.to_adata().obsm["X_scvae"]),
        ):
            row[f"{kind}_{side}_accuracy"] = task.accuracy(latent, query.obsm["X_scvae"])
        for side, options in (("adata", {"reference": reference, "labels_key": "cell_type"}), ("file", {})):
            scvae.tl.transfer_labels(query, mapped, unknown_above=1.0, **options)
            row |= {f"{kind}_{side}_{name}": value for name, value in judged(query, reference).items()}
        scvae.tl.place(query, mapped)
        row[f"{kind}_place_accuracy"] = task.accuracy(loaded.reference.umap, query.obsm["X_scvae_umap"])
    yield row


def tree(path: Path, held_out: str, seed: int) -> Iterator[Row]:
    """One row a task: names given, wrong ones among them, and single labels among them."""
    import scvae

    task = Task.read(path, held_out)
    reference, query = task.reference, task.queries["full"].copy()
    reference = reference[~reference.obs["cell_type"].isin(NAMELESS)].copy()
    model = scvae.fit(reference, batch_key="batch", rng=seed, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        model = scvae.load(model.save(Path(folder) / "ref", reference=reference, labels="cell_type"))
    mapped = scvae.tl.map_query(query, model, verbose=False)
    scvae.tl.transfer_labels(query, mapped, hierarchy="learnt", max_error=0.05)
    judged = query.obs[query.obs["cell_type"].isin(reference.obs["cell_type"])]
    named = judged[judged["scvae_label"] != "unknown"]
    pairs = list(zip(named["cell_type"].astype(str), named["scvae_label"].astype(str), strict=True))
    yield task.row(
        seed=seed,
        named=len(named) / len(judged),
        wrong=float(np.mean([truth not in name.split(" or ") for truth, name in pairs])),
        single=float(np.mean([" or " not in name for _, name in pairs])),
    )


def judged(query: ad.AnnData, reference: ad.AnnData) -> Row:
    """Accuracy and expected calibration error (ten bins) of transferred labels, over types that the reference has."""
    known = query.obs["cell_type"].isin(reference.obs["cell_type"].dropna()).to_numpy()
    confidence = 1.0 - query.obs["scvae_label_uncertainty"].to_numpy()[known]
    right = (query.obs["scvae_label"].astype(str) == query.obs["cell_type"]).to_numpy()[known]
    bins = np.minimum((confidence * 10).astype(int), 9)
    gaps = [abs(confidence[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    return {"transfer_accuracy": float(right.mean()), "calibration_error": float(sum(gaps))}


def place(path: Path, seed: int) -> Iterator[Row]:
    """One row a file: the share of left-out cells among their own type."""
    import umap

    import scvae
    from scvae.inference.nearest import nearest_cells, placed

    adata = ad.read_h5ad(path)
    adata = ad.AnnData(adata.X.astype(np.float32), obs=adata.obs.astype(str), var=adata.var[[]])
    adata = adata[~adata.obs["cell_type"].isin(NAMELESS)].copy()
    batch_key = "batch" if "batch" in adata.obs and adata.obs["batch"].nunique() > 1 else None
    is_out = np.random.default_rng(seed).random(adata.n_obs) < LEFT_OUT
    reference, query = adata[~is_out].copy(), adata[is_out].copy()
    scvae.tl.highly_variable_genes(reference)
    model = scvae.fit(reference, batch_key=batch_key, rng=seed, verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # genes without counts in the reference are not modelled
        scvae.tl.embed(query, model)
    latent, cells = reference.obsm["X_scvae"], query.obsm["X_scvae"]
    fitted = umap.UMAP(n_neighbors=15, min_dist=0.5, random_state=seed, n_jobs=1).fit(latent)
    layout = fitted.embedding_
    _, near = nearest_cells(latent, cells, 10)
    started = time.perf_counter()
    places = {"scvae.tl.place": placed(layout, near)}
    row: Row = {"set": path.stem, "seed": seed, "cells": query.n_obs, "place_seconds": time.perf_counter() - started}
    started = time.perf_counter()
    places |= {"mean of the neighbours": layout[near].mean(1), "UMAP's transform": fitted.transform(cells)}
    row["transform_seconds"] = time.perf_counter() - started
    named, true = reference.obs["cell_type"].to_numpy(), query.obs["cell_type"].to_numpy()
    row["latent space"] = among_own(latent, named, cells, true)
    row |= {name: among_own(layout, named, found, true) for name, found in places.items()}
    yield row


def among_own(reference: np.ndarray, named: np.ndarray, cells: np.ndarray, true: np.ndarray) -> float:
    from sklearn.neighbors import KNeighborsClassifier

    return float((KNeighborsClassifier(NEIGHBOURS).fit(reference, named).predict(cells) == true).mean())


def million(seed: int) -> Iterator[Row]:
    """One row for a number of dimensions: a file of a million reference cells, made of the latents of few by noise."""
    import torch

    import scvae
    from scvae.inference.reference import Reference, packed

    for n_latent in (10, 20):
        adata = scvae.datasets.simulate(n_cells=3_000, n_genes=200, n_types=8, n_latent=n_latent, rng=seed)
        reference, query = adata[:2_000].copy(), adata[2_000:].copy()
        model = scvae.fit(reference, n_latent=n_latent, rng=seed, verbose=False)
        rng = np.random.default_rng(seed)
        who = rng.integers(reference.n_obs, size=MANY)
        mean = reference.obsm["X_scvae"][who] + rng.normal(0.0, 0.2, (MANY, n_latent))
        barcodes = rng.choice(list("ACGT"), (MANY, 16)).view("U16").ravel()
        made = Reference(
            mean=mean.astype(np.float16),
            variance=reference.obsm["X_scvae_var"][who].astype(np.float16),
            beta=1.0,
            labels={"cell_type": reference.obs["cell_type"].array[who]},
            umap=mean[:, :2].astype(np.float32),
            packed=packed(pd.Index([f"{barcode}-1" for barcode in barcodes])),
        )
        row: Row = {"n_latent": n_latent, "seed": seed, "threads": torch.get_num_threads()}
        with tempfile.TemporaryDirectory() as folder:
            alone = model.save(Path(folder) / "alone").stat().st_size
            file = dataclasses.replace(model, reference=made).save(Path(folder) / "ref")
            row["bytes_per_cell"] = (file.stat().st_size - alone) / MANY
            started = time.perf_counter()
            model = scvae.load(file)
            row["load"] = time.perf_counter() - started
        scvae.tl.embed(query, model)
        tools = {"nearest_cells": scvae.tl.nearest_cells, "place": scvae.tl.place}
        for name, tool in (tools | {"transfer_labels": scvae.tl.transfer_labels}).items():
            started, worked = time.perf_counter(), time.process_time()
            tool(query, model)
            row[name] = time.perf_counter() - started
            if name == "nearest_cells":
                row["its_processor"] = time.process_time() - worked
        yield row | {"machine_load": os.getloadavg()[0]}


def rows_of(part: str, arguments: argparse.Namespace) -> Iterator[Row]:
    for seed in range(arguments.seeds):
        if part == "million":
            yield from million(seed)
            continue
        for name in arguments.tasks:
            path, _, held_out = name.partition("=")
            if part == "table" and held_out:
                yield from table(Path(path), held_out, seed)
            elif part == "tree" and held_out:
                yield from tree(Path(path), held_out, seed)
            elif part == "place" and not held_out:
                yield from place(Path(path), seed)


def both(row: Row, kind: str, name: str) -> str:
    """A figure with the AnnData and with the file."""
    kinds = ["missing_0", "missing_1", "missing_2"] if kind == "missing" else [kind]
    values = [statistics.fmean(row[f"{each}_{side}_{name}"] for each in kinds) for side in ("adata", "file")]
    return " / ".join(f"{value:.3f}" for value in values)


def line_of_table(row: Row) -> dict[str, str]:
    return {
        "query (AnnData / file)": f"{row['set']}, {row['held_out'].split('|')[0]} ({row['cells']:,})",
        "15 neighbours": both(row, "full", "accuracy"),
        "a fifth of the genes gone": both(row, "missing", "accuracy"),
        "labels transferred": both(row, "full", "transfer_accuracy"),
        "calibration error": both(row, "full", "calibration_error"),
        "transferred, a fifth gone": both(row, "missing", "transfer_accuracy"),
        "on the UMAP": f"{row['full_place_accuracy']:.3f}",
        "bytes per cell": f"{row['bytes_per_cell']:.0f}",
    }


def print_rows(part: str, rows: list[Row]) -> None:
    if part == "table":
        lines = [line_of_table(row) for row in rows]
    elif part == "tree":
        columns = {"named": "cells with a name", "wrong": "wrong among these", "single": "one label among these"}
        lines = [
            {"query": f"{row['set']}, {row['held_out'].split('|')[0]} ({row['cells']:,})"}
            | {title: f"{row[key]:.3f}" for key, title in columns.items()}
            for row in rows
        ]
    elif part == "place":
        sets: dict[str, list[Row]] = {}
        for row in rows:
            sets.setdefault(row["set"], []).append(row)
        shown = [name for name in rows[0] if name not in {"set", "seed", "cells"} and "seconds" not in name]
        lines = [
            {"set (times left out)": f"{name} ({len(mine)})"}
            | {key: f"{statistics.fmean(row[key] for row in mine):.3f}" for key in shown}
            for name, mine in sets.items()
        ]
    else:
        lines = [{name: f"{value:.3g}" for name, value in row.items()} for row in rows]
    print()
    print("| " + " | ".join(lines[0]) + " |")
    print("|" + "---|" * len(lines[0]))
    for line in lines:
        print("| " + " | ".join(line.values()) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="DATA.h5ad[=BATCH]")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for part in arguments.only:
        target = RESULTS / f"{part}.json"
        found = json.loads(target.read_text(encoding="utf-8"))["rows"] if target.exists() else []
        for row in () if arguments.table else rows_of(part, arguments):
            same = [{key: each.get(key) for key in NAMING} for each in found]
            mine = {key: row.get(key) for key in NAMING}
            found = [each for each, naming in zip(found, same, strict=True) if naming != mine] + [row]
            print(json.dumps(row), flush=True)
            record = {"machine": f"{os.cpu_count()} cores, {platform.machine()}", "rows": found}
            target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if found:
            print_rows(part, found)


NAMING = ("set", "held_out", "seed", "n_latent", "repeat")  # a row replaces an earlier one with the same values


if __name__ == "__main__":
    main()
