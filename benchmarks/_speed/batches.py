"""Seconds of the default fit with a batch of each cell, for both packages."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from statistics import median

from .runner import Bench, Row, alternate

SETS = ("pancreas4", "sc_mixology", "hao_rna500", "paul15")  # in --data-folder; the column is named "batch" in each
KEY = "batch"
EPOCHS = 20  # of SCVI that are measured; its default fit has 400 on these sets


def measure(bench: Bench) -> Iterator[Row]:
    """One row for each data set: scvae's whole fit, and SCVI's from its start and the seconds of an epoch, in turn."""
    sources = bench.data if bench.data_folder is None else [bench.data_folder / f"{name}.h5ad" for name in SETS]
    if not sources:
        print("batches: skipped, since it needs --data-folder, or --data with a column 'batch'", file=sys.stderr)
        return
    bench.call("ours", "warm")
    for source in sources:
        data = bench.folder / f"{source.stem}_batches.h5ad"
        shape = bench.call("ours", "prepare_batches", {"source": source, "path": data, "key": KEY})
        if not shape:
            print(f"batches: {source} skipped, since it has no column {KEY!r}", file=sys.stderr)
            continue
        shared = {"data": data, "device": bench.device, "batch_key": KEY}
        ours = bench.later("ours", "fit", {**shared, **({"epochs": 3} if bench.quick else {})})
        peer = bench.later("peer", "projected_fit", {**shared, "epochs": 2 if bench.quick else EPOCHS})
        runs = alternate(bench.times(3), {"scvae": ours, "scvi": peer})
        data.unlink()
        seconds = {name: median(run["seconds"] for run in of) for name, of in runs.items()}
        row = {"data": source.stem, **shape, "median": seconds, "scvi/scvae": seconds["scvi"] / seconds["scvae"]}
        yield {**row, "scvi_is": "start + seconds of an epoch x default epochs", "runs": runs}
