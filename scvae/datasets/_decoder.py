"""The random decoder of a simulation, from latent positions to genes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ._random import Codes, Floats

WIDTH = 128  # hidden units of the random decoder
# E[relu(u)] and Var[relu(u)] for u ~ N(0, 1), used to centre and scale the decoder's output
RELU_MEAN = 1 / np.sqrt(2 * np.pi)
RELU_VARIANCE = 0.5 - 1 / (2 * np.pi)


@dataclass(frozen=True, eq=False, slots=True)
class Decoder:
    """One hidden layer of relu units and an offset per batch, from z to f of each gene."""

    hidden_weight: Floats  # latent x width
    hidden_bias: Floats  # width
    output_weight: Floats  # width x genes
    output_bias: Floats  # genes
    batch_offset: Floats  # batches x genes

    @classmethod
    def draw(
        cls,
        n_latent: int,
        n_genes: int,
        n_batches: int,
        signal: float,
        expression_sd: float,
        batch_effect: float,
        rng: np.random.Generator,
        *,
        programs: Codes | None = None,
    ) -> Decoder:
        """Draws weights such that, over z ~ N(0, I), f of a gene has the drawn baseline as mean and sd `signal`.

        With `programs`, the dimension of z that each gene depends on, alone. The sd is then `signal` on average.
        """

        def normal(sd: float, *shape: int) -> Floats:
            return (sd * rng.standard_normal(shape, np.float32)).astype(np.float32)

        # directions of unit length, so that the input of each hidden unit is N(0, 1)
        hidden = normal(1.0, n_latent, WIDTH)
        hidden /= np.linalg.norm(hidden, axis=0)
        output = normal(signal / np.sqrt(WIDTH * RELU_VARIANCE), WIDTH, n_genes)
        if programs is not None:  # a unit reads one dimension, and a gene reads the units of one
            read = np.arange(WIDTH) % n_latent
            hidden = np.where(np.arange(n_latent)[:, None] == read, np.sign(hidden), np.float32(0.0))
            output = np.where(read[:, None] == programs, np.float32(np.sqrt(n_latent)) * output, np.float32(0.0))
        bias = normal(expression_sd, n_genes) - np.float32(RELU_MEAN) * output.sum(0)
        offset = normal(batch_effect if n_batches > 1 else 0.0, n_batches, n_genes)
        return cls(hidden, np.zeros(WIDTH, np.float32), output, bias, offset)

    def __call__(self, z: Floats, batches: Codes) -> Floats:
        """f, cells x genes."""
        features = np.maximum(z @ self.hidden_weight + self.hidden_bias, 0)
        f: Floats = features @ self.output_weight
        f += self.output_bias
        if len(self.batch_offset) > 1:
            f += self.batch_offset[batches]
        return f
