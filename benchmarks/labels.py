"""Names the cells of a batch whose labels are hidden: fits with labels, SCANVI, and methods without a model.

Usage: python benchmarks/labels.py DATA_FOLDER [--tasks ...] [--methods ...] [--sets ...] [--seeds 3]
       [--peer-python PYTHON] [--batches N] [--table]

Cells and genes are those of benchmarks/integration.py (seurat_v3, 2,000 genes of all cells); `--peer-python` is an
interpreter with scvi-tools and scanpy, which prepares them and runs SCANVI. Every method sees the counts of all cells
and the labels of all batches but one. Scored are the cells of that batch whose type has a label elsewhere.

methods
  scvae      scvae.fit(labels_key=) and tl.predict_labels
  scvae_light   the same with label_weight=1 in place of 10
  scvae_tree, scvae_without   as scvae, with the common label of two types (see merged and coarse) over both
             in label_hierarchy, or left out
  transfer   scvae.fit without labels and tl.transfer_labels
  scanvi     SCVI with its defaults (nb) for its default number of epochs, then SCANVI.from_scvi_model and 20 epochs
             with 100 labelled cells of each type in an epoch, as in its tutorial
  knn        15 neighbours in 30 principal components of log-normalised counts of all cells
  logistic   multinomial logistic regression (L2, C = 1) on log-normalised counts, scaled to unit variance
tasks
  all        all labels of the other batches
  few        10 labels of each type
  wrong10, wrong20   a random tenth or fifth of the labels replaced by another type
  merged     in half of the labelled batches, the two types that are confused most (named below) have one common label;
             a guess of the common label is right for both
  coarse     as merged, but all cells have a label, and the types have the common one in one batch (or in half of the
             batches, from this one on); scored are the cells that have it
  absent     for each of the first three types with 30 hidden cells: no cell of it has a label or is in a labelled
             batch; AUROC with which 1 - probability (ours: the outlier score) tells its cells from others

A row is written to benchmarks/results/labels/TASK__METHOD__SET__BATCH__SEED.json and not computed again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

warnings.filterwarnings("ignore")
RESULTS = Path(__file__).parent / "results" / "labels"
SETS = {
    "hao_rna500": ("CD4 T", "CD8 T"),
    "sc_mixology": ("H1975", "HCC827"),
    "baron_h1": ("activated_stellate", "quiescent_stellate"),
    "pancreas4": ("pancreatic A cell", "pancreatic PP cell"),
}
OF_DEPTH = ("scvae_tree", "scvae_without")  # methods for the tasks with a common label alone
METHODS = ("scvae", "scvae_light", "transfer", "scanvi", "knn", "logistic", *OF_DEPTH)
TASKS = ("all", "few", "wrong10", "wrong20", "merged", "coarse", "absent")
UNKNOWN_ABOVE = 0.7  # the default of predict_labels
FEWEST_ABSENT, MOST_ABSENT, FEW = 30, 3, 10
N_GENES, N_BINS = 2_000, 10


def prepare(source: Path, target: Path) -> None:
    """Cells and genes as in `integration.py`; runs in the interpreter of the peers."""
    import scanpy as sc
    import scipy.sparse as sp

    adata = ad.read_h5ad(source)
    adata.X = sp.csr_matrix(adata.X).astype(np.float32)
    if "in_all_batches" in adata.var:
        adata = adata[:, adata.var["in_all_batches"].astype(bool).to_numpy()].copy()
    sc.pp.filter_genes(adata, min_cells=3)
    sc.pp.filter_cells(adata, min_counts=10)
    if adata.n_vars > N_GENES:
        sc.pp.highly_variable_genes(adata, n_top_genes=N_GENES, flavor="seurat_v3", subset=True)
    sc.pp.filter_cells(adata, min_counts=5)
    obs = adata.obs[["cell_type", "batch"]].astype(str)
    ad.AnnData(adata.X, obs=obs, var=adata.var[[]].copy()).write_h5ad(target)


def labels_of(adata: ad.AnnData, held: str, task: str, merged: tuple[str, str], seed: int) -> np.ndarray:
    """The label of each cell that a method may see; None for the others."""
    rng = np.random.default_rng(seed)
    truth = adata.obs["cell_type"].to_numpy().astype(object)
    batch = adata.obs["batch"].to_numpy()
    if task == "coarse":
        from_this_one = np.unique(batch)
        from_this_one = np.roll(from_this_one, -np.flatnonzero(from_this_one == held)[0])
        coarse = np.isin(batch, from_this_one[: len(from_this_one) // 2]) & np.isin(truth, merged)
        return np.where(coarse, common(merged), truth)
    seen = np.where(batch != held, truth, None)
    places = np.flatnonzero(batch != held)
    if task == "few":
        chosen = [rng.permutation(places[truth[places] == name])[:FEW] for name in np.unique(truth[places])]
        seen[np.setdiff1d(places, np.concatenate(chosen))] = None
    elif task.startswith("wrong"):
        names = np.unique(truth[places])
        for place in rng.permutation(places)[: len(places) * int(task[5:]) // 100]:
            seen[place] = rng.choice(names[names != truth[place]])
    elif task == "merged":
        others = np.unique(batch[places])
        coarse = np.isin(batch, others[: max(1, len(others) // 2)]) & np.isin(truth, merged)
        seen[coarse & (batch != held)] = common(merged)
    return seen


def common(merged: tuple[str, str]) -> str:
    return " or ".join(merged)


def probabilities(
    method: str, adata: ad.AnnData, seen: np.ndarray, seed: int, merged: tuple[str, str]
) -> dict[str, Any]:
    """Label names, cells x labels probabilities, an outlier score of each cell, and seconds."""
    started = time.perf_counter()
    if method in {"scvae", "scvae_light", "transfer", *OF_DEPTH}:
        found = ours(method, adata, seen, seed, merged)
    elif method == "scanvi":
        found = scanvi(adata, seen, seed)
    else:
        found = without_model(method, adata, seen, seed)
    return {"seconds": time.perf_counter() - started} | found


def ours(method: str, adata: ad.AnnData, seen: np.ndarray, seed: int, merged: tuple[str, str]) -> dict[str, Any]:
    import scvae

    adata = adata.copy()
    adata.obs["seen"] = np.where(seen == common(merged), None, seen) if method == "scvae_without" else seen
    if method != "transfer":
        tree = {common(merged): list(merged)} if method == "scvae_tree" else None
        weight = {"label_weight": 1.0} if method == "scvae_light" else {}
        options = {"labels_key": "seen", "label_hierarchy": tree} | weight
        model = scvae.fit(adata, batch_key="batch", **options, rng=seed, verbose=False)
        fit_seconds = model.outcome.seconds
        scvae.tl.predict_labels(adata, model, unknown_above=1.0, probabilities=True)
        names = list(model.schema.labels.names)
        table = adata.obsm["scvae_label_probability"].to_numpy()
        learnt = adata.copy()
        scvae.tl.predict_labels(learnt, model, unknown_above=1.0, hierarchy="learnt", max_error=0.05)
        more = {"tree": learnt.obs["scvae_label"].astype(str).to_numpy(), "temperature": model.labels.temperature}
        more["look_random"] = model.labels.uniform  # share of the labels that the fit held out
    else:
        model = scvae.fit(adata, batch_key="batch", rng=seed, verbose=False)
        fit_seconds = model.outcome.seconds
        reference = adata[~adata.obs["seen"].isna()].copy()
        options = {"reference": reference, "labels_key": "seen", "unknown_above": 1.0}
        scvae.tl.transfer_labels(adata, model, **options)
        names = [name for name in adata.obs["scvae_label"].cat.categories if name != "unknown"]
        table = np.zeros((adata.n_obs, len(names)))
        code = adata.obs["scvae_label"].cat.codes.to_numpy()
        table[np.arange(adata.n_obs), code] = 1.0 - adata.obs["scvae_label_uncertainty"].to_numpy()
        more = {}
    return {
        "names": names,
        "probability": table,
        "outlier": adata.obs["scvae_outlier"].to_numpy(),
        "embedding": adata.obsm["X_scvae"],
        "fit_seconds": fit_seconds,
    } | more


def scanvi(adata: ad.AnnData, seen: np.ndarray, seed: int) -> dict[str, Any]:
    import logging

    import scvi
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for name in ("lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    scvi.settings.seed, scvi.settings.verbosity = seed, logging.ERROR
    adata = adata.copy()
    adata.obs["seen"] = np.where([name is None for name in seen], "Unknown", seen).astype(str)
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False, "enable_checkpointing": False}
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch", labels_key="seen")
    base = scvi.model.SCVI(adata, gene_likelihood="nb")
    base.train(**quiet)
    model = scvi.model.SCANVI.from_scvi_model(base, unlabeled_category="Unknown", labels_key="seen")
    try:
        model.train(max_epochs=20, n_samples_per_label=100, **quiet)
    except ValueError:  # its batch norm refuses a last batch of one cell
        model = scvi.model.SCANVI.from_scvi_model(base, unlabeled_category="Unknown", labels_key="seen")
        model.train(max_epochs=20, n_samples_per_label=100, datasplitter_kwargs={"drop_last": True}, **quiet)
    table = model.predict(adata, soft=True)
    return {
        "names": list(table.columns),
        "probability": table.to_numpy(),
        "outlier": 1.0 - table.to_numpy().max(1),
        "embedding": model.get_latent_representation(adata),
    }


def without_model(method: str, adata: ad.AnnData, seen: np.ndarray, seed: int) -> dict[str, Any]:
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler

    counts = adata.X.toarray()
    depth = counts.sum(1, keepdims=True)
    logs = np.log1p(counts * (np.median(depth) / np.maximum(depth, 1)))
    labelled = np.array([name is not None for name in seen])
    if method == "knn":
        space = PCA(30, random_state=seed).fit_transform(logs)
        model: Any = KNeighborsClassifier(15)
    else:
        space = StandardScaler().fit(logs[labelled]).transform(logs)
        model = LogisticRegression(C=1.0, max_iter=300)
    model.fit(space[labelled], seen[labelled].astype(str))
    table = model.predict_proba(space)
    return {"names": list(model.classes_), "probability": table, "outlier": 1.0 - table.max(1)}


def scores(found: dict[str, Any], truth: np.ndarray, judged: np.ndarray, merged: tuple[str, str]) -> dict[str, float]:
    """Accuracy, macro F1 and expected calibration error over the judged cells, and those of the tree."""
    from sklearn.metrics import f1_score

    names = np.asarray(found["names"], dtype=object)
    guess, sure = names[found["probability"].argmax(1)][judged], found["probability"].max(1)[judged]
    true = truth[judged].copy()
    is_merged = np.isin(true, merged)
    own, unknown = (guess == true)[is_merged], found["outlier"][judged][is_merged] > UNKNOWN_ABOVE
    both = (guess == common(merged)) & is_merged
    guess = np.where(both, true, guess)
    right = guess == true
    bins = np.minimum((sure * N_BINS).astype(int), N_BINS - 1)
    ece = sum(abs(sure[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in set(bins))
    row = {
        "accuracy": right.mean(),
        "macro_f1": f1_score(true, guess.astype(str), labels=np.unique(true), average="macro", zero_division=0),
        "ece": ece,
    }
    if is_merged.any():
        row |= {"own": own.mean(), "own_known": (own & ~unknown).mean(), "unknown": unknown.mean()}
    if "tree" in found:
        name = found["tree"][judged]
        named = name != "unknown"
        fits = np.array([label in given.split(" or ") for label, given in zip(true, name, strict=True)])
        row |= {
            "tree_named": named.mean(),
            "tree_error": 1.0 - fits[named].mean() if named.any() else 0.0,
            "tree_full_depth": (name == true)[named].sum() / len(name),
        }
    return {key: float(value) for key, value in row.items()}


def integration(found: dict[str, Any], truth: np.ndarray, seen: np.ndarray) -> dict[str, float]:
    """Accuracy of 15 neighbours in the embedding, left one out: of all cells, and of those whose label was hidden."""
    from sklearn.neighbors import NearestNeighbors

    hidden = np.array([name is None for name in seen])
    place = NearestNeighbors(n_neighbors=16).fit(found["embedding"]).kneighbors(return_distance=False)[:, :15]
    guess = np.array([statistics.mode(truth[row]) for row in place])
    right = guess == truth
    return {"knn_all": float(right.mean())} | ({"knn_hidden": float(right[hidden].mean())} if hidden.any() else {})


def rows_of(task: str, method: str, adata: ad.AnnData, held: str, merged: tuple[str, str], seed: int) -> dict[str, Any]:
    """The scores of a method on a task, with one batch held out."""
    truth, hidden = adata.obs["cell_type"].to_numpy().astype(object), (adata.obs["batch"] == held).to_numpy()
    if task == "absent":
        return {"auroc": list(aurocs(method, adata, held, seed))}
    seen = labels_of(adata, held, task, merged, seed)
    found = probabilities(method, adata, seen, seed, merged)
    judged = hidden & np.isin(truth, np.unique(truth[~hidden])) if task != "coarse" else seen == common(merged)
    row = {"seconds": found["seconds"], "fit_seconds": found.get("fit_seconds"), "n_judged": int(judged.sum())}
    row |= scores(found, truth, judged, merged)
    if "embedding" in found:
        row |= integration(found, truth, seen)
    return row | {name: found.get(name) for name in ("temperature", "look_random")}


def aurocs(method: str, adata: ad.AnnData, held: str, seed: int) -> Iterator[float]:
    """How well each type that the labelled batches lack is told from the others."""
    from sklearn.metrics import roc_auc_score

    hidden = (adata.obs["batch"] == held).to_numpy()
    truth = adata.obs["cell_type"].to_numpy().astype(object)
    names, sizes = np.unique(truth[hidden], return_counts=True)
    known = [name for name in names[sizes >= FEWEST_ABSENT] if (truth[~hidden] == name).any()]
    for name in known[:MOST_ABSENT]:
        some = adata[hidden | (truth != name)].copy()
        seen = labels_of(some, held, "all", ("", ""), seed)
        found = probabilities(method, some, seen, seed, ("", ""))
        mine = (some.obs["batch"] == held).to_numpy()
        yield float(roc_auc_score(some.obs["cell_type"].to_numpy()[mine] == name, found["outlier"][mine]))


def processor() -> str:
    """Its name, from Linux, or the machine's kind."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {os.environ.get('OMP_NUM_THREADS', 'all')} thread(s)" if names else platform.machine()


def short(name: str) -> str:
    return re.sub(r"\W+", "-", name).strip("-")


def run(words: argparse.Namespace, methods: list[str], name: str, folder: Path) -> None:
    """All rows of one set that this interpreter can compute."""
    adata = ad.read_h5ad(folder / f"{name}.h5ad")
    for seed in range(words.seeds):
        for held in sorted(adata.obs["batch"].unique())[: words.batches]:
            for task in words.tasks:
                for method in methods:
                    out = RESULTS / f"{task}__{method}__{name}__{short(held)}__{seed}.json"
                    if out.exists() or (method in OF_DEPTH and task not in {"merged", "coarse"}):
                        continue
                    row = rows_of(task, method, adata, held, SETS[name], seed)
                    about = {"task": task, "method": method, "set": name, "batch": held, "seed": seed}
                    about["processor"] = processor()
                    out.write_text(json.dumps(about | row, indent=1) + "\n")
                    shown = {key: round(value, 3) for key, value in row.items() if isinstance(value, float)}
                    print(out.stem, shown or row, flush=True)


def table() -> None:
    """Means over sets of the means over batches and seeds, for the rows that all methods shown have."""
    rows = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*__*.json"))]
    for row in rows:
        if "auroc" in row:
            row["auroc"] = statistics.fmean(row["auroc"]) if row["auroc"] else None
    for task in TASKS:
        of_task = [row for row in rows if row["task"] == task]
        names = ("auroc",) if task == "absent" else ("accuracy", "macro_f1", "ece", "knn_hidden", "seconds")
        names = (*names, "own", "own_known") if task in {"merged", "coarse"} else names
        sets = [name for name in SETS if any(row["set"] == name for row in of_task)]
        for score in names:
            print(f"\n| {task}: {score} | " + " | ".join(sets) + " | mean |\n|---" + "|---" * (len(sets) + 1) + "|")
            for method in METHODS:
                mine = [row for row in of_task if row["method"] == method and row.get(score) is not None]
                values = [[row[score] for row in mine if row["set"] == name] for name in sets]
                if not mine:
                    continue
                cells = [f"{statistics.fmean(v):.3f} ({len(v)})" if v else "" for v in values]
                mean = f"{statistics.fmean(map(statistics.fmean, values)):.3f}" if all(values) else ""
                print(f"| {method} | " + " | ".join(cells) + f" | {mean} |")
    named = [row for row in rows if "tree_error" in row]
    print("\n| tree at 5 % | named | at full depth | wrong among named |\n|---|---|---|---|")
    for task in TASKS:
        for name in SETS:
            mine = [row for row in named if row["task"] == task and row["set"] == name and row["method"] == "scvae"]
            if mine:
                means = [
                    statistics.fmean(row[key] for row in mine)
                    for key in ("tree_named", "tree_full_depth", "tree_error")
                ]
                print(f"| {task}, {name} ({len(mine)}) | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["all"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=99, help="held out in turn, of each set")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--prepared", type=Path, default=Path("labels_data"), help="folder for the prepared cells")
    parser.add_argument("--table", action="store_true", help="only print")
    parser.add_argument("--prepare", nargs=2, type=Path, help=argparse.SUPPRESS)
    words = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    words.prepared.mkdir(exist_ok=True)
    if words.prepare:
        prepare(*words.prepare)
        return
    for name in () if words.table else words.sets:
        ready = words.prepared / f"{name}.h5ad"
        again = [words.peer_python, __file__, str(words.data)]
        if not ready.exists():
            subprocess.run([*again, "--prepare", str(words.data / f"{name}.h5ad"), str(ready)], check=True)
        methods = list(words.methods)
        if "scanvi" in methods and words.peer_python != sys.executable:
            options = ["--sets", name, "--methods", "scanvi", "--tasks", *words.tasks, "--seeds", str(words.seeds)]
            more = ["--batches", str(words.batches), "--prepared", str(words.prepared)]
            subprocess.run([*again, *options, *more], check=True)
            methods.remove("scanvi")
        run(words, methods, name, words.prepared)
    table()


if __name__ == "__main__":
    main()
