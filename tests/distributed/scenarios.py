"""What one process does and what two do together: the same code, so that the results can be compared."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

import scvae
from scvae import NetworkConfig, TrainingConfig
from scvae.common.interrupt import Interrupt
from scvae.common.rng import torch_generators
from scvae.data.beta_range import BetaRange
from scvae.data.feeds import Feed
from scvae.data.intake import DataKeys, read_fit
from scvae.data.summary import summarize
from scvae.likelihoods import KIND
from scvae.model.vae import make_model
from scvae.training.step import Dials
from scvae.training.train import make_step

CPU = torch.device("cpu")
# uneven parts, and in the last two steps fewer cells than processes, or one more
PLAN = [np.arange(17), np.arange(17, 33)[::-1], np.array([40]), np.array([41, 42, 35])]
COARSE = {"type_1": "type_0", "type_2": "type_0"}  # cells of type_0 have a coarser label
CASES = {
    "nb": {},
    "zinb": {"likelihood": "zinb"},
    "poisson of many betas": {"likelihood": "poisson", "betas": BetaRange(0.1, 10.0)},
    "bernoulli": {"likelihood": "bernoulli"},
    "gaussian": {"likelihood": "gaussian"},
    "batch norm": {"norm": "batch", "encoder_layers": 2},
    "batch norm of many betas": {"norm": "batch", "betas": BetaRange(0.1, 10.0)},
    "dispersion by batch": {"dispersion": "gene-batch"},
    "free bits": {"training": TrainingConfig(free_bits=0.3)},
    "capacity": {"training": TrainingConfig(capacity=3.0)},
    "mixture": {"prior": "mixture", "prior_components": 4},
    "flow": {"prior": "flow"},
    "encoded conditions": {"encode_conditions": True, "norm": "none"},
    "skip": {"skip": "gated", "z_to": "every", "training": TrainingConfig(consistency=0.0)},
    "labels": {"labels_key": "cell_type", "label_hierarchy": COARSE},
}
FITS = {
    "nb": {},
    "batch norm": {
        "network": NetworkConfig(width=16, norm="batch"),
        "training": TrainingConfig(epochs=40, batch_size=32, warmup=0.1, patience=None),
    },
    "many betas": {"beta": (0.1, 10.0)},
    "auto": {"n_latent": "auto"},
    "mixture": {"network": NetworkConfig(width=16, prior="mixture")},
    "flow": {"network": NetworkConfig(width=16, prior="flow")},
    "labels": {"labels_key": "cell_type", "label_hierarchy": COARSE},
    "early stop": {
        "training": TrainingConfig(epochs=200, batch_size=32, learning_rate=3e-2, warmup=0.1, patience=0.02)
    },
    "no validation": {"training": TrainingConfig(epochs=3, batch_size=32, validation_fraction=0.0)},
    "few cells": {"n_cells": 12, "training": TrainingConfig(epochs=3, batch_size=2)},
}


@contextmanager
def double_precision():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


class InDouble(Feed):
    def __init__(self, cells):
        self.cells = cells

    def batches(self, plan):
        for positions in plan:
            batch = self.cells.batch(positions)
            double = {"library": batch.library.double(), "numeric": batch.numeric.double()}
            yield replace(batch, x=in_double(batch.x), **double)


def in_double(x):
    return x.with_values(x.values.double())


class Recorder:
    """In place of the optimizer: keeps the gradients of each step."""

    def __init__(self, model):
        self.model, self.steps = model, []

    def zero_grad(self):
        self.model.zero_grad()

    def step(self, learning_rate, objective):
        gradients = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}
        self.steps.append(gradients | {"objective": objective.detach().clone()})
        return torch.zeros(())


def gradients_of(case):
    """Gradients and statistics of each step of `PLAN` in float64; nothing moves, but for running statistics."""
    settings = {"likelihood": "nb", "betas": None, "training": TrainingConfig()} | CASES[case]
    likelihood, betas, training = (settings.pop(name) for name in ("likelihood", "betas", "training"))
    keys = DataKeys(
        batch_key="batch",
        labels_key=settings.pop("labels_key", None),
        label_hierarchy=settings.pop("label_hierarchy", None),
    )
    adata = scvae.datasets.simulate(n_cells=49, n_genes=30, n_batches=2, likelihood=likelihood, truth=False, rng=0)
    schema, cells = read_fit(adata, keys, kind=KIND[likelihood])
    with double_precision():
        network = NetworkConfig(**{"width": 16} | settings)
        model = make_model(schema, likelihood, 3, network, seed=1, betas=betas).double().train()
        model.likelihood.start_from(summarize(cells, np.arange(49)))
        model.double()
        recorder = Recorder(model)
        step = make_step(model, recorder, InDouble(cells), training, Interrupt())
        dials = [Dials(0.7, 2.0 if training.capacity is not None else None, 0.0)] * len(PLAN)
        said = step.run(PLAN, dials, torch_generators(len(PLAN), 5, 2))
    buffers = {f"buffer {name}": tensor.clone() for name, tensor in model.named_buffers()}
    found = [gradients | {"said": row} for gradients, row in zip(recorder.steps, said, strict=True)]
    found[-1] |= buffers
    return found


def data(n_cells=120, **options):
    return scvae.datasets.simulate(n_cells=n_cells, n_genes=30, n_batches=2, truth=False, rng=0, **options)


def fit(adata, **options):
    defaults = {
        "rng": 3,
        "n_latent": 3,
        "batch_key": "batch",
        "network": NetworkConfig(width=16),
        "training": TrainingConfig(epochs=5, batch_size=32, warmup=0.1),
        "verbose": False,
    }
    return scvae.fit(adata, **defaults | options)


def record_of(model, adata):
    """What is to be compared of a fit."""
    history = model.history.drop(columns="seconds")
    digest = hashlib.blake2b()
    for tensor in model.network.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return {
        "weights": digest.hexdigest(),
        "embedding": hashlib.blake2b(adata.obsm["X_scvae"].tobytes()).hexdigest(),
        "history": {name: column.tolist() for name, column in history.items()},
        "seconds": model.history["seconds"].tolist(),
        "epochs": model.outcome.epochs,
        "best_epoch": model.outcome.best_epoch,
        "held_out_elbo": model.outcome.held_out_elbo,
        "kl": list(model.outcome.kl_per_dimension),
        "skipped": model.outcome.skipped_steps,
        "reason": model.outcome.reason,
        "seed": model.seed,
        "n_latent": model.n_latent,
    }


def fitted(case):
    options = dict(FITS[case])
    adata = data(options.pop("n_cells", 120))
    return record_of(fit(adata, **options), adata)
