"""Maps 40 to 130 cells of another technology onto a reference, and compares their labels with those by projected PCA.

Usage: python benchmarks/small_queries.py [DATA_FOLDER] [--seeds 3] [--only REFERENCE ...] [--models FOLDER] [--table]

DATA_FOLDER (../shared/data) holds baron_h1, pancreas4, pbmc3k, pbmc_facs and zheng_sorted2k as h5ad with raw counts in
X and labels in obs["cell_type"]. Without it, the script says so and stops. The reference is fitted on its 2,000 most
variable genes, with its studies or libraries as batches. `--models` keeps the fits in a folder for later runs.

Each query is drawn at random from one study: 130 cells, 40 cells, 60 of its most common type, and 30 of each of its two
most common types; a new draw for each seed of the fit. `reads` are read counts as of Smart-seq2, made from the molecule
counts: each molecule is copied about 30 times, a gene's copies are proportional to its length (log-normal, sd 0.8), and
the number of copies varies between molecules (exponential), cells and genes.

The label of a cell is that of the majority of its 15 nearest reference cells: in the latent space after
scvae.tl.map_query, and among 30 principal components of the log-normalised reference onto which the query is projected.
`transfer` is the accuracy of scvae.tl.transfer_labels. Only cells whose type the reference has are scored.

Rows are written to benchmarks/results/small_queries.json. --table only prints the existing rows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp

RESULTS = Path(__file__).parent / "results" / "small_queries.json"
NEIGHBOURS, N_COMPONENTS = 15, 30
FEWEST = 20  # cells of a type for a query of this type only
COPIES, LENGTH_SD, CELL_SD, GENE_SD = 30.0, 0.8, 0.5, 0.5
METHODS = ("neighbours", "transfer", "pca")

Row = dict[str, Any]

ISLET_TYPES = {
    "alpha": "pancreatic A cell",
    "beta": "type B pancreatic cell",
    "delta": "pancreatic D cell",
    "gamma": "pancreatic PP cell",
    "acinar": "pancreatic acinar cell",
    "ductal": "pancreatic ductal cell",
    "endothelial": "endothelial cell",
    "activated_stellate": "pancreatic stellate cell",
    "quiescent_stellate": "pancreatic stellate cell",
}
BLOOD_TYPES = {
    "CD4 T cells": "CD4 T", "CD8 T cells": "CD8 T", "B cells": "B", "NK cells": "NK",
    "CD14+ Monocytes": "Mono", "FCGR3A+ Monocytes": "Mono",
    "CD19+ B": "B", "CD56+ NK": "NK", "CD14+ Monocyte": "Mono",
    "CD8+ Cytotoxic T": "CD8 T", "CD8+/CD45RA+ Naive Cytotoxic": "CD8 T",
    "CD4+ T Helper2": "CD4 T", "CD4+/CD45RO+ Memory": "CD4 T", "CD4+/CD25 T Reg": "CD4 T",
    "CD4+/CD45RA+/CD25- Naive T": "CD4 T",
    "nk": "NK", "bcells": "B", "monocytes": "Mono", "cytotoxict": "CD8 T", "naivecytotoxic": "CD8 T",
    "memoryt": "CD4 T", "regulatoryt": "CD4 T", "thelper": "CD4 T", "naivet": "CD4 T",
}  # fmt: skip
# reference: its studies, and what is mapped onto it
TASKS = {
    "islets 10x": (
        ("Fasolino", "Tritschler"),
        (("Muraro", "molecules"), ("Muraro", "reads"), ("Tosti", "molecules")),
    ),
    "islets, three studies": (("Fasolino", "Tritschler", "Tosti"), (("Muraro", "reads"),)),
    "islets inDrop": (("Baron",), (("Fasolino", "reads"),)),
    "blood": (("pbmc3k", "pbmc_facs"), (("zheng_sorted2k", "reads"),)),
}


def studies(folder: Path) -> dict[str, ad.AnnData]:
    """Counts, obs["cell_type"] in the names of pancreas4 or of blood, and obs["batch"] of every study."""

    def read(name: str) -> ad.AnnData:
        return ad.read_h5ad(folder / f"{name}.h5ad")

    def made(adata: ad.AnnData, names: Any, batch: Any, types: dict[str, str] | None = None) -> ad.AnnData:
        label = adata.obs["cell_type"].astype(str)
        label = label if types is None else label.map(types)
        obs = adata.obs[[]].assign(cell_type=label, batch=batch)
        whole = ad.AnnData(sp.csr_matrix(adata.X, dtype=np.float32), obs=obs)
        whole.var_names = np.asarray(names, dtype=str)
        whole.var_names_make_unique()
        return whole[whole.obs["cell_type"].notna()].copy()

    islets, baron = read("pancreas4"), read("baron_h1")
    found = {"Baron": made(baron, baron.var_names, "Baron " + baron.obs["batch"].astype(str).to_numpy(), ISLET_TYPES)}
    found["Baron"].obs_names_make_unique()
    for name in ("Fasolino", "Tritschler", "Tosti", "Muraro"):
        mine = islets[islets.obs["batch"].astype(str).str.startswith(name)]
        found[name] = made(mine, mine.var["feature_name"], name)
    for name in ("pbmc3k", "pbmc_facs", "zheng_sorted2k"):
        blood = read(name)
        found[name] = made(blood, blood.var.get("symbol", blood.var_names), name, BLOOD_TYPES)
    return found


def as_reads(adata: ad.AnnData) -> ad.AnnData:
    """The same cells with read counts in place of molecule counts."""
    rng = np.random.default_rng(0)
    length = rng.lognormal(0.0, LENGTH_SD, adata.n_vars)
    copies = rng.lognormal(np.log(COPIES), CELL_SD, adata.n_obs)
    reads = adata.X.tocoo()
    noise = rng.lognormal(0.0, GENE_SD, reads.nnz)
    reads.data = rng.poisson(rng.gamma(reads.data) * noise * copies[reads.row] * length[reads.col]).astype(np.float32)
    changed = adata.copy()
    changed.X = reads.tocsr()
    changed.X.eliminate_zeros()
    return changed


def draws(adata: ad.AnnData, seed: int) -> Iterator[tuple[str, ad.AnnData]]:
    """Small queries of one study, whose cells all have types that the reference has."""
    order = np.random.default_rng(seed).permutation(adata.n_obs)
    label = adata.obs["cell_type"].to_numpy()[order]
    common = adata.obs["cell_type"].value_counts()
    common = common[common >= FEWEST].index
    yield "130 cells", adata[order[:130]].copy()
    yield "40 cells", adata[order[:40]].copy()
    yield "one type", adata[order[label == common[0]][:60]].copy()
    if len(common) > 1:
        two = np.concatenate([order[label == name][:30] for name in common[:2]])
        yield "two types", adata[two].copy()


def scores(reference: ad.AnnData, model: Any, query: ad.AnnData, pca: Pca) -> Row:
    import scvae

    truth = query.obs["cell_type"].to_numpy()
    mapped = scvae.tl.map_query(query, model, verbose=False)
    scvae.tl.transfer_labels(query, mapped, reference=reference, labels_key="cell_type", unknown_above=1.0)
    known = reference.obs["cell_type"].to_numpy()
    by_neighbours = nearest(reference.obsm["X_scvae"], known, query.obsm["X_scvae"])
    return {
        "neighbours": float((by_neighbours == truth).mean()),
        "transfer": float((query.obs["scvae_label"].astype(str) == truth).mean()),
        "pca": float((pca.labels(query) == truth).mean()),
    }


class Pca:
    """Labels by neighbours among the principal components of a reference."""

    def __init__(self, reference: ad.AnnData, genes: list[str]) -> None:
        self.genes, self.label = genes, reference.obs["cell_type"].to_numpy()
        values = normalised(reference[:, genes])
        self.centre = values.mean(0)
        self.axes = np.linalg.eigh(np.cov(values, rowvar=False))[1][:, -N_COMPONENTS:]
        self.latent = (values - self.centre) @ self.axes

    def labels(self, query: ad.AnnData) -> np.ndarray:
        return nearest(self.latent, self.label, (normalised(query[:, self.genes]) - self.centre) @ self.axes)


def normalised(adata: ad.AnnData) -> np.ndarray:
    counts = np.asarray(adata.X.todense(), dtype=np.float64)
    return np.log1p(1e4 * counts / np.maximum(counts.sum(1, keepdims=True), 1.0))


def nearest(reference: np.ndarray, label: np.ndarray, query: np.ndarray) -> np.ndarray:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(NEIGHBOURS).fit(reference, label).predict(query)


def fitted(reference: ad.AnnData, seed: int, kept: Path | None) -> Any:
    import scvae

    if kept is not None and kept.exists():
        model = scvae.load(kept)
        scvae.tl.embed(reference, model)
        return model
    scvae.tl.highly_variable_genes(reference, batch_key="batch")
    model = scvae.fit(reference, batch_key="batch", rng=seed, verbose=False)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        model.save(kept)
    return model


def rows(folder: Path, only: list[str], seeds: int, models: Path | None) -> Iterator[Row]:
    found = studies(folder)
    for seed in range(seeds):
        for task in only:
            parts, queries = TASKS[task]
            reference = ad.concat([found[name] for name in parts], join="inner", index_unique="-")
            model = fitted(reference, seed, models and models / f"{task.replace(' ', '_')}_{seed}.scvae")
            for name, kind in queries:
                whole = found[name][found[name].obs["cell_type"].isin(reference.obs["cell_type"])].copy()
                pca = Pca(reference, [gene for gene in model.genes if gene in whole.var_names])
                for draw, query in draws(as_reads(whole) if kind == "reads" else whole, seed):
                    row = {"reference": task, "query": f"{name}, {kind}", "draw": draw, "seed": seed}
                    yield row | {"cells": query.n_obs} | scores(reference, model, query, pca)


def print_table(rows: list[Row]) -> None:
    """Means over draws and seeds."""
    print("\n| reference | query | 15 neighbours | labels transferred | pca |\n|---|---|---|---|---|")
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["reference"], row["query"]), []).append(row)
    for names, mine in [*groups.items(), (("all", ""), rows)]:
        means = [f"{statistics.fmean(row[method] for row in mine):.3f}" for method in METHODS]
        print(f"| {' | '.join((*names, *means))} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS), metavar="REFERENCE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--models", type=Path, metavar="FOLDER")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if not arguments.table:
        if not arguments.folder.is_dir():
            raise SystemExit(f"skipped: there is no folder {arguments.folder} with the data sets")
        warnings.simplefilter("ignore")  # genes that a study lacks
        found: list[Row] = []
        for row in rows(arguments.folder, arguments.only, arguments.seeds, arguments.models):
            found.append(row)
            print(json.dumps(row), flush=True)
            record = {"machine": f"{os.cpu_count()} cores, {platform.machine()}", "rows": found}
            RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print_table(json.loads(RESULTS.read_text(encoding="utf-8"))["rows"])


if __name__ == "__main__":
    main()
