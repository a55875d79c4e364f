"""Draws a figure of posterior collapse on a toy set and of its remedies: five seeds, default network, final β = 1.

    python benchmarks/collapse_toy.py            # results/collapse_toy.json and results/collapse_toy.png

The data have eight cell types at the corners of a regular simplex and seven variables, so the covariance is a multiple
of the identity. With β = 1 from the first step, every seed ends with the posterior at the prior. With a warm-up to the
same β, none does. The black line is the mean log p(x) under the distribution that the cells were drawn from; a model
with two latent dimensions cannot quite reach it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt

import scvae
from scvae import TrainingConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "science"))
from toys import equidistant_types, log_evidence

HERE = Path(__file__).parent / "results"
SEEDS = range(5)
RUNS = {
    "β = 1 from step 0": {"warmup": 0.0},
    "linear warm-up": {"warmup": 0.5},
    "cyclic warm-up": {"warmup": 0.7, "warmup_cycles": 4},
    "free bits (0.5)": {"warmup": 0.0, "free_bits": 0.5},
    "capacity (3 nats)": {"warmup": 0.0, "capacity": 3.0},
}
SHOWN = ("β = 1 from step 0", "linear warm-up")


def main() -> None:
    """Fits, writes the numbers, draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-cells", type=int, default=1000)
    n_cells = parser.parse_args().n_cells
    rows, curves, latents, evidence = [], {}, {}, []
    for seed in SEEDS:
        adata = equidistant_types(n_cells, rng=np.random.default_rng(seed))
        evidence.append(float(log_evidence(adata).mean()))
        for name, settings in RUNS.items():
            training = TrainingConfig(patience=None, **settings)
            model = scvae.fit(adata, likelihood="gaussian", n_latent=2, training=training, rng=seed, verbose=False)
            outcome = model.outcome
            rows.append(
                {
                    "run": name,
                    "seed": seed,
                    "held_out_elbo": outcome.held_out_elbo,
                    "kl_per_dimension": outcome.kl_per_dimension,
                    "beta_attained": outcome.beta_attained,
                    "active_dimensions": outcome.active_dimensions,
                }
            )
            curves.setdefault(name, []).append(model.history)
            if seed == 0:
                latents[name] = adata.obsm["X_scvae"].copy(), adata.obs["type"].to_numpy()
        print(f"seed {seed}: " + ", ".join(f"{row['run']} {row['held_out_elbo']:.2f}" for row in rows[-len(RUNS) :]))
    HERE.mkdir(exist_ok=True)
    (HERE / "collapse_toy.json").write_text(json.dumps({"log_evidence": evidence, "runs": rows}, indent=1) + "\n")
    draw(curves, latents, float(np.mean(evidence)))


def draw(curves: dict, latents: dict, evidence: float) -> None:
    """β and held-out ELBO over the run, and the latent space of a collapsed and a rescued model."""
    figure, axes = plt.subplots(1, 4, figsize=(15, 4.1), layout="constrained", width_ratios=[1, 1.25, 1, 1])
    for colour, (name, histories) in enumerate(curves.items()):
        n_epochs = len(histories[0])
        progress = np.arange(1, n_epochs + 1) / n_epochs
        if name in ("β = 1 from step 0", "linear warm-up", "cyclic warm-up"):
            axes[0].plot(progress, histories[0]["beta"], color=f"C{colour}")
        for history in histories:
            axes[1].plot(progress, history["validation_elbo"], color=f"C{colour}", lw=0.8, alpha=0.7)
        axes[1].plot([], [], color=f"C{colour}", label=name)
    axes[0].set(xlabel="progress of the run", ylabel="β", title="KL weight")
    axes[1].axhline(evidence, color="black", lw=1)
    axes[1].annotate("log p(x) of the truth", (0.02, evidence), va="bottom", fontsize=8)
    axes[1].set(
        xlabel="progress of the run", ylabel="held-out ELBO at β = 1 (nats per cell)", ylim=(-13, evidence + 1.2)
    )
    axes[1].set_title("five seeds each")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower left", ncols=len(curves))
    for axis, name in zip(axes[2:], SHOWN, strict=True):
        z, types = latents[name]
        for number, kind in enumerate(sorted(set(types))):
            axis.scatter(*z[types == kind].T, s=5, color=f"C{number}")
        axis.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal", xlabel="z 1", ylabel="z 2")
        axis.set_title(f"{name}: posterior means")
    figure.savefig(HERE / "collapse_toy.png", dpi=130)
    print(f"wrote {HERE / 'collapse_toy.png'}")


if __name__ == "__main__":
    main()
