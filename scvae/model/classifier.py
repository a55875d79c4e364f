"""The probability of each label at a point of the latent space."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class Classifier(nn.Module):
    """log p(label | z) = log softmax(z W + b), a logistic regression on z in the network's own coordinates.

    The objective of a cell with a label has `term_weight` log p(label | z) beside log p(x | z), both in nats, at the
    same draw of z. With `term_weight` 1 it is a bound on log p(x, label), if labels and counts depend on z alone (after
    Kingma et al. 2014, "Semi-supervised learning with deep generative models", model M1 trained jointly).
    """

    def __init__(self, n_latent: int, n_labels: int, *, term_weight: float) -> None:
        super().__init__()
        self.term_weight = term_weight
        self.weight = nn.Parameter(torch.zeros(n_latent, n_labels))
        self.bias = nn.Parameter(torch.zeros(n_labels))

    def forward(self, z: Float[Tensor, "rows latent"]) -> Float[Tensor, "rows labels"]:
        """The logits."""
        return torch.addmm(self.bias, z, self.weight)

    def log_prob(self, z: Float[Tensor, "cells latent"], labels: Int[Tensor, " cells"]) -> Float[Tensor, " cells"]:
        """log p(label | z) in nats, 0 for cells without a label (-1)."""
        found = torch.log_softmax(self(z), dim=1).gather(1, labels.clamp_min(0)[:, None])[:, 0]
        return torch.where(labels >= 0, found, torch.zeros_like(found))

    @torch.no_grad()
    def drop_dimensions(self, dropped: Bool[Tensor, " latent"], constant: Float[Tensor, " latent"]) -> None:
        """Removes latent dimensions, which are fixed at the given values."""
        self.bias.add_(constant[dropped] @ self.weight[dropped])
        self.weight = nn.Parameter(self.weight[~dropped].clone())
