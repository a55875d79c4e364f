"""Seconds of the whole default fit: scvae against scvi-tools' SCVI (nb), alternating in one run on one machine.

Usage: python benchmarks/fit_time.py COUNTS.h5ad [...] [--repeats 1] [--peer-python PYTHON] [--out FILE]

Each file holds raw counts in X with the genes to model (for example 2,000 highly variable ones). Each fit runs in a
process of its own with two threads; the time is that of the fit call alone, imports aside. scvae is run once before, so
that its compiled kernels are in the cache, as on any run but the first. --peer-python names an interpreter with
scvi-tools, where this one lacks it. SCVI runs as it comes (400 epochs below 20,000 cells), and with early stopping.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path

OURS = """
import sys, time, anndata, torch, scvae
torch.set_num_threads(2)
adata = anndata.read_h5ad(sys.argv[1])
start = time.perf_counter()
scvae.fit(adata, rng=0, verbose=False)
print("seconds", time.perf_counter() - start)
"""
PEER = """
import sys, time, warnings, logging, anndata, torch
warnings.filterwarnings("ignore")
import scvi
logging.getLogger("lightning").setLevel(logging.ERROR)
torch.set_num_threads(2)
scvi.settings.seed = 0
adata = anndata.read_h5ad(sys.argv[1])
start = time.perf_counter()
scvi.model.SCVI.setup_anndata(adata)
model = scvi.model.SCVI(adata, gene_likelihood="nb")
model.train(accelerator="cpu", enable_progress_bar=False, train_size=0.9, early_stopping={early_stopping})
print("seconds", time.perf_counter() - start)
"""


def seconds(python: str, program: str, path: Path) -> float:
    done = subprocess.run([python, "-c", program, str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return float(done.stdout.split("seconds")[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", type=Path, nargs="+")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "fit_time.json")
    arguments = parser.parse_args()
    programs = {
        "scvae": (sys.executable, OURS),
        "scvi": (arguments.peer_python, PEER.format(early_stopping=False)),
        "scvi_es": (arguments.peer_python, PEER.format(early_stopping=True)),
    }
    rows = []
    for path in arguments.counts:
        seconds(*programs["scvae"], path)
        times: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(arguments.repeats):
            for name, program in programs.items():
                times[name].append(seconds(*program, path))
            times["scvae"].append(seconds(*programs["scvae"], path))
        median = {name: statistics.median(values) for name, values in times.items()}
        ratios = {f"{name}/scvae": median[name] / median["scvae"] for name in ("scvi", "scvi_es")}
        rows.append({"data": path.stem, "seconds": times, **ratios})
        print(json.dumps(rows[-1]), flush=True)
    machine = {"processor": platform.processor(), "system": platform.platform(), "threads": 2}
    arguments.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
