"""Maps cells of a held-out batch onto a model of the other batches: with scvae, SCVI's surgery and PCA.

Usage: python benchmarks/map_query.py [DATA.h5ad=BATCH ...] [--only ours peers unknown] [--seeds 3]
       [--peer-python PYTHON] [--threads 1] [--table]

Each file holds raw counts in X, restricted to the genes to model, labels in obs["cell_type"] and batches in
obs["batch"]. BATCH is held out. (benchmarks/beta_path.py --prepare makes such files.) The label of a query cell is
predicted by its 15 nearest neighbours in the reference's latent space. Only cells whose type the reference has are
scored: once with all genes, and three times with the genes shuffled and a random fifth of them missing.

ours: scvae.fit on the reference and scvae.tl.map_query, with the accuracy of scvae.tl.transfer_labels and its expected
calibration error (ten bins). `frozen` uses the encoder of the fit without mapping. PCA is 30 principal components of
the log-normalised reference, onto which the query is projected.
peers: scvi-tools' SCVI (nb) and load_query_data, with the defaults and with the settings of the scArches tutorial, and
200 epochs without weight decay on the query. It runs in the interpreter named by --peer-python.
unknown: each type with at least 30 cells in the query is removed from the reference, one at a time. Measures how well
the outlier score separates its cells from the others (AUROC), and the shares of both that are called unknown.

Rows are written to benchmarks/results/map_query/PART.json. --table only prints the existing rows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "_map_query"))
from task import DRAWS, NAMELESS, Row, Task

RESULTS = Path(__file__).parent / "results" / "map_query"
N_COMPONENTS = 30
FEWEST_ABSENT = 30  # query cells of a type that is removed from the reference


def ours(path: Path, held_out: str, seed: int) -> Iterator[Row]:
    import scvae

    task = Task.read(path, held_out)
    reference = task.reference.copy()
    started = time.perf_counter()
    model = scvae.fit(reference, batch_key="batch", rng=seed, verbose=False)
    row = task.row(method="scvae", seed=seed, fit_seconds=time.perf_counter() - started)
    for kind, cells in task.queries.items():
        query = cells.copy()
        started = time.perf_counter()
        mapped = scvae.tl.map_query(query, model, verbose=False)
        row[f"{kind}_seconds"] = time.perf_counter() - started
        row[f"{kind}_accuracy"] = task.accuracy(reference.obsm["X_scvae"], query.obsm["X_scvae"])
        row |= {f"{kind}_{name}": value for name, value in transferred(query, mapped, reference).items()}
    yield row
    blind = task.queries["full"].copy()
    blind.obs["batch"] = reference.obs["batch"].iloc[0]  # the encoder does not see it
    scvae.tl.embed(blind, model)
    yield task.row(
        method="frozen", seed=seed, full_accuracy=task.accuracy(reference.obsm["X_scvae"], blind.obsm["X_scvae"])
    )
    if seed == 0:
        yield task.row(method="pca", seed=0, **pca(task))


def transferred(query: ad.AnnData, model: object, reference: ad.AnnData) -> Row:
    import scvae

    reference = reference[~reference.obs["cell_type"].isin(NAMELESS)].copy()
    scvae.tl.transfer_labels(query, model, reference=reference, labels_key="cell_type", unknown_above=1.0)
    known = query.obs["cell_type"].isin(reference.obs["cell_type"]).to_numpy()
    confidence = 1.0 - query.obs["scvae_label_uncertainty"].to_numpy()[known]
    right = (query.obs["scvae_label"].astype(str) == query.obs["cell_type"]).to_numpy()[known]
    bins = np.minimum((confidence * 10).astype(int), 9)
    gaps = [abs(confidence[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    return {"calibration_error": float(sum(gaps)), "transfer_accuracy": float(right.mean())}


def pca(task: Task) -> Row:
    def normalised(adata: ad.AnnData) -> np.ndarray:
        counts = np.asarray(adata.X.todense(), dtype=np.float64)
        return np.log1p(1e4 * counts / np.maximum(counts.sum(1, keepdims=True), 1.0))

    row = {}
    for kind, query in task.queries.items():
        reference = normalised(task.reference[:, query.var_names])
        centre = reference.mean(0)
        axes = np.linalg.svd(reference - centre, full_matrices=False)[2][:N_COMPONENTS].T
        latent = (reference - centre) @ axes
        row[f"{kind}_accuracy"] = task.accuracy(latent, (normalised(query) - centre) @ axes)
    return row


def unknown(path: Path, held_out: str, seed: int) -> Iterator[Row]:
    task = Task.read(path, held_out)
    labels = task.queries["full"].obs["cell_type"].value_counts()
    elsewhere = task.reference.obs["cell_type"].value_counts()
    for absent, n in labels.items():
        if absent not in NAMELESS and n >= FEWEST_ABSENT and absent in elsewhere.index:
            yield task.row(seed=seed, absent=absent, n_absent=int(n), **without(task, str(absent), seed))


def without(task: Task, absent: str, seed: int) -> Row:
    """Outlier scores and unknown calls for the cells of a type that is removed from the reference."""
    from sklearn.metrics import roc_auc_score

    import scvae

    reference = task.reference[task.reference.obs["cell_type"] != absent].copy()
    query = task.queries["full"].copy()
    model = scvae.fit(reference, batch_key="batch", rng=seed, verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # genes expressed only by the removed type are not modelled
        mapped = scvae.tl.map_query(query, model, verbose=False)
        scvae.tl.transfer_labels(query, mapped, reference=reference, labels_key="cell_type")
    is_absent = (query.obs["cell_type"] == absent).to_numpy()
    judged = is_absent | query.obs["cell_type"].isin(reference.obs["cell_type"]).to_numpy()
    called = (query.obs["scvae_label"] == "unknown").to_numpy()
    return {
        "auroc": float(roc_auc_score(is_absent[judged], query.obs["scvae_outlier"].to_numpy()[judged])),
        "unknown_of_absent": float(called[is_absent].mean()),
        "unknown_of_known": float(called[judged & ~is_absent].mean()),
    }


def peers(path: Path, held_out: str, seed: int, python: str, threads: int) -> Iterator[Row]:
    script = Path(__file__).parent / "_map_query" / "peer.py"
    for settings in ("default", "scarches"):
        command = [python, str(script), str(path), held_out, settings, str(seed), str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            hint = " Does it have scvi-tools? --peer-python names one that has."
            raise SystemExit(f"{' '.join(command)} failed.{hint}\n{done.stderr[-2000:]}")
        yield json.loads(done.stdout.splitlines()[-1])


def rows_of(part: str, arguments: argparse.Namespace) -> Iterator[Row]:
    for name in arguments.tasks:
        path, _, held_out = name.partition("=")
        for seed in range(arguments.seeds):
            if part == "peers":
                yield from peers(Path(path), held_out, seed, arguments.peer_python, arguments.threads)
            else:
                yield from (ours if part == "ours" else unknown)(Path(path), held_out, seed)


def mean(rows: list[Row], value: str) -> str:
    values = [row[value] for row in rows if value in row]
    return f"{statistics.fmean(values):.3f}" if values else ""


def draws(rows: list[Row], value: str) -> str:
    """The mean over the draws of missing genes and, in brackets, the mean over seeds for each draw."""
    by_draw = [[row[key] for row in rows if key in row] for key in (f"missing_{draw}_{value}" for draw in range(DRAWS))]
    means = [statistics.fmean(values) for values in by_draw if values]
    return f"{statistics.fmean(means):.3f} ({', '.join(f'{found:.3f}' for found in means)})" if means else ""


def print_tables(rows: list[Row]) -> None:
    tasks: dict[str, list[Row]] = {}
    for row in rows:
        tasks.setdefault(f"{row['set']}, {row['held_out'].split('|')[0]} ({row['cells']:,})", []).append(row)
    methods = [
        m for m in ("scvae", "frozen", "scvi_scarches", "scvi_default", "pca") if any(r["method"] == m for r in rows)
    ]
    print_header("query, all genes", methods)
    for task, mine in tasks.items():
        print_line(task, [mean(of(mine, method), "full_accuracy") for method in methods])
    methods = [method for method in methods if method != "frozen"]
    print_header("query, shuffled, a fifth of the genes gone: mean (by draw)", methods)
    for task, mine in tasks.items():
        print_line(task, [draws(of(mine, method), "accuracy") for method in methods])
    print_header(
        "query, labels transferred",
        ["all genes", "a fifth gone: mean (by draw)", "calibration error: all", "a fifth gone"],
    )
    for task, mine in tasks.items():
        ours = of(mine, "scvae")
        accuracy = [mean(ours, "full_transfer_accuracy"), draws(ours, "transfer_accuracy")]
        errors = [mean(ours, "full_calibration_error"), draws(ours, "calibration_error").split(" ")[0]]
        print_line(task, accuracy + errors)
    print_header("query, seconds", ["fit, map", "the same, SCVI (scArches)"])
    for task, mine in tasks.items():
        sides = (of(mine, method) for method in ("scvae", "scvi_scarches"))
        print_line(task, [f"{mean(side, 'fit_seconds')}, {mean(side, 'full_seconds')}" for side in sides])


def of(rows: list[Row], method: str) -> list[Row]:
    return [row for row in rows if row["method"] == method]


def print_header(first: str, columns: list[str]) -> None:
    print()
    print_line(first, columns)
    print_line("---", ["---"] * len(columns))


def print_line(first: str, values: list[str]) -> None:
    print(f"| {first} | " + " | ".join(values) + " |")


def print_unknown(rows: list[Row]) -> None:
    print(
        "\n| query | types taken out of the reference | AUROC by type | mean | called unknown: these / the others |"
        "\n|---|---|---|---|---|"
    )
    for task in dict.fromkeys((row["set"], row["held_out"]) for row in rows):
        mine = [row for row in rows if (row["set"], row["held_out"]) == task]
        types = list(dict.fromkeys(row["absent"] for row in mine))
        by_type = ", ".join(mean([row for row in mine if row["absent"] == name], "auroc") for name in types)
        print(f"| {task[0]}, {task[1].split('|')[0]} | {', '.join(types)} | {by_type} | {shares(mine)} |")
    print(f"| all | | | {shares(rows)} |")


def shares(rows: list[Row]) -> str:
    return f"{mean(rows, 'auroc')} | {mean(rows, 'unknown_of_absent')} / {mean(rows, 'unknown_of_known')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="DATA.h5ad=BATCH")
    parser.add_argument("--only", nargs="+", choices=("ours", "peers", "unknown"), default=("ours", "peers", "unknown"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for part in () if arguments.table else arguments.only:
        rows: list[Row] = []
        for row in rows_of(part, arguments):
            rows.append(row)
            print(json.dumps(row), flush=True)
            record = {"machine": f"{os.cpu_count()} cores, {platform.machine()}", "rows": rows}
            (RESULTS / f"{part}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    found = {
        part: json.loads((RESULTS / f"{part}.json").read_text(encoding="utf-8"))["rows"]
        for part in arguments.only
        if (RESULTS / f"{part}.json").exists()
    }
    if "ours" in found or "peers" in found:
        print_tables([*found.get("ours", []), *found.get("peers", [])])
    if "unknown" in found:
        print_unknown(found["unknown"])


if __name__ == "__main__":
    main()
