"""AnnData with the slots that plots read, filled by formula: no fit, no random numbers, the same everywhere."""

import anndata as ad
import numpy as np
import pandas as pd
from scipy.special import ndtri

N_CELLS = 240
TYPES = ("B cells", "CD4 T cells", "CD8 T cells", "NK cells")
FIELDS = ("name", "severity", "sentence", "cause", "remedy")
FINDINGS = [
    (
        "β too large",
        "disease",
        "at β = 50, 1 of 10 dimensions are active and z holds at most 0.4 nats about a cell",
        "a dimension is used only if it explains more than β times its KL",
        "a smaller β: scvae.tune_beta(adata) shows what each β keeps",
    ),
    (
        "unused dimensions",
        "remark",
        "9 of 10 dimensions are unused (KL below 0.05 nats); the others hold 0.4 nats",
        "the data do not pay for more dimensions at this β",
        "scvae.tl.prune(adata, model) drops them, n_latent='auto' finds the number, a smaller β fills them",
    ),
]


def spread(n, columns):
    """Points that fill a normal distribution evenly: multiples of irrational numbers, modulo 1."""
    steps = np.sqrt([2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97])
    steps = np.concatenate([steps, np.cbrt(np.arange(2, 2 + max(0, columns - len(steps))))])[:columns]
    return ndtri(np.clip((np.arange(1, n + 1)[:, None] * steps) % 1.0, 1e-4, 1 - 1e-4))


def embedded(n_latent=10, n_used=7, n_cells=N_CELLS, key="scvae"):
    """Cells with an embedding of which the first dimensions are in use, and a column of each kind in `obs`."""
    scale = np.where(np.arange(n_latent) < n_used, 1.0 - 0.05 * np.arange(n_latent), 1e-3)
    variance = np.where(np.arange(n_latent) < n_used, 0.1 + 0.05 * np.arange(n_latent), 1.0)
    adata = ad.AnnData(np.zeros((n_cells, 3), dtype=np.float32))
    adata.obsm[f"X_{key}"] = (spread(n_cells, n_latent) * scale).astype(np.float32)
    adata.obsm[f"X_{key}_var"] = np.broadcast_to(variance, (n_cells, n_latent)).astype(np.float32)
    cell = np.arange(n_cells)
    adata.obs["type"] = pd.Categorical(np.array(TYPES)[cell % 4], categories=TYPES)
    many = np.array([f"cluster {i} of cells with {'a very ' * (i % 5)}long name" for i in range(40)])
    adata.obs["many"] = pd.Categorical(many[cell % 40])
    adata.obs["score"] = np.where(cell % 6, np.sin(cell / 20), np.nan)
    adata.X[:, 1] = cell % 7
    adata.uns[key] = {}
    return adata


def epochs(n=40, *, fine=0, validation=True, beta=1.0):
    """The history of a fit, and of a fine-tuning after it."""
    epoch = np.arange(1.0, n + fine + 1)
    settled = np.exp(-epoch / 5)
    held_out = 1.0 if validation else np.nan
    columns = {"epoch": epoch}
    for side, worse, there in (("train", 0.0, 1.0), ("validation", 1.0, held_out)):
        kl, distortion = 14 - 9 * settled - worse, 600 + 300 * settled + 15 * worse
        columns |= {f"{side}_kl": there * kl, f"{side}_log_likelihood": -there * distortion}
        columns[f"{side}_elbo"] = -there * (distortion + kl)
    rate = np.interp(epoch, [1, 0.3 * n, n], [1e-3, 1e-2, 1e-6])
    rate[n:] = np.interp(np.arange(fine), [0, fine / 3, fine], [3e-4, 3e-3, 1e-7])
    return columns | {"beta": beta * np.minimum(1, epoch / 4), "learning_rate": rate, "seconds": epoch / 10}


def trained(*, n=40, fine=10, validation=True, beta=1.0, mapping=False, key="scvae"):
    """Cells with the record of a fit."""
    adata = embedded(key=key)
    weight = 1.0 if isinstance(beta, tuple) else beta
    adata.uns[key] |= {
        "params": {"beta": np.array(beta) if isinstance(beta, tuple) else beta, "likelihood": "nb"},
        "history": epochs(n, fine=fine, validation=validation, beta=weight),
        "beta_attained": weight,
        "best_epoch": n - 5,
    }
    if mapping:
        adata.uns[key]["mapping"] = {"history": epochs(20, validation=validation)}
    return adata


def diagnosed(*, findings=FINDINGS, n_latent=10, n_used=7, n_genes=200, likelihood="nb", key="scvae"):
    """Cells with a diagnosis."""
    adata = embedded(n_latent, n_used, key=key)
    gene = np.arange(n_genes)
    mean = 10 ** (3 * gene / n_genes - 2)
    off = 1 + 0.3 * np.sin(gene)
    off[[150, 170]] = 4.0, 0.2
    kl = np.where(np.arange(n_latent) < n_used, 2.0 / (1 + np.arange(n_latent)), 0.01)
    disease = any(finding[1] == "disease" for finding in findings)
    adata.uns[key]["diagnosis"] = {
        "verdict": ", ".join(f[0] for f in findings if f[1] == "disease") or "healthy",
        "healthy": not disease,
        "findings": {field: np.array([f[i] for f in findings], dtype=str) for i, field in enumerate(FIELDS)},
        "likelihood": likelihood,
        "training": "40 epochs, best 38; β 1 attained; the validation ELBO moved by 0.55 nats (0.03%) over the last 4",
        "beta": 1.0,
        "n_cells": 2000,
        "kl_per_dimension": kl,
        "mutual_information": 0.7 * kl.sum(),
        "mutual_information_error": 0.1,
        "information_bound": 0.9 * kl.sum(),
        "information_cap": float(np.log(2000)),
        "saturated": False,
        "marginal_kl": 0.3 * kl.sum(),
        "marginal_kl_error": 0.1,
        "amortization_gap": 2.4,
        "amortization_gap_error": 0.2,
        "variational_gap": 2.6,
        "variational_gap_error": 0.3,
        "generalization_gap": 24.6,
        "generalization_gap_error": 5.0,
        "spectrum_local": 50 * np.exp(-0.8 * np.arange(n_latent)),
        "spectrum_shared": 40 * np.exp(-0.7 * np.arange(n_latent)),
        "genes": np.array([f"GENE{i}" for i in gene]),
        "gene_mean": mean,
        "gene_mean_drawn": mean * off,
        "gene_variance": mean + mean**2,
        "gene_variance_drawn": (mean + mean**2) * off,
        "gene_zero_fraction": np.exp(-mean),
        "gene_zero_fraction_drawn": np.exp(-mean * off),
        "ranks": (1 + 0.2 * np.sin(np.arange(20) / 3)) / np.sum(1 + 0.2 * np.sin(np.arange(20) / 3)),
        "coverage": 0.91,
        "library_coverage": 0.95,
        "heads": {},
    }
    return adata


def with_effects(*, n_genes=60, linear=False, n_latent=10, key="scvae"):
    """Cells with loadings or effects of genes."""
    small = trained(key=key)
    adata = ad.AnnData(np.zeros((small.n_obs, n_genes), np.float32), obsm=dict(small.obsm), uns=small.uns)
    adata.var_names = [f"GENE{i}" if i % 7 else f"chr{i}:1234567-12345{i}89-long-peak" for i in range(n_genes)]
    values = np.sin(np.arange(n_genes)[:, None] * (1 + np.arange(n_latent))) / (1 + np.arange(n_latent))
    values[::3] = 0  # not modelled
    adata.varm[f"{key}_loadings" if linear else f"{key}_effects"] = values.astype(np.float32)
    return adata


def tuned(n=9, recommended=4):
    """Cells with the table of `tune_beta`."""
    beta = np.geomspace(0.1, 10, n)
    adata = embedded()
    table = {"beta": beta, "distortion": 600 + 5 * np.sqrt(beta), "rate": 8 / np.sqrt(beta)}
    ends = {"leiden_stability": (0.5, 0.8), "graph_agreement": (0.9, 0.1), "nmi": (0.6, 0.7), "ari": (0.5, 0.75)}
    table |= {name: np.linspace(low, high, n) for name, (low, high) in ends.items()}
    adata.uns["scvae"]["beta_path"] = pd.DataFrame(table | {"recommended": np.arange(n) == recommended})
    return adata


def named(n_levels=2):
    """Cells with the record of `predict_labels`: errors that rise with coverage, less so at coarse levels."""
    adata = embedded()
    coverage = np.linspace(0.02, 1.0, 50)
    adata.uns["scvae"]["label_confidence"] = {
        "level": np.repeat(np.arange(1, n_levels + 1), 50),
        "coverage": np.tile(coverage, n_levels),
        "threshold": np.tile(1.0 - 0.6 * coverage**2, n_levels),
        "error": np.concatenate([0.08 * (level + 1) * coverage**3 for level in range(n_levels)]),
        "depth": np.array([0.1, *np.full(n_levels, 0.9 / n_levels)]),
        "least_probability": 0.6,
        "max_error": 0.05,
        "n_held_out": 120,
    }
    return adata


def abundant():
    """Cells on a UMAP, of which those on the left and on the right are more or less frequent in one condition."""
    adata = embedded()
    turn = 2.4 * np.arange(adata.n_obs)
    place = np.sqrt(turn)[:, None] * np.column_stack([np.cos(turn), np.sin(turn)])
    adata.obsm["X_umap"] = place
    adata.obs["scvae_abundance"], adata.obs["scvae_abundance_se"] = place[:, 0] / 10.0, 0.3
    adata.obs["scvae_abundance_fdr"] = np.exp(-np.abs(place[:, 0]) / 3.0)
    adata.uns["scvae"]["abundance"] = {"group": "treated with something", "reference": "control"}
    return adata


def of_views(n=2, n_latent=8):
    """Cells with a diagnosis of several measurements, each of which tells most of other dimensions."""
    adata = diagnosed(n_latent=n_latent)
    place = np.arange(n_latent)
    adata.uns["scvae"]["diagnosis"]["views"] = {
        name: {
            "log_likelihood": -150.0,
            "rate_per_dimension": 3.0 * np.exp(-np.abs(place - 3 * number) / 2.0),
            "added": 1.5 * (number + 1),
            "distance": 0.2,
            "n_cells": 1000,
        }
        for number, name in enumerate(("rna", "protein", "atac")[:n])
    }
    return adata
