"""False alarms and detections of the over-correction audit of scvae.tl.diagnose(condition_key=).

Usage: python benchmarks/over_correction.py [--only simulated real batches] [--data FOLDER] [--seeds 1] [--table]

simulated: 800 cells of two types, 100 genes; batches differ by 0.3 or 0.6 in log rates; a condition changes a third of
the genes by EFFECTS. Designs: both conditions in each of two batches (crossed), or 80 % of one and 20 % of the other
(uneven); each batch of one condition, with one, two, three or five batches a condition (nested); crossed, fitted at
β = 30, so that the latent space loses the condition.
real: 1,500 cells and the 500 most variable genes of each set, default fits with its batches. Shuffled: a random half of
the cells of each batch is the condition, ten times. Crossed: in such a half, a random third of the genes is thinned to
45 %. Nested: the same in a random half of the batches, for sets with four or more; none: that half without thinning.
glioblastoma_panobinostat: the drug, with patients as batches (crossed) and with samples as batches (nested), and pairs
of samples of one condition against its others (none).

batches: without any fit, how much two halves of a set's batches differ, relative to batches within a half (excess), for
up to 20 ways to halve them, as they are and with a random third of the genes thinned to 45 % in one half.

The condition is planted as removed where it changes expression and each batch has one condition, or at β = 30, and then
"over-correction" should be named. Crossed fits at β = 1 and fits without a change should not be called over-corrected.
For one batch a condition without a change the answer cannot be told, and a fit of uneven batches may keep the condition
or not; both are left out of the rates.

Rows are written to benchmarks/results/over_correction/PART.json. --table only prints the existing rows.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from _parts import Row, arguments_of, run
from scipy import sparse

RESULTS = Path(__file__).parent / "results" / "over_correction"
EFFECTS, BATCH_EFFECTS, NESTED = (0.0, 0.4, 0.8), (0.3, 0.6), (1, 2, 3, 5)
N_CELLS, N_GENES, TYPES = 1_500, 500, 2
CHANGED, THINNED, SHUFFLES, LOST = 1 / 3, 0.45, 10, 30.0
SETS = ("pancreas4", "sc_mixology", "hao_rna500", "baron_h1", "worm_embryo")
NAMES = ("condition_size", "corrected_size", "chance", "kept", "backed", "tracked", "confounded", "excess")

FEWEST, SPLITS, AT = 20, 20, (2.0, 3.0, 4.0)  # cells of a batch, splits, and limits of the excess


def audited(adata: ad.AnnData, model: Any, condition: np.ndarray) -> Row:
    """What the audit measures and names; `condition` has 0 or 1 for each cell."""
    from scvae.diagnostics.findings import correction
    from scvae.diagnostics.over_correction import over_correction
    from scvae.inference.cells import read_cells
    from scvae.inference.posterior import posterior_moments

    cells = read_cells(adata, model, None)
    beta = model.beta_of(None)
    embedding = model.written(posterior_moments(model, cells, beta=beta)[0].astype(np.float64))
    found = over_correction(model, cells, embedding, condition, condition_key="condition", beta=beta, seed=0)
    seen = SimpleNamespace(correction=found)
    findings = [finding(model, seen) for finding in (correction.over_correction, correction.made_by_correction)]
    measured = {name: float(getattr(found, name)) for name in NAMES}
    return measured | {"named": [finding.name for finding in findings if finding is not None]}


def simulated_cells(seed: int, batch: np.ndarray, condition: np.ndarray, effect: float, apart: float) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    n, n_genes = len(batch), 100
    kind = rng.integers(TYPES, size=n)
    change = np.where(rng.random(n_genes) < CHANGED, rng.choice([-1, 1], n_genes), 0.0) * effect
    rate = rng.normal(0, 1, n_genes) + rng.normal(0, 1, (TYPES, n_genes))[kind] + condition[:, None] * change
    rate = rate + apart * rng.normal(size=(batch.max() + 1, n_genes))[batch]
    mean = np.exp(rate) / np.exp(rate).sum(1, keepdims=True) * rng.lognormal(7.0, 0.4, n)[:, None]
    counts = rng.poisson(mean * rng.gamma(5.0, 0.2, mean.shape)).astype(np.float32)
    obs = pd.DataFrame({"batch": [f"b{i}" for i in batch]}, index=[f"c{i}" for i in range(n)])
    return ad.AnnData(sparse.csr_matrix(counts), obs=obs)


def simulated(arguments: argparse.Namespace) -> Iterator[Row]:
    import scvae

    for seed, effect, apart in itertools.product(range(arguments.seeds), EFFECTS, BATCH_EFFECTS):
        rng = np.random.default_rng(1_000 + seed)
        half, n = rng.integers(2, size=800), 800
        designs = {
            "crossed": rng.integers(2, size=n),
            "uneven": (half + (rng.random(n) < 0.2)) % 2,
            **{f"nested, {k} a condition": k * half + rng.integers(k, size=n) for k in NESTED},
        }
        for design, batch in designs.items():
            adata = simulated_cells(seed, batch, half, effect, apart)
            for beta in (1.0, LOST) if design == "crossed" and effect == max(EFFECTS) else (1.0,):
                model = scvae.fit(adata, batch_key="batch", beta=beta, rng=seed, verbose=False)
                name = f"simulated, {design}" + (f", β = {beta:g}" if beta != 1 else "")
                planted = effect > 0 and (beta == LOST or design.startswith("nested"))
                row = {"case": name, "effect": effect, "batch_effect": apart, "seed": seed, "planted": planted}
                yield row | audited(adata, model, half)


def thinned(adata: ad.AnnData, condition: np.ndarray, rng: np.random.Generator) -> ad.AnnData:
    """The cells with fewer counts of a random third of the genes in one condition."""
    counts, of = adata.X.toarray().astype(int), rng.random(adata.n_vars) < CHANGED
    less = np.ix_(condition == 1, of)
    counts[less] = rng.binomial(counts[less], THINNED)
    return ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=adata.obs.copy(), var=adata.var.copy())


def within_batches(batch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """0 or 1 for each cell, in half of the cells of each batch."""
    condition = np.zeros(len(batch), int)
    for name in np.unique(batch):
        here = rng.permutation(np.flatnonzero(batch == name))
        condition[here[: len(here) // 2]] = 1
    return condition


def variable_genes(adata: ad.AnnData) -> ad.AnnData:
    import scvae

    if adata.n_vars > N_GENES:
        scvae.tl.highly_variable_genes(adata, n_top_genes=N_GENES)
        adata = adata[:, adata.var["highly_variable"].to_numpy()]
    adata = adata[np.asarray(adata.X.sum(1)).ravel() > 0]
    return adata.copy()


def real(arguments: argparse.Namespace) -> Iterator[Row]:
    import scvae

    for name in SETS:
        adata = ad.read_h5ad(arguments.data / f"{name}.h5ad")
        adata.obs["batch"] = adata.obs["batch"].astype(str)
        some = np.sort(np.random.default_rng(0).permutation(adata.n_obs)[:N_CELLS])
        adata = variable_genes(adata[some].copy())
        batch, base = adata.obs["batch"].to_numpy(), {"effect": 0.0, "batch_effect": np.nan, "planted": False}
        model = scvae.fit(adata, batch_key="batch", rng=0, verbose=False)
        for seed in range(SHUFFLES):
            shuffled = within_batches(batch, np.random.default_rng(seed))
            yield {"case": f"{name}, shuffled", "seed": seed} | base | audited(adata, model, shuffled)
        for seed in range(arguments.seeds):
            rng = np.random.default_rng(seed)
            half = within_batches(batch, rng)
            changed, how = thinned(adata, half, rng), base | {"effect": -np.log(THINNED)}
            again = scvae.fit(changed, batch_key="batch", rng=seed, verbose=False)
            yield {"case": f"{name}, crossed", "seed": seed} | how | audited(changed, again, half)
            batches = rng.permutation(np.unique(batch))
            if len(batches) >= 4:
                half = np.isin(batch, batches[: len(batches) // 2]).astype(int)
                yield {"case": f"{name}, none", "seed": seed} | base | audited(adata, model, half)
                changed = thinned(adata, half, rng)
                again = scvae.fit(changed, batch_key="batch", rng=seed, verbose=False)
                how |= {"planted": True}
                yield {"case": f"{name}, nested", "seed": seed} | how | audited(changed, again, half)
    yield from of_tumours(ad.read_h5ad(arguments.data / "glioblastoma_panobinostat.h5ad"), arguments.seeds)


def of_tumours(adata: ad.AnnData, seeds: int) -> Iterator[Row]:
    import scvae

    drug = (adata.obs["condition"].astype(str) != "ctrl").to_numpy().astype(int)
    for seed in range(seeds):
        how = {"effect": np.nan, "batch_effect": np.nan, "seed": seed}
        for key, case, planted in (("patient_id", "crossed", False), ("sample_id", "nested", True)):
            model = scvae.fit(adata, batch_key=key, rng=seed, verbose=False)
            row = {"case": f"glioblastoma, {case}", "planted": planted} | how
            yield row | audited(adata, model, drug)
    for of_one in (0, 1):
        some = adata[drug == of_one].copy()
        model = scvae.fit(some, batch_key="sample_id", rng=0, verbose=False)
        samples = sorted(set(some.obs["sample_id"]))
        for number, chosen in enumerate(itertools.combinations(samples, 2)):
            half = some.obs["sample_id"].isin(chosen).to_numpy().astype(int)
            how = {"effect": 0.0, "batch_effect": np.nan, "seed": number, "planted": False}
            yield {"case": "glioblastoma, none"} | how | audited(some, model, half)


def batches(arguments: argparse.Namespace) -> Iterator[Row]:
    data = arguments.data
    tumours = ad.read_h5ad(data / "glioblastoma_panobinostat.h5ad")
    pancreas = ad.read_h5ad(data / "pancreas4.h5ad")
    largest = pancreas.obs["Dataset"].value_counts().index[0]
    sets = {
        "glioblastoma, control": (tumours[tumours.obs["condition"] == "ctrl"], "sample_id"),
        "glioblastoma, drug": (tumours[tumours.obs["condition"] != "ctrl"], "sample_id"),
        "pancreas4, studies": (pancreas, "batch"),
        f"pancreas4, donors of {largest}": (pancreas[pancreas.obs["Dataset"] == largest], "donor_id"),
        **{name: (ad.read_h5ad(data / f"{name}.h5ad"), "batch") for name in ("sc_mixology", "paul15", "worm_embryo")},
    }
    for name, (found, key) in sets.items():
        sizes = found.obs[key].astype(str).value_counts()
        adata = variable_genes(found[found.obs[key].astype(str).isin(sizes.index[sizes >= FEWEST])].copy())
        batch = adata.obs[key].astype(str).to_numpy()
        names = sorted(set(batch))
        halves = list(itertools.combinations(names, len(names) // 2))
        halves = [half for half in halves if len(names) % 2 or names[0] in half]
        for seed, number in enumerate(np.random.default_rng(0).permutation(len(halves))[:SPLITS]):
            half = np.isin(batch, halves[number]).astype(int)
            changed = thinned(adata, half, np.random.default_rng(seed))
            for planted, cells in ((False, adata), (True, changed)):
                yield {"case": name, "seed": seed, "planted": planted, "excess": excess_of(cells, batch, half)}


def excess_of(adata: ad.AnnData, batch: np.ndarray, condition: np.ndarray) -> float:
    from scvae.diagnostics.over_correction import _excess, _summed

    code, none = np.unique(batch, return_inverse=True)[1], np.zeros(len(batch), int)
    counts = sparse.csr_array(adata.X).astype(float)
    return _excess(_summed(counts, counts.sum(1), np.stack([none, code, condition, none]), (1, code.max() + 1, 2, 1)))


def print_batches(rows: list[Row]) -> None:
    print(f"\n| set | splits | median | {' | '.join(f'above {at:g}' for at in AT)} | thinned: median | ", end="")
    print(f"{' | '.join(f'above {at:g}' for at in AT)} |")
    print("|---|---|---" + "|---" * (2 * len(AT) + 1) + "|")
    table = pd.DataFrame(rows)
    for name, part in pd.concat([table, table.assign(case="all")]).groupby("case", sort=False):
        row = []
        for planted in (False, True):
            excess = part.loc[part["planted"] == planted, "excess"]
            row += [f"{excess.median():.2f}", *(f"{(excess > at).mean():.2f}" for at in AT)]
        print(f"| {name} | {len(part) // 2} | {' | '.join(row)} |")


def can_be_told(row: pd.DataFrame) -> pd.Series:
    alone = (row["case"] == "simulated, nested, 1 a condition") & (row["effect"] == 0)
    return ~alone & (row["case"] != "simulated, uneven")


def print_table(rows: list[Row]) -> None:
    table = pd.DataFrame(rows)
    table["over"] = ["over-correction" in names for names in table["named"]]
    table["made"] = ["differences made by correction" in names for names in table["named"]]
    print(
        "\n| case | effect | fits | size in counts | kept | excess | over-correction | made by correction | should be |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for (case, effect, planted), part in table.groupby(["case", "effect", "planted"], sort=False, dropna=False):
        numbers = [f"{part[c].median():.2f}" for c in ("condition_size", "kept", "excess")]
        named = [f"{part[c].mean():.2f}" for c in ("over", "made")]
        should = "named" if planted else "clean" if can_be_told(part).all() else "either"
        change = "" if np.isnan(effect) else f"{effect:.1f}"
        print(f"| {case} | {change} | {len(part)} | {' | '.join(numbers + named)} | {should} |")
    told = table[can_be_told(table)]
    for planted, word in ((False, "false alarms"), (True, "detections")):
        here = told[told["planted"] == planted]
        remark = ["condition goes with batches" in names for names in here["named"]]
        print(f"\n{word}: {here['over'].mean():.2f} of {len(here)}, and the remark in {np.mean(remark):.2f}")


def main() -> None:
    parts = {"simulated": (simulated, print_table), "real": (real, print_table), "batches": (batches, print_batches)}
    run(arguments_of(__doc__, list(parts), seeds={"type": int, "default": 1}), parts, RESULTS)


if __name__ == "__main__":
    main()
