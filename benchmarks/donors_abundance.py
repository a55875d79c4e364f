"""Donors as the sample: false discoveries and power of scvae.tl.differential_abundance.

Usage: python benchmarks/donors_abundance.py [--only real_null simulated_null power] [--data FOLDER] [--repeats 100]
       [--table]

real_null: splits of the donors of one study and condition into halves, as in donors.py, at most ten for each study or
condition, over all its cells, with the donor as batch and without.
simulated_null and power: NULL_DONORS or POWER_DONORS donors a group with 40 to 100 cells each, in 4, 8 or 15
populations by turns. Frequencies differ between donors with the standard deviations NULL_SDS or POWER_SDS in log
frequency; for power, one population is 1.5 or 2 times as frequent in one group. Cells lie around points in ten
dimensions, which stand for the posterior means. Of the neighbourhoods 250 are compared.
Measures the share of neighbourhoods called and of repeats with any call, and for power the share of the grown
population that is called with the right sign, and that of other cells called as grown.

Beside scvae, on the same neighbourhoods and with the same weighted rate: t-tests of the log frequencies of donors, and
negative-binomial quasi-likelihood F tests as Milo makes them with edgeR (_milo_like.py).

Rows are written to benchmarks/results/donors/abundance_PART.json. --table only prints the existing rows.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from _milo_like import nb_ql
from _parts import Row, arguments_of, run
from donors import LEAST_CELLS, LEVELS, RESULTS, halves, print_null
from scipy import stats

NULL_DONORS, NULL_SDS = (2, 3, 5, 10, 15), (0.0, 0.2, 0.4, 0.7)
POWER_DONORS, POWER_SDS, FOLDS = (3, 5, 10), (0.2, 0.4), (1.5, 2.0)
POPULATIONS, CELLS, CENTRES = (4, 8, 15), (40, 100), 250


def weighted_rate(p: np.ndarray, weight: np.ndarray) -> np.ndarray:
    order = np.argsort(p, kind="stable")
    ratio = weight.sum() * p[order] / np.cumsum(weight[order])
    rate = np.empty(len(order))
    rate[order] = np.minimum(np.minimum.accumulate(ratio[::-1])[::-1], 1.0)
    return rate


def others(
    embedding: np.ndarray, centre: np.ndarray, n_neighbors: int, donor: np.ndarray, side: np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
    """Rate and sign of other methods in the same neighbourhoods; `side` has one value for each donor."""
    from sklearn.neighbors import NearestNeighbors

    distance, index = NearestNeighbors(n_neighbors=n_neighbors).fit(embedding).kneighbors(embedding[centre])
    counts = np.stack([(donor[index] == d).sum(1) for d in range(len(side))]).astype(float)
    exposure = np.bincount(donor).astype(float)
    weight = 1.0 / np.maximum(distance[:, -1], 1e-30)
    logs = np.log((counts + 0.5) / exposure[:, None])
    p, ratio = nb_ql(counts, exposure, side)
    return {
        "t-test": {
            "rate": weighted_rate(stats.ttest_ind(logs[side], logs[~side]).pvalue, weight),
            "sign": np.sign(logs[side].mean(0) - logs[~side].mean(0)),
        },
        "NB-QL, as Milo": {"rate": weighted_rate(p, weight), "sign": np.sign(ratio)},
    }


def called(rate: np.ndarray) -> Row:
    return {f"called_{level}": int((rate <= level).sum()) for level in LEVELS}


def problems(folder: Path) -> Iterator[tuple[str, ad.AnnData, str]]:
    pancreas = ad.read_h5ad(folder / "pancreas4.h5ad")
    for study in sorted(set(pancreas.obs["Dataset"])):
        yield f"pancreas4, {study}", pancreas[pancreas.obs["Dataset"] == study].copy(), "donor_id"
    tumours = ad.read_h5ad(folder / "glioblastoma_panobinostat.h5ad")
    for condition in sorted(set(tumours.obs["condition"])):
        yield f"glioblastoma, {condition}", tumours[tumours.obs["condition"] == condition].copy(), "patient_id"


def real_null(arguments: argparse.Namespace) -> Iterator[Row]:
    import scvae

    for name, adata, sample_key in problems(arguments.data):
        if adata.n_vars > 1_000:
            scvae.tl.highly_variable_genes(adata, n_top_genes=1_000)
            adata = adata[:, adata.var["highly_variable"].to_numpy()].copy()  # noqa: PLW2901
        sizes = adata.obs[sample_key].value_counts()
        donors = sorted(sizes.index[sizes >= LEAST_CELLS])
        adata = adata[adata.obs[sample_key].isin(donors)].copy()  # noqa: PLW2901
        for batch_key in (None, sample_key):
            model = scvae.fit(adata, batch_key=batch_key, rng=0, verbose=False)
            codes = np.searchsorted(np.array(donors), adata.obs[sample_key].astype(str))
            for number, split in enumerate(itertools.islice(halves(adata.obs[sample_key], donors), 10)):
                adata.obs["side"] = pd.Categorical(np.where(split, "b", "a"))
                scvae.tl.differential_abundance(adata, model, groupby="side", sample_key=sample_key)
                found = adata.uns["scvae"]["abundance"]
                centre = adata.obs_names.get_indexer(found["centre"])
                side = np.array([split[codes == d][0] for d in range(len(donors))])
                row = {"set": name + (", donor as batch" if batch_key else ""), "split": number, "genes": len(centre)}
                yield row | {"method": "scvae"} | called(found["fdr"])
                beside = others(adata.obsm["X_scvae"], centre, int(found["n_neighbors"]), codes, side)
                for method, of in beside.items():
                    yield row | {"method": method} | called(of["rate"])


def compared(seed: int, n_donors: int, sd: float, fold: float) -> tuple[np.ndarray, dict[str, dict[str, np.ndarray]]]:
    """Whether each centre is of the population that grows, and what each method says about it."""
    from scvae.diagnostics import abundance as of_scvae

    of_scvae.MOST_CENTRES = CENTRES
    rng = np.random.default_rng(seed)
    n = POPULATIONS[seed % len(POPULATIONS)]
    points, share = rng.normal(0, 3, (n, 10)), np.maximum(rng.dirichlet(np.full(n, 3.0)), 0.04)
    donor = np.repeat(np.arange(2 * n_donors), rng.integers(*CELLS, 2 * n_donors))
    in_group = np.arange(2 * n_donors) < n_donors
    frequency = share * np.exp(sd * rng.normal(size=(2 * n_donors, n)))
    frequency[in_group, 1] *= fold
    frequency /= frequency.sum(1, keepdims=True)
    kind = np.concatenate([rng.choice(n, (donor == d).sum(), p=frequency[d]) for d in range(2 * n_donors)])
    embedding = points[kind] + rng.normal(size=(len(kind), 10))
    found = of_scvae.abundance(
        embedding,
        np.where(in_group[donor], 0, 1),
        donor,
        np.zeros(len(donor), int),
        donors=[str(d) for d in range(2 * n_donors)],
        batches=[""],
        n_neighbors=None,
        seed=seed,
    )
    ours = {"rate": found.fdr, "sign": np.sign(found.log_odds)}
    return kind[found.centre] == 1, {
        "scvae": ours,
        **others(embedding, found.centre, found.n_neighbors, donor, in_group),
    }


def simulated_null(arguments: argparse.Namespace) -> Iterator[Row]:
    repeats = arguments.repeats
    for n_donors, sd in itertools.product(NULL_DONORS, NULL_SDS):
        found = [compared(10_000 + seed, n_donors, sd, 1.0)[1] for seed in range(repeats)]
        for method in found[0]:
            rates = [methods[method]["rate"] for methods in found]
            yield {"donors": n_donors, "sd": sd, "method": method, "repeats": repeats} | {
                f"{name}_{level}": float(np.mean([of(rate <= level) for rate in rates]))
                for level in LEVELS
                for name, of in (("share", np.mean), ("any", np.any))
            }


def power(arguments: argparse.Namespace) -> Iterator[Row]:
    repeats = arguments.repeats
    for n_donors, sd, fold in itertools.product(POWER_DONORS, POWER_SDS, FOLDS):
        found = [compared(seed, n_donors, sd, fold) for seed in range(repeats)]
        for method in found[0][1]:
            row: Row = {"donors": n_donors, "sd": sd, "fold": fold, "method": method, "repeats": repeats}
            for level in LEVELS:
                pairs = [
                    (grown, (methods[method]["rate"] <= level) & (methods[method]["sign"] > 0))
                    for grown, methods in found
                ]
                row[f"power_{level}"] = float(np.mean([is_called[grown].mean() for grown, is_called in pairs]))
                row[f"false_{level}"] = float(np.mean([is_called[~grown].mean() for grown, is_called in pairs]))
            yield row


def print_simulated(rows: list[Row]) -> None:
    columns = [f"{sd}, {level}" for sd in NULL_SDS for level in LEVELS]
    print(f"\n| donors | method | {' | '.join(columns)} |")
    print("|---|---" + "|---" * len(columns) + "|")
    for (n, method), part in pd.DataFrame(rows).groupby(["donors", "method"], sort=False):
        shares = [part.loc[part["sd"] == sd, f"any_{level}"].item() for sd in NULL_SDS for level in LEVELS]
        print(f"| {n} v {n} | {method} | {' | '.join(f'{share:.2f}' for share in shares)} |")


def print_power(rows: list[Row]) -> None:
    columns = [f"{name}_{level}" for level in LEVELS for name in ("power", "false")]
    print(
        "\n| donors a group | sd | fold | method | called at 0.05 | of other cells | called at 0.1 | of other cells |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for keys, part in pd.DataFrame(rows).groupby(["donors", "sd", "fold", "method"], sort=False):
        print(f"| {' | '.join(map(str, keys))} | " + " | ".join(f"{part[c].mean():.3f}" for c in columns) + " |")


def main() -> None:
    parts = {
        "real_null": (real_null, print_null),
        "simulated_null": (simulated_null, print_simulated),
        "power": (power, print_power),
    }
    run(arguments_of(__doc__, list(parts), repeats={"type": int, "default": 100}), parts, RESULTS, "abundance_")


if __name__ == "__main__":
    main()
