"""Training cells per second in the steady state: scvae against scvi-tools' SCVI (nb), all else equal.

Usage: python benchmarks/training_speed.py [--genes 2000 20000] [--batch-sizes 128 1024] [--repeats 3]
    [--peer-python PYTHON]

Simulated cells (`scvae.datasets.simulate`), one hidden layer of 128 units on both sides and 10 latent dimensions for
both. Each measurement trains in a process of its own, once for few and once for more epochs, and divides the extra
cells by the extra seconds, so that start-up and compilation drop out; both take no validation cells. Runs alternate;
medians are reported. The share of the floor is the time of the decoder's three matrix products alone, by torch.mm on
the same shapes, over the time of a step.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import scvae

EPOCHS = (2, 6)
OURS = """
import sys, time, anndata, torch, scvae
torch.set_num_threads(2)
adata = anndata.read_h5ad(sys.argv[1])
def run(epochs):
    training = scvae.TrainingConfig(epochs=epochs, batch_size={batch_size}, validation_fraction=0.0)
    start = time.perf_counter()
    scvae.fit(adata, rng=0, verbose=False, training=training)
    return time.perf_counter() - start
run(1)
few, more = run({few}), run({more})
print("rate", adata.n_obs * ({more} - {few}) / (more - few))
"""
PEER = """
import sys, time, warnings, logging, anndata, torch
warnings.filterwarnings("ignore")
import scvi
logging.getLogger("lightning").setLevel(logging.ERROR)
torch.set_num_threads(2)
adata = anndata.read_h5ad(sys.argv[1])
scvi.model.SCVI.setup_anndata(adata)
def run(epochs):
    model = scvi.model.SCVI(adata, gene_likelihood="nb")
    start = time.perf_counter()
    model.train(epochs, accelerator="cpu", enable_progress_bar=False, train_size=1.0, batch_size={batch_size})
    return time.perf_counter() - start
run(1)
few, more = run({few}), run({more})
print("rate", adata.n_obs * ({more} - {few}) / (more - few))
"""
FLOOR = """
import sys, time, torch
torch.set_num_threads(2)
h, w, g = torch.randn({batch_size}, 128), torch.randn({genes}, 128), torch.randn({batch_size}, {genes})
times = []
for _ in range(50):
    start = time.perf_counter()
    h @ w.T, g @ w, g.T @ h
    times.append(time.perf_counter() - start)
print("rate", {batch_size} / sorted(times)[25])
"""


def rate(python: str, program: str, path: Path) -> float:
    done = subprocess.run([python, "-c", program, str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return float(done.stdout.split("rate")[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genes", type=int, nargs="+", default=[2000, 20000])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--cells", type=int, default=6000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "training_speed.json")
    arguments = parser.parse_args()
    rows = []
    for genes in arguments.genes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cells.h5ad"
            adata = scvae.datasets.simulate(n_cells=arguments.cells, n_genes=genes, mean_library=genes / 4, truth=False)
            adata.write_h5ad(path)
            share = adata.X.nnz / (adata.n_obs * adata.n_vars)
            for batch_size in arguments.batch_sizes:
                settings = {"batch_size": batch_size, "genes": genes, "few": EPOCHS[0], "more": EPOCHS[1]}
                programs = {
                    "scvae": (sys.executable, OURS.format(**settings)),
                    "scvi": (arguments.peer_python, PEER.format(**settings)),
                    "floor": (sys.executable, FLOOR.format(**settings)),
                }
                rates: dict[str, list[float]] = {name: [] for name in programs}
                for _ in range(arguments.repeats):
                    for name, program in programs.items():
                        rates[name].append(rate(*program, path))
                median = {name: statistics.median(values) for name, values in rates.items()}
                row = {"genes": genes, "batch_size": batch_size, "non_zeros": share, "cells_per_second": rates}
                rows.append(row | {"scvae/scvi": median["scvae"] / median["scvi"]})
                rows[-1]["share_of_floor"] = median["scvae"] / median["floor"]
                print(json.dumps(rows[-1]), flush=True)
    machine = {"processor": platform.processor(), "system": platform.platform(), "threads": 2}
    arguments.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
