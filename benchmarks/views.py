"""Two measurements of one cell in one embedding, and one predicted from the other: fits of both, TOTALVI, and others.

Usage: python benchmarks/views.py DATA_FOLDER [--tasks ...] [--methods ...] [--seeds 3] [--peer-python PYTHON] [--table]

The folder has hao_rna500.h5ad and hao_adt224.h5ad: 500 genes and 224 proteins of PBMC, of which 800 cells of two donors
have both, 400 of a third donor RNA alone and 400 of a fourth proteins alone. The tasks heads and held_out also use
citefuse500.h5ad there: 500 cells with 49 proteins, and the 1,000 of its 19,521 genes that vary most. `--peer-python` is
an interpreter with scvi-tools, whose TOTALVI runs as it comes, and muon.

tasks
  both      the 800 cells with both: 15 neighbours, ARI and NMI (best over a grid of Leiden resolutions) of the
            embedding against the cell types, and how many of 15 neighbours are of the other donor, relative to chance
  unstained 1,200 cells of three donors, of which one has no proteins: the same
  mosaic    all 1,600 cells, of which 800 lack one measurement: the same
  predict   the proteins (CLR) of each of the two donors, hidden, from its RNA, the other donor being known: correlation
            over cells (median over proteins), and how many values lie in the central 90 % interval
  held_out  the same of the proteins of a random fifth of the cells of citefuse500
  heads     log-likelihood of RNA and proteins together on a held-out fifth of the cells (nats per cell), the proteins
            with each head: that of NB, and how much more that of the others is (Gaussian: of CLR values, but judged by
            the probability of the counts); the methods are the data
  simulated RNA and accessibility (Bernoulli) drawn from known z: mean canonical correlation with z
  seconds   seconds of training (`outcome.seconds`) on the 800 cells, after a first fit that loads the kernels, and
            seconds of the processor in the whole call
methods
  nb, clr   scvae.fit(protein_key=), with NB counts or Gaussian CLR values
  rna, adt  scvae.fit of one of them alone (adt: CLR values; adt_nb: counts)
  pca       30 principal components of log-normalised RNA beside CLR proteins, each of unit total variance (proteins of
            cells without any are at their mean)
  wnn       muon's weighted nearest neighbours of 30 principal components of each (Hao et al. 2021)
  ridge     ridge regression on log-normalised RNA (for the task predict), with normal intervals of its residuals
  totalvi   TOTALVI with its defaults, batch_key the donor (no intervals: it draws proteins in the cell's batch only)

A row is written to benchmarks/results/views/TASK__METHOD__SEED.json and not computed again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

warnings.filterwarnings("ignore")
RESULTS = Path(__file__).parent / "results" / "views"
TASKS = {
    "both": ("nb", "clr", "rna", "adt", "pca", "wnn", "totalvi"),
    "unstained": ("nb", "clr", "rna", "pca", "totalvi"),
    "mosaic": ("nb", "clr"),
    "predict": ("nb", "clr", "ridge", "totalvi"),
    "held_out": ("nb", "clr", "ridge"),
    "heads": ("hao", "citefuse"),
    "simulated": ("both", "rna", "atac"),
    "seconds": ("nb", "clr", "rna", "adt", "adt_nb"),
}
PEERS = ("totalvi", "wnn")
RESOLUTIONS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.4)
NEIGHBOURS = 15


def cells_of(folder: Path, task: str) -> ad.AnnData:
    """RNA counts with obsm["adt"] and obsm["clr"]; NaN, or zeros in X, where a cell lacks one."""
    rna, adt = (ad.read_h5ad(folder / f"{name}.h5ad") for name in ("hao_rna500", "hao_adt224"))
    both = rna.obs_names.intersection(adt.obs_names)
    names = {"mosaic": rna.obs_names.union(adt.obs_names), "unstained": rna.obs_names}.get(task, both)
    obs = pd.concat([rna.obs, adt.obs.loc[adt.obs_names.difference(rna.obs_names)]]).loc[names].astype(str)
    counts = rna.to_df().reindex(names).fillna(0.0).astype(np.float32)
    cells = ad.AnnData(counts, obs=obs)
    cells.obsm["adt"] = adt.to_df().reindex(names).astype(np.float32)
    cells.obsm["clr"] = clr(cells.obsm["adt"])
    return cells


def citefuse(folder: Path) -> ad.AnnData:
    """The cells of citefuse500, with slots as those of `cells_of`."""
    import scvae

    whole = ad.read_h5ad(folder / "citefuse500.h5ad")
    scvae.tl.highly_variable_genes(whole, n_top_genes=1_000)
    some = whole[:, whole.var["highly_variable"]]
    cells = ad.AnnData(some.to_df().astype(np.float32))
    cells.obsm["adt"] = whole.obsm["adt"].astype(np.float32)
    cells.obsm["clr"] = clr(cells.obsm["adt"])
    return cells


def clr(counts: pd.DataFrame) -> pd.DataFrame:
    """Log counts centred in each cell."""
    logs = np.log1p(counts)
    return logs.sub(logs.mean(1), axis=0)


def log_normalised(counts: np.ndarray) -> np.ndarray:
    depth = counts.sum(1, keepdims=True)
    return np.log1p(counts * (np.median(depth) / np.maximum(depth, 1)))


def fitted(method: str, cells: ad.AnnData, seed: int, *, key: str = "batch") -> Any:
    """A fit of scvae, whose embedding is in `cells`."""
    import scvae

    options: dict[str, Any] = {"batch_key": key if key in cells.obs else None, "rng": seed, "verbose": False}
    if method in ("nb", "clr"):
        likelihood = {"nb": "nb", "clr": "gaussian"}[method]
        slot = {"nb": "adt", "clr": "clr"}[method]
        return scvae.fit(cells, protein_key=slot, protein_likelihood=likelihood, **options)
    if method == "rna":
        return scvae.fit(cells, **options)
    slot, likelihood = ("adt", "nb") if method == "adt_nb" else ("clr", "gaussian")
    proteins = ad.AnnData(cells.obsm[slot], obs=cells.obs)
    model = scvae.fit(proteins, likelihood=likelihood, **options)
    cells.obsm["X_scvae"] = proteins.obsm["X_scvae"]
    return model


def embedding(method: str, cells: ad.AnnData, seed: int) -> np.ndarray:
    if method == "pca":
        from sklearn.decomposition import PCA

        tables = (log_normalised(cells.X), cells.obsm["clr"].fillna(cells.obsm["clr"].mean()).to_numpy())
        parts = [(values - values.mean(0)) / np.sqrt(values.var(0).sum()) for values in tables]
        return PCA(30, random_state=seed).fit_transform(np.hstack(parts))
    if method == "totalvi":
        return totalvi(cells, seed).get_latent_representation()
    fitted(method, cells, seed)
    return cells.obsm["X_scvae"]


def totalvi(cells: ad.AnnData, seed: int) -> Any:
    """TOTALVI with its defaults; a batch whose proteins are all 0 has none, to it."""
    import logging

    import scvi
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for name in ("lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    scvi.settings.seed, scvi.settings.verbosity = seed, logging.ERROR
    cells.obsm["counts"] = cells.obsm["adt"].fillna(0.0)
    scvi.model.TOTALVI.setup_anndata(cells, batch_key="batch", protein_expression_obsm_key="counts")
    model = scvi.model.TOTALVI(cells)
    model.train(accelerator="cpu", enable_progress_bar=False)
    return model


def wnn(cells: ad.AnnData, seed: int) -> tuple[np.ndarray, ad.AnnData]:
    """Neighbours of each cell, and an AnnData with the graph."""
    import muon
    import scanpy as sc

    parts = {"rna": log_normalised(cells.X), "adt": cells.obsm["clr"].to_numpy()}
    mdata = muon.MuData({name: ad.AnnData(values, cells.obs[[]]) for name, values in parts.items()})
    for part in mdata.mod.values():
        sc.pp.pca(part, n_comps=30, random_state=seed)
        sc.pp.neighbors(part, n_neighbors=NEIGHBOURS, use_rep="X_pca", random_state=seed)
    muon.pp.neighbors(mdata, n_neighbors=NEIGHBOURS, key_added="wnn", random_state=seed)
    far = mdata.obsp["wnn_distances"].toarray()
    place = np.argsort(np.where(far > 0, far, np.inf), axis=1)[:, :NEIGHBOURS]
    graph = ad.AnnData(
        np.zeros((cells.n_obs, 1), np.float32), obsp={"connectivities": mdata.obsp["wnn_connectivities"]}
    )
    graph.uns["neighbors"] = {"connectivities_key": "connectivities", "params": {"method": "umap"}}
    return place, graph


def neighbours(latent: np.ndarray) -> tuple[np.ndarray, ad.AnnData]:
    """The same in an embedding."""
    import scanpy as sc
    from sklearn.neighbors import NearestNeighbors

    place = NearestNeighbors(n_neighbors=NEIGHBOURS + 1).fit(latent).kneighbors(return_distance=False)[:, 1:]
    graph = ad.AnnData(np.zeros((len(latent), 1), np.float32), obsm={"z": latent})
    sc.pp.neighbors(graph, n_neighbors=NEIGHBOURS, use_rep="z")
    return place, graph


def scores(place: np.ndarray, graph: ad.AnnData, cells: ad.AnnData) -> dict[str, float]:
    import scanpy as sc
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    truth, batch = (cells.obs[name].to_numpy() for name in ("cell_type", "batch"))
    guess = [pd.Series(truth[row]).mode()[0] for row in place]
    shares = pd.Series(batch).value_counts(normalize=True)
    chance = 1.0 - shares[batch].to_numpy()
    clusters = []
    for resolution in RESOLUTIONS:
        sc.tl.leiden(graph, resolution=resolution, flavor="igraph", n_iterations=2, random_state=0)
        clusters.append(graph.obs["leiden"].to_numpy())
    return {
        "knn": float(np.mean(truth == np.array(guess))),
        "ari": max(adjusted_rand_score(truth, found) for found in clusters),
        "nmi": max(normalized_mutual_info_score(truth, found) for found in clusters),
        "mixed": float(np.mean((batch[place] != batch[:, None]).mean(1) / chance)),
    }


def predicted(
    method: str, cells: ad.AnnData, hidden: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """CLR proteins of the hidden cells from RNA, and the ends of their 90 % intervals."""
    known = cells.copy()
    for name in ("adt", "clr"):
        known.obsm[name] = known.obsm[name].mask(pd.Series(hidden, known.obs_names), axis=0)
    if method == "ridge":
        from sklearn.linear_model import RidgeCV
        from sklearn.preprocessing import StandardScaler

        x = log_normalised(cells.X)
        x = StandardScaler().fit(x[~hidden]).transform(x)
        y = cells.obsm["clr"].to_numpy()
        rest = np.random.default_rng(seed).permutation(np.flatnonzero(~hidden))
        aside, train = rest[:80], rest[80:]
        ridge = RidgeCV(np.logspace(0, 5, 11)).fit(x[train], y[train])
        spread = 1.645 * (y[aside] - ridge.predict(x[aside])).std(0)
        mean = ridge.predict(x[hidden])
        return mean, mean - spread, mean + spread
    if method == "totalvi":
        model = totalvi(known, seed)
        others = list(known.obs["batch"][~hidden].unique())
        some = np.flatnonzero(hidden)
        _, mean = model.get_normalized_expression(
            indices=some, n_samples=25, return_mean=True, transform_batch=others, include_protein_background=True
        )
        values = clr(mean).to_numpy()
        return values, np.full_like(values, np.nan), np.full_like(values, np.nan)
    import scvae

    model = fitted(method, known, seed)
    scvae.tl.impute(known, model, view="protein", interval=0.9)
    table, lower, upper = (known.obsm[f"scvae_protein{end}"][hidden] for end in ("", "_lower", "_upper"))
    if method == "clr":
        return table.to_numpy(), lower.to_numpy(), upper.to_numpy()
    return clr(table).to_numpy(), lower.to_numpy(), upper.to_numpy()


def hidden_sets(cells: ad.AnnData, seed: int) -> list[np.ndarray]:
    """The cells of each donor, or a random fifth."""
    if "batch" in cells.obs:
        return [(cells.obs["batch"] == held).to_numpy() for held in sorted(cells.obs["batch"].unique())]
    return [np.random.default_rng(seed).permutation(cells.n_obs) < cells.n_obs // 5]


def prediction(method: str, cells: ad.AnnData, seed: int) -> dict[str, float]:
    correlations, inside = [], []
    for hidden in hidden_sets(cells, seed):
        mean, lower, upper = predicted(method, cells, hidden, seed)
        truth = cells.obsm["clr"][hidden].to_numpy()
        correlations.append(np.nanmedian([np.corrcoef(truth[:, p], mean[:, p])[0, 1] for p in range(truth.shape[1])]))
        values = cells.obsm["adt"][hidden].to_numpy() if method == "nb" else truth
        inside.append(((lower <= values) & (values <= upper)).mean() if np.isfinite(lower).all() else np.nan)
    return {"correlation": float(np.mean(correlations)), "inside_90": float(np.mean(inside))}


def heads(cells: ad.AnnData, seed: int) -> dict[str, float]:
    import scvae

    key = "batch" if "batch" in cells.obs else None
    training = scvae.TrainingConfig(validation_fraction=0.2)
    model = scvae.fit(cells, protein_key="adt", batch_key=key, training=training, rng=seed, verbose=False)
    found = scvae.tl.diagnose(cells, model, n_cells=100, compare_heads=True, verbose=False)
    of = {fit.likelihood: fit.log_likelihood for fit in found.heads if fit.view == "protein"}
    return {"nb": of["nb"]} | {name: of[name] - of["nb"] for name in ("nb_mixture", "gaussian", "poisson")}


def simulated(seed: int) -> ad.AnnData:
    """2,000 cells with 300 genes and 500 peaks, both functions of the same z, of which each sees half of the dimensions
    well and the other half hardly."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((2_000, 6))
    strong, weak = np.repeat([0.5, 0.1], 3), np.repeat([0.1, 0.5], 3)
    rates = z @ (strong[:, None] * rng.standard_normal((6, 300))) + rng.normal(0, 1, 300)
    share = np.exp(rates) / np.exp(rates).sum(1, keepdims=True)
    depth = rng.lognormal(6.0, 0.3, (2_000, 1))
    counts = rng.poisson(rng.gamma(3.0, share * depth / 3.0))
    logits = z @ (weak[:, None] * rng.standard_normal((6, 500))) - 2.0
    peaks = rng.random(logits.shape) < 1 / (1 + np.exp(-logits))
    cells = ad.AnnData(counts.astype(np.float32), obsm={"z": z, "peaks": peaks.astype(np.float32)})
    cells.obsm["peaks"] = pd.DataFrame(cells.obsm["peaks"], cells.obs_names, [f"peak_{i}" for i in range(500)])
    return cells


def recovery(method: str, seed: int) -> dict[str, float]:
    from sklearn.cross_decomposition import CCA

    import scvae

    cells = simulated(seed)
    options: dict[str, Any] = {"rng": seed, "verbose": False, "n_latent": 10}
    if method == "both":
        scvae.fit(cells, also={"atac": scvae.View(obsm="peaks", likelihood="bernoulli")}, **options)
    elif method == "rna":
        scvae.fit(cells, **options)
    else:
        peaks = ad.AnnData(cells.obsm["peaks"])
        scvae.fit(peaks, likelihood="bernoulli", **options)
        cells.obsm["X_scvae"] = peaks.obsm["X_scvae"]
    ours, true = CCA(6, max_iter=2_000).fit_transform(cells.obsm["X_scvae"], cells.obsm["z"])
    return {"canonical": float(np.mean([np.corrcoef(ours[:, i], true[:, i])[0, 1] for i in range(6)]))}


def row_of(task: str, method: str, folder: Path, seed: int) -> dict[str, float]:
    started = time.perf_counter()
    if task == "simulated":
        found = recovery(method, seed)
        return found | {"seconds": time.perf_counter() - started}
    of_citefuse = task == "held_out" or method == "citefuse"
    cells = citefuse(folder) if of_citefuse else cells_of(folder, task)
    if task == "heads":
        return heads(cells, seed) | {"seconds": time.perf_counter() - started}
    if task == "seconds":
        fitted(method, cells[:100].copy(), seed)
        started = time.process_time()
        outcome = fitted(method, cells, seed).outcome
        processor = time.process_time() - started
        return {"seconds": outcome.seconds, "processor": processor, "epochs": float(outcome.epochs)}
    if task in ("predict", "held_out"):
        return prediction(method, cells, seed) | {"seconds": time.perf_counter() - started}
    started = time.perf_counter()
    found = wnn(cells, seed) if method == "wnn" else neighbours(embedding(method, cells, seed))
    return {"seconds": time.perf_counter() - started} | scores(*found, cells)


def run(words: argparse.Namespace) -> None:
    for task in words.tasks:
        for seed in range(words.seeds):
            for method in TASKS[task]:
                out = RESULTS / f"{task}__{method}__{seed}.json"
                if out.exists() or method not in (words.methods or TASKS[task]):
                    continue
                found = row_of(task, method, words.data, seed)
                known = {name: None if np.isnan(value) else value for name, value in found.items()}
                row = {"task": task, "method": method, "seed": seed} | known
                out.write_text(json.dumps(row, indent=1) + "\n")
                shown = {key: round(value, 3) for key, value in row.items() if isinstance(value, float)}
                print(out.stem, shown, flush=True)


def table() -> None:
    rows = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    for task, methods in TASKS.items():
        mine = [row for row in rows if row["task"] == task]
        names = [key for key in (mine[0] if mine else {}) if key not in ("task", "method", "seed")]
        print(f"\n| {task} | " + " | ".join(names) + " |\n|---" + "|---" * len(names) + "|")
        for method in methods:
            of_method = [row for row in mine if row["method"] == method]
            values = [[row[name] for row in of_method if row[name] is not None] for name in names]
            if of_method:
                means = [f"{np.mean(some):.3f}" if some else "" for some in values]
                print(f"| {method} ({len(of_method)}) | " + " | ".join(means) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--table", action="store_true", help="only print")
    words = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    if not words.table:
        every = sorted({name for names in TASKS.values() for name in names})
        peers = [name for name in words.methods or every if name in PEERS]
        if words.peer_python != sys.executable and peers:
            options = ["--tasks", *words.tasks, "--methods", *peers, "--seeds", str(words.seeds)]
            subprocess.run([words.peer_python, __file__, str(words.data), *options], check=True)
            words.methods = [name for name in words.methods or every if name not in PEERS]
        run(words)
    table()


if __name__ == "__main__":
    main()
