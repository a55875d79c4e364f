"""Donors as the sample: false discoveries and power of scvae.tl.rank_genes (abundance: donors_abundance.py).

Usage: python benchmarks/donors.py [--only genes_null genes_power] [--data FOLDER] [--seeds 4] [--peer-python PYTHON]
       [--table]

genes_null: donors of one study and one condition are split into halves at random, up to 100 times for each set
(pancreas4: each study with at least four donors, in each type of which four donors have ten cells;
glioblastoma_panobinostat: vehicle and panobinostat apart). In hao_rna500 and baron_h1, which have three donors or
libraries, each donor's cells are split at random, which makes three pairs. No gene differs by design, and a call is
false. (XIST and genes of the Y chromosome are left out: some splits are those by sex.)
Measures the share of genes called and the share of splits with any call.
genes_power: DESIGNS say how many donors there are in a group and with which variances they differ in log mean, 20 to
150 cells of each, 1,000 genes, of which a tenth change 1.5 to 4 times. In paired designs each donor has cells of both
sides, levels of donors have a variance of 0.5, and the change differs between donors with twice the variance. Measures
the share of false calls and the power. There are half as many seeds from 12 donors on, and no tests of cells.

Beside scvae with donors as the sample: scvae and Wilcoxon (scanpy, with correction for ties) with cells as the sample,
t-tests on log sums of each donor, and, if --peer-python names an interpreter with pydeseq2 and scvi-tools, PyDESeq2 on
sums of each donor (Wald test, its defaults, the donor in the design if it is paired), and for the first splits of some
sets SCVI's differential expression (mode "change").

Rows are written to benchmarks/results/donors/PART.json. --table only prints the existing rows.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from _parts import Row, arguments_of, run
from scipy import sparse, stats

RESULTS = Path(__file__).parent / "results" / "donors"
LEVELS = (0.05, 0.1)
DESIGNS = (
    (2, 0.1, False),
    (3, 0.0, False),
    (3, 0.1, False),
    (3, 0.5, False),
    (6, 0.0, False),
    (6, 0.1, False),
    (6, 0.5, False),
    (12, 0.1, False),
    (12, 0.5, False),
    (30, 0.1, False),
    (3, 0.1, True),
    (6, 0.1, True),
)  # donors a group, variance, paired
MANY_DONORS, OWN = 12, 0.5  # from which on there are half as many seeds; variance of the levels of paired donors
N_GENES, CHANGED, FOLD = 1_000, 0.1, (1.5, 4.0)
CELLS = (20, 150)
OF_SEX = ("XIST", "RPS4Y1", "EIF1AY", "DDX3Y", "UTY", "KDM5D", "USP9Y", "TXLNGY", "ZFY")
PERMUTATIONS, PEER_SPLITS, SCVI_SPLITS, LEAST_DONORS, LEAST_CELLS = 100, 5, 3, 4, 10
PEER = """
import sys, warnings, numpy as np, pandas as pd
from pathlib import Path
from pydeseq2.dds import DeseqDataSet
from pydeseq2.default_inference import DefaultInference
from pydeseq2.ds import DeseqStats
warnings.filterwarnings("ignore")
for path in sorted(Path(sys.argv[1]).glob("*.npz")):
    of = np.load(path)
    names = [str(i) for i in range(len(of["counts"]))]
    counts = pd.DataFrame(of["counts"].astype(int), index=names)
    table = pd.DataFrame({"side": np.where(of["side"], "b", "a"), "block": of["block"].astype(str)}, index=names)
    one = DefaultInference(n_cpus=1)
    design = "~block + side" if len(set(of["block"])) > 1 else "~side"
    p = np.ones(counts.shape[1])
    try:
        dds = DeseqDataSet(counts=counts, metadata=table, design=design, quiet=True, inference=one)
        dds.deseq2()
        of_stats = DeseqStats(dds, contrast=["side", "b", "a"], quiet=True, inference=one)
        of_stats.summary()
        p = of_stats.results_df["padj"].fillna(1.0).to_numpy()
    except Exception as error:
        print(path, error, file=sys.stderr)
    np.save(path.with_suffix(".npy"), p)
"""

Rates = dict[str, np.ndarray]


class Peer:
    """Adjusted p-values of PyDESeq2 for many tables of sums, made by one process at the end."""

    def __init__(self, python: str | None) -> None:
        self.python = python
        self.tables: list[dict[str, np.ndarray]] = []

    def add(self, counts: np.ndarray, side: np.ndarray, block: np.ndarray) -> int:
        self.tables.append({"counts": counts, "side": side, "block": block})
        return len(self.tables) - 1

    def answers(self) -> list[np.ndarray]:
        if self.python is None:
            return []
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder, f"{i:05d}.npz") for i in range(len(self.tables))]
            for path, table in zip(paths, self.tables, strict=True):
                np.savez(path, **table)
            environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            subprocess.run([self.python, "-W", "ignore", "-c", PEER, folder], check=True, env=environment)
            return [np.load(path.with_suffix(".npy")) for path in paths]


def scvi_rates(python: str, adata: ad.AnnData, splits: list[np.ndarray]) -> np.ndarray:
    """False discovery rates of SCVI, splits x genes."""
    with tempfile.TemporaryDirectory() as folder:
        train, query, out = (str(Path(folder, name)) for name in ("train.h5ad", "query.h5ad", "out.npz"))
        ad.AnnData(adata.X, obs=adata.obs[[]], var=adata.var[[]]).write_h5ad(train)
        obs = pd.DataFrame({f"split_{i}": split for i, split in enumerate(splits)}, index=adata.obs_names)
        ad.AnnData(adata.X, obs=obs, var=adata.var[[]]).write_h5ad(query)
        script = str(Path(__file__).parent / "_scvi_peer.py")
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run([python, script, "differences", train, query, out], check=True, env=environment)
        return np.load(out)["values"]


def simulate(seed: int, n_donors: int, variance: float, *, paired: bool = False) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    cells = rng.integers(*CELLS, 2 * n_donors)
    donor = np.repeat(np.arange(2 * n_donors), cells)
    treated = donor >= n_donors
    changes = rng.random(N_GENES) < CHANGED
    change = np.where(changes, rng.choice([-1, 1], N_GENES) * np.log(rng.uniform(*FOLD, N_GENES)), 0.0)
    eta = rng.normal(0, 1.5, N_GENES) + np.sqrt(variance) * rng.normal(size=(2 * n_donors, N_GENES))[donor]
    eta += treated[:, None] * change + rng.normal(size=(len(donor), 2)) @ rng.normal(0, 0.3, (2, N_GENES))
    if paired:
        eta += np.sqrt(OWN) * rng.normal(size=(n_donors, N_GENES))[donor % n_donors]
    theta = 2.0 * np.exp(0.6 * rng.normal(size=N_GENES))
    mean = np.exp(eta) / np.exp(eta).sum(1, keepdims=True) * rng.lognormal(np.log(1_500), 0.4, len(donor))[:, None]
    obs = pd.DataFrame(
        {
            "condition": np.where(treated, "treated", "control"),
            "donor": [f"d{i % n_donors if paired else i:02d}" for i in donor],
        },
        index=[f"cell_{i}" for i in range(len(donor))],
    )
    counts = rng.poisson(mean * rng.gamma(theta, 1.0 / theta, mean.shape)).astype(np.float32)
    var = pd.DataFrame({"changes": changes}, index=[f"gene_{g}" for g in range(N_GENES)])
    return ad.AnnData(sparse.csr_matrix(counts), obs=obs.astype("category"), var=var)


def sums_of(adata: ad.AnnData, column: str, sample_key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts of each donor on each side with cells, whether it is the side "b", and the number of its block."""
    keys = adata.obs[[sample_key, column]].astype(str).agg("\t".join, axis=1)
    units = sorted(set(keys))
    counts = np.stack([np.asarray(adata.X[(keys == unit).to_numpy()].sum(0)).ravel() for unit in units])
    donors, sides = (np.array(part) for part in zip(*[unit.split("\t") for unit in units], strict=True))
    is_paired = len(set(donors)) < len(donors)
    block = np.unique(donors, return_inverse=True)[1] if is_paired else np.zeros(len(units), int)
    return counts, sides == "b", block


def rates_of(adata: ad.AnnData, model: Any, sample_key: str, *, by_cells: bool = True) -> Rates:
    """Adjusted p-values for the column "side", b against a."""
    import scanpy as sc

    import scvae

    def table(groups: ad.AnnData) -> np.ndarray:
        found = sc.get.rank_genes_groups_df(groups, "b").set_index("names")
        return found["pvals_adj"].reindex(adata.var_names).fillna(1.0).to_numpy()

    options = {"groupby": "side", "groups": ["b"], "reference": "a"}
    scvae.tl.rank_genes(adata, model, sample_key=sample_key, **options)
    rates = {"scvae, donors": table(adata)}
    counts, side, block = sums_of(adata, "side", sample_key)
    logs = np.log((counts + 0.5) / (counts.sum(1, keepdims=True) + 1.0))
    if block.any():
        p = stats.ttest_1samp(logs[side] - logs[~side], 0.0).pvalue
    else:
        p = stats.ttest_ind(logs[side], logs[~side]).pvalue
    tested = counts.sum(0) >= 10
    rates["t-test on sums"] = np.ones(len(p))
    rates["t-test on sums"][tested] = stats.false_discovery_control(np.nan_to_num(p[tested], nan=1.0))
    if by_cells:
        scvae.tl.rank_genes(adata, model, **options)
        rates["scvae, cells"] = table(adata)
        plain = ad.AnnData(adata.X.copy(), obs=adata.obs[["side"]].astype("category"), var=adata.var[[]])
        sc.pp.normalize_total(plain, target_sum=1e4)
        sc.pp.log1p(plain)
        sc.tl.rank_genes_groups(plain, "side", groups=["b"], reference="a", method="wilcoxon", tie_correct=True)
        rates["wilcoxon, cells"] = table(plain)
    return rates


def null_problems(folder: Path) -> Iterator[tuple[str, ad.AnnData, str, Iterator[np.ndarray]]]:
    """Set, cells, column of the donors, and ways to split the cells into two sides that do not differ."""
    pancreas = ad.read_h5ad(folder / "pancreas4.h5ad")
    pancreas = pancreas[:, ~pancreas.var["feature_name"].isin(OF_SEX)].copy()
    for study in sorted(set(pancreas.obs["Dataset"])):
        for kind in sorted(set(pancreas.obs["cell_type"])):
            here = pancreas[(pancreas.obs["Dataset"] == study) & (pancreas.obs["cell_type"] == kind)]
            sizes = here.obs["donor_id"].value_counts()
            donors = sorted(sizes.index[sizes >= LEAST_CELLS])
            if len(donors) >= LEAST_DONORS:
                kept = here[here.obs["donor_id"].isin(donors)].copy()
                yield f"pancreas4, {study}, {kind}", kept, "donor_id", halves(kept.obs["donor_id"], donors)
    tumours = ad.read_h5ad(folder / "glioblastoma_panobinostat.h5ad")
    for condition in sorted(set(tumours.obs["condition"])):
        kept = tumours[tumours.obs["condition"] == condition].copy()
        donors = sorted(set(kept.obs["patient_id"]))
        yield f"glioblastoma, {condition}", kept, "patient_id", halves(kept.obs["patient_id"], donors)
    for name in ("hao_rna500", "baron_h1"):
        kept = ad.read_h5ad(folder / f"{name}.h5ad")
        yield f"{name}, pairs", kept, "batch", at_random(kept.n_obs)


def halves(column: pd.Series, donors: list[str]) -> Iterator[np.ndarray]:
    splits = list(itertools.combinations(donors, len(donors) // 2))
    if len(donors) % 2 == 0:
        splits = [c for c in splits if donors[0] in c]  # the other half is the same split
    order = np.random.default_rng(0).permutation(len(splits))[:PERMUTATIONS]
    yield from (column.isin(splits[i]).to_numpy() for i in order)


def at_random(n: int) -> Iterator[np.ndarray]:
    yield from (np.random.default_rng(seed).random(n) < 0.5 for seed in range(20))


def genes_null(arguments: argparse.Namespace) -> Iterator[Row]:
    import scvae

    python = arguments.peer_python

    peer, asked, by_scvi = Peer(python), [], set()
    for name, adata, sample_key, splits in null_problems(arguments.data):
        if adata.n_vars > 1_000:
            scvae.tl.highly_variable_genes(adata, n_top_genes=1_000)
            adata = adata[:, adata.var["highly_variable"].to_numpy()].copy()  # noqa: PLW2901
        model = scvae.fit(adata, rng=0, verbose=False)
        splits = list(splits)  # noqa: PLW2901
        for number, split in enumerate(splits):
            adata.obs["side"] = pd.Categorical(np.where(split, "b", "a"))
            row = {"set": name, "split": number, "genes": adata.n_vars}
            counts, side, block = sums_of(adata, "side", sample_key)
            if python and number < PEER_SPLITS:
                asked.append(row | {"number": peer.add(counts, side, block)})
            for method, rate in rates_of(adata, model, sample_key, by_cells=number < 10).items():
                yield row | {"method": method} | {f"called_{level}": int((rate <= level).sum()) for level in LEVELS}
        study = ", ".join(name.split(", ")[:2])
        if python and study not in by_scvi:
            by_scvi.add(study)
            for number, rate in enumerate(scvi_rates(python, adata, splits[:SCVI_SPLITS])):
                row = {"set": name, "split": number, "genes": adata.n_vars, "method": "SCVI, cells"}
                yield row | {f"called_{level}": int((rate <= level).sum()) for level in LEVELS}
    found = peer.answers()
    for row in asked:
        rate = found[row.pop("number")]
        yield row | {"method": "PyDESeq2"} | {f"called_{level}": int((rate <= level).sum()) for level in LEVELS}


def genes_power(arguments: argparse.Namespace) -> Iterator[Row]:
    import scvae

    python, seeds = arguments.peer_python, arguments.seeds

    peer, asked = Peer(python), []
    problems = [
        (*design, seed) for design in DESIGNS for seed in range(seeds if design[0] < MANY_DONORS else seeds // 2)
    ]
    for n_donors, variance, paired, seed in problems:
        adata = simulate(seed, n_donors, variance, paired=paired)
        model = scvae.fit(adata, rng=seed, verbose=False)
        adata.obs["side"] = pd.Categorical(np.where(adata.obs["condition"] == "treated", "b", "a"))
        changes = adata.var["changes"].to_numpy()
        row = {"donors": f"{n_donors} pairs" if paired else n_donors, "variance": variance, "seed": seed}
        if python:
            asked.append((row, peer.add(*sums_of(adata, "side", "donor")), changes))
        for method, rate in rates_of(adata, model, "donor", by_cells=n_donors < MANY_DONORS).items():
            yield row | {"method": method} | score(rate, changes)
    found = peer.answers()
    for row, number, changes in asked:
        yield row | {"method": "PyDESeq2"} | score(found[number], changes)


def score(rate: np.ndarray, changes: np.ndarray) -> Row:
    row: Row = {}
    for level in LEVELS:
        called = rate <= level
        row[f"false_{level}"] = float((called & ~changes).sum() / max(called.sum(), 1))
        row[f"power_{level}"] = float((called & changes).sum() / max(changes.sum(), 1))
    order = np.argsort(rate, kind="stable")
    false = np.cumsum(~changes[order]) / np.arange(1, len(order) + 1)
    longest = np.flatnonzero(false <= LEVELS[0])
    row["power_at_true_0.05"] = float(changes[order][: longest[-1] + 1].sum() / changes.sum()) if len(longest) else 0.0
    return row


def together(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """The rows with the same values in these columns side by side, in the order in which these come first."""
    return table.iloc[np.argsort(table.groupby(columns, sort=False).ngroup(), kind="stable")]


def print_null(rows: list[Row]) -> None:
    table = pd.DataFrame(rows)
    print("\n| set | method | splits | share called at 0.05 | at 0.1 | splits with any call at 0.05 | at 0.1 |")
    print("|---|---|---|---|---|---|---|")
    table["set"] = table["set"].str.split(", ").str[:2].str.join(", ")
    table = together(table, ["set"])
    everywhere = table.assign(set="all")
    for (name, method), part in pd.concat([table, everywhere]).groupby(["set", "method"], sort=False):
        shares = [f"{(part[f'called_{level}'] / part['genes']).mean():.4f}" for level in LEVELS]
        any_called = [f"{(part[f'called_{level}'] > 0).mean():.3f}" for level in LEVELS]
        print(f"| {name} | {method} | {len(part)} | {' | '.join(shares)} | {' | '.join(any_called)} |")


def print_power(rows: list[Row]) -> None:
    columns = [f"{name}_{level}" for level in LEVELS for name in ("false", "power")] + ["power_at_true_0.05"]
    table = together(pd.DataFrame(rows), ["donors", "variance"])
    print(
        "\n| donors a group | variance | method | FDP at 0.05 | power | FDP at 0.1 | power | "
        "power at a true FDP of 0.05 |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for (n, variance, method), part in table.groupby(["donors", "variance", "method"], sort=False):
        print(f"| {n} | {variance} | {method} | " + " | ".join(f"{part[c].mean():.3f}" for c in columns) + " |")


def main() -> None:
    options = {"seeds": {"type": int, "default": 4}, "peer_python": {}}
    parts = {"genes_null": (genes_null, print_null), "genes_power": (genes_power, print_power)}
    run(arguments_of(__doc__, list(parts), **options), parts, RESULTS)


if __name__ == "__main__":
    main()
