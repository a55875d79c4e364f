"""False discoveries and power of scvae.tl.rank_genes, Wilcoxon and t tests and SCVI; null splits; run time.

Usage: python benchmarks/rank_genes.py [NULL.h5ad ...] [--only truth null time] [--seeds 3] [--peer-python PYTHON]
       [--table]

truth: cells of groups A, B and C are drawn from negative binomials with two programs within each group. A tenth of the
1,000 genes differ between A and B. SCENARIOS lists the scenarios. Measures the share of false discoveries and the power
at a false discovery rate of 0.05 and 0.1, and the power of the longest list whose true share of false discoveries is at
most 0.05, which depends on the ranking alone. Wilcoxon (with correction for ties) and t tests (overestimated variance)
are scanpy's on log-normalised counts, with Benjamini-Hochberg correction. If --peer-python names an interpreter with
scvi-tools, SCVI is measured as well (differential_expression, mode "change", is_de_fdr), on the scenarios in
PEER_SCENARIOS and the first seed.
null: on each file given (raw counts in X, labels in obs["cell_type"]), the cells of each label with at least 100 cells
are split in two at random, ten times. Counts the genes called at 0.05 and 0.1, and the splits in which any gene is.
time: seconds of rank_genes on 16,000 cells x 2,000 genes with two groups, without the fit.

Rows are written to benchmarks/results/rank_genes/PART.json. --table only prints the existing rows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

RESULTS = Path(__file__).parent / "results" / "rank_genes"
LEVELS = (0.05, 0.1)
SPLITS, LEAST_CELLS = 10, 100
REPEATS = 3
N_GENES, N_OTHER, LIBRARY, LIBRARY_SD = 1_000, 100, 1_500.0, 0.4
# cells and mean library sizes of A and B, share of genes that change, range of the changes, share of them that rise,
# share of the cells of A and of B in the second of two batches
SCENARIOS: dict[str, dict[str, Any]] = {
    "balanced": {},
    "depth 1 to 3": {"library": (750.0, 2_250.0)},
    "40 against 360": {"cells": (40, 360)},
    "20 against 300": {"cells": (20, 300)},
    "9 of 10 rise": {"rising": 0.9},
    "weak changes": {"fold": (1.2, 2.0), "cells": (300, 300)},
    "batch confounded": {"batches": (0.8, 0.2)},
    "4 types": {"types": 4},
    "4 types, batch confounded": {"types": 4, "batches": (0.8, 0.2)},
    "null": {"changed": 0.0},
    "null, depth 1 to 3": {"changed": 0.0, "library": (750.0, 2_250.0)},
    "null, batch confounded": {"changed": 0.0, "batches": (0.8, 0.2)},
    "null, 4 types": {"changed": 0.0, "types": 4},
}
PEER_SCENARIOS = ("balanced", "null")
PEER = """
import sys, anndata as ad, scvi, torch, numpy as np
torch.set_num_threads(1); scvi.settings.seed = 0
adata = ad.read_h5ad(sys.argv[1])
scvi.model.SCVI.setup_anndata(adata, batch_key="batch" if adata.obs["batch"].nunique() > 1 else None)
model = scvi.model.SCVI(adata, gene_likelihood="nb"); model.train(accelerator="cpu", enable_progress_bar=False)
for level in (0.05, 0.1):
    table = model.differential_expression(groupby="group", group1="A", group2="B", mode="change", fdr_target=level,
        silent=True)
    table.loc[adata.var_names, ["proba_not_de", "is_de_fdr_%s" % level]].set_axis(["probability", "called"], axis=1
        ).to_csv(sys.argv[2] + "_%s.csv" % level)
"""

Row = dict[str, Any]


def simulate(
    seed: int,
    *,
    cells: tuple[int, int] = (150, 150),
    library: tuple[float, float] = (LIBRARY, LIBRARY),
    changed: float = 0.1,
    fold: tuple[float, float] = (1.5, 4.0),
    rising: float = 0.5,
    batches: tuple[float, float] | None = None,
    types: int = 1,
) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    base, programs = rng.normal(0, 1.5, N_GENES), rng.normal(0, 0.3, (2, N_GENES))
    de = rng.random(N_GENES) < changed
    change = np.where(de, np.where(rng.random(N_GENES) < rising, 1, -1) * np.log(rng.uniform(*fold, N_GENES)), 0.0)
    elsewhere = rng.normal(0, 1.0, N_GENES) * (rng.random(N_GENES) < 0.3)
    theta = 2.0 * np.exp(0.6 * rng.normal(size=N_GENES))
    group = np.repeat([0, 1, 2], [*cells, N_OTHER])
    shares = (*batches, 0.5) if batches else (0.0, 0.0, 0.0)
    batch = (rng.random(len(group)) < np.array(shares)[group]).astype(int)
    log_rate = base + rng.normal(size=(len(group), 2)) @ programs + (group == 0)[:, None] * change
    log_rate += (group == 2)[:, None] * elsewhere + batch[:, None] * rng.normal(0, 0.4, N_GENES)
    if types > 1:  # each type has the same share in every group, up to chance
        markers = rng.normal(0, 1.0, (types, N_GENES)) * (rng.random((types, N_GENES)) < 0.3)
        log_rate += markers[rng.integers(types, size=len(group))]
    proportion = np.exp(log_rate)
    proportion /= proportion.sum(1, keepdims=True)
    depth = np.array([*library, LIBRARY])[group] * np.exp(LIBRARY_SD * rng.normal(size=len(group)) - LIBRARY_SD**2 / 2)
    mean = proportion * depth[:, None]
    counts = rng.poisson(mean * rng.gamma(theta, 1.0 / theta, mean.shape)).astype(np.float32)
    return ad.AnnData(
        sparse.csr_matrix(counts),
        obs=pd.DataFrame(
            {
                "group": pd.Categorical(np.array(["A", "B", "C"])[group]),
                "batch": pd.Categorical(np.array(["first", "second"])[batch]),
            },
            index=[f"cell_{i}" for i in range(len(group))],
        ),
        var=pd.DataFrame({"changed": de}, index=[f"gene_{g}" for g in range(N_GENES)]),
    )


def scanpy_test(adata: ad.AnnData, groupby: str, group: str, reference: str, method: str) -> pd.Series:
    import scanpy as sc

    pair = adata[adata.obs[groupby].isin([group, reference])].copy()
    sc.pp.normalize_total(pair, target_sum=1e4)
    sc.pp.log1p(pair)
    options = {"tie_correct": True} if method == "wilcoxon" else {}
    sc.tl.rank_genes_groups(pair, groupby, groups=[group], reference=reference, method=method, **options)
    table = sc.get.rank_genes_groups_df(pair, group).set_index("names")
    return table["pvals_adj"].reindex(adata.var_names).fillna(1.0)


def ours(adata: ad.AnnData, model: Any, groupby: str, group: str, reference: str) -> pd.Series:
    import scanpy as sc

    import scvae

    scvae.tl.rank_genes(adata, model, groupby=groupby, groups=[group], reference=reference)
    table = sc.get.rank_genes_groups_df(adata, group).set_index("names")
    return table["pvals_adj"].reindex(adata.var_names).fillna(1.0)


def score(called: dict[float, np.ndarray], order: np.ndarray, changed: np.ndarray) -> Row:
    row: Row = {}
    for level, calls in called.items():
        row[f"called_{level}"] = int(calls.sum())
        row[f"false_{level}"] = float((calls & ~changed).sum() / max(calls.sum(), 1))
        row[f"power_{level}"] = float((calls & changed).sum() / max(changed.sum(), 1))
    false = np.cumsum(~changed[order]) / np.arange(1, len(order) + 1)
    longest = np.flatnonzero(false <= LEVELS[0])
    row["power_at_true_0.05"] = float(changed[order][: longest[-1] + 1].sum() / changed.sum()) if len(longest) else 0.0
    return row


def truth(_files: list[Path], seeds: int, peer: str | None) -> Iterator[Row]:
    import scvae

    for scenario, options in SCENARIOS.items():
        for seed in range(seeds):
            adata = simulate(seed, **options)
            changed = adata.var["changed"].to_numpy()
            batch_key = "batch" if "batches" in options else None
            model = scvae.fit(adata, batch_key=batch_key, rng=seed, verbose=False)
            rates = {
                "scvae": ours(adata, model, "group", "A", "B"),
                "wilcoxon": scanpy_test(adata, "group", "A", "B", "wilcoxon"),
                "t-test": scanpy_test(adata, "group", "A", "B", "t-test_overestim_var"),
            }
            for method, rate in rates.items():
                called = {level: rate.to_numpy() <= level for level in LEVELS}
                order = np.argsort(rate.to_numpy(), kind="stable")
                yield {"scenario": scenario, "seed": seed, "method": method} | score(called, order, changed)
            if peer and seed == 0 and scenario in PEER_SCENARIOS:
                called, order = of_peer(adata, peer)
                yield {"scenario": scenario, "seed": seed, "method": "SCVI"} | score(called, order, changed)


def of_peer(adata: ad.AnnData, python: str) -> tuple[dict[float, np.ndarray], np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        path, target = Path(folder, "cells.h5ad"), Path(folder, "table")
        plain = adata.copy()
        plain.uns.clear()
        plain.obsm.clear()
        plain.write_h5ad(path)
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [python, "-W", "ignore", "-c", PEER, str(path), str(target)]
        subprocess.run(command, check=True, env=environment)
        tables = {level: pd.read_csv(f"{target}_{level}.csv", index_col=0) for level in LEVELS}
    order = np.argsort(tables[LEVELS[0]]["probability"].to_numpy(), kind="stable")
    return {level: table["called"].to_numpy(dtype=bool) for level, table in tables.items()}, order


def null(files: list[Path], _seeds: int, _peer: str | None) -> Iterator[Row]:
    import scvae

    for path in files:
        adata = ad.read_h5ad(path)
        has_batch = "batch" in adata.obs and adata.obs["batch"].nunique() > 1
        model = scvae.fit(adata, batch_key="batch" if has_batch else None, rng=0, verbose=False)
        labels = adata.obs["cell_type"].astype(str)
        sizes = labels.value_counts()
        for label in sizes.index[(sizes >= LEAST_CELLS) & (sizes.index != "unlabelled")]:
            here = np.flatnonzero(labels == label)
            for split in range(SPLITS):
                order = np.random.default_rng(split).permutation(here)
                halves = np.full(adata.n_obs, "elsewhere", dtype=object)
                halves[order[: len(order) // 2]], halves[order[len(order) // 2 :]] = "one", "two"
                adata.obs["half"] = pd.Categorical(halves)
                rates = {
                    "scvae": ours(adata, model, "half", "one", "two"),
                    "wilcoxon": scanpy_test(adata, "half", "one", "two", "wilcoxon"),
                }
                for method, rate in rates.items():
                    counts = {f"called_{level}": int((rate <= level).sum()) for level in LEVELS}
                    row = {"set": path.stem, "label": label, "cells": len(here), "split": split, "method": method}
                    yield row | counts


def seconds(_files: list[Path], _seeds: int, _peer: str | None) -> Iterator[Row]:
    import torch

    import scvae

    adata = scvae.datasets.simulate(n_cells=16_000, n_genes=2_000, n_types=2, truth=False, rng=0)
    model = scvae.fit(adata, rng=0, training=scvae.TrainingConfig(epochs=2), verbose=False)
    for repeat in range(REPEATS):
        started = time.perf_counter()
        scvae.tl.rank_genes(adata, model, groupby="cell_type", reference="type_1")
        passed = time.perf_counter() - started
        yield {"cells": 16_000, "genes": 2_000, "groups": 2, "repeat": repeat, "seconds": passed} | {
            "threads": torch.get_num_threads(),
            "load": os.getloadavg()[0],
        }


def print_truth(rows: list[Row]) -> None:
    table = pd.DataFrame(rows)
    columns = [f"{name}_{level}" for level in LEVELS for name in ("false", "power")] + ["power_at_true_0.05"]
    means = table.groupby(["scenario", "method"], sort=False)[[*columns, "called_0.05"]].mean()
    print("\n| scenario | method | FDP at 0.05 | power | FDP at 0.1 | power | power at a true FDP of 0.05 | called |")
    print("|---|---|---|---|---|---|---|---|")
    for (scenario, method), row in means.iterrows():
        print(f"| {scenario} | {method} | " + " | ".join(f"{row[c]:.3f}" for c in columns) + f" | {row.iloc[-1]:.1f} |")


def print_null(rows: list[Row]) -> None:
    table = pd.DataFrame(rows)
    print("\n| set | method | splits | genes called at 0.05, mean | splits with any at 0.05 | at 0.1 |")
    print("|---|---|---|---|---|---|")
    for (name, method), part in table.groupby(["set", "method"], sort=False):
        any_called = [f"{(part[f'called_{level}'] > 0).mean():.3f}" for level in LEVELS]
        print(f"| {name} | {method} | {len(part)} | {part['called_0.05'].mean():.2f} | {' | '.join(any_called)} |")


def print_time(rows: list[Row]) -> None:
    row = rows[0]
    median = float(np.median([row["seconds"] for row in rows]))
    print(f"\n{row['cells']:,} cells x {row['genes']:,} genes, {row['threads']} threads: {median:.1f} s (median)")


PARTS = {"truth": truth, "null": null, "time": seconds}
PRINTERS = {"truth": print_truth, "null": print_null, "time": print_time}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", metavar="NULL.h5ad")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--peer-python")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="scanpy")
    RESULTS.mkdir(parents=True, exist_ok=True)
    for part in arguments.only:
        target = RESULTS / f"{part}.json"
        if not arguments.table:
            rows: list[Row] = []
            for row in PARTS[part](arguments.files, arguments.seeds, arguments.peer_python):
                rows.append(row)
                print(json.dumps(row), flush=True)
                record = {"machine": f"{os.cpu_count()} cores, {platform.machine()}", "rows": rows}
                target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if target.exists():
            PRINTERS[part](json.loads(target.read_text(encoding="utf-8"))["rows"])


if __name__ == "__main__":
    main()
