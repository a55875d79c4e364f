"""The probability of each label at a point of the latent space."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class Classifier(nn.Module):
    """p(c | z) = softmax(z W + b)_c, a logistic regression on z in the network's own coordinates.

    The objective of a cell with a label has `term_weight` log p(label | z) beside log p(x | z), both in nats, at the
    same draw of z. A label stands for one c, or is a coarser name of several: p(label | z) is the sum over these. With
    `term_weight` 1 the objective is a bound on log p(x, label), if labels and counts depend on z alone (after Kingma et
    al. 2014, "Semi-supervised learning with deep generative models", model M1 trained jointly).

    Parameters
    ----------
    n_latent
        Number of latent dimensions.
    members
        Whether a label, given by its code, stands for each c.
    term_weight
        Weight of the label term.
    """

    def __init__(self, n_latent: int, members: Bool[Tensor, "codes labels"], *, term_weight: float) -> None:
        super().__init__()
        self.term_weight = term_weight
        self.weight = nn.Parameter(torch.zeros(n_latent, members.shape[1]))
        self.bias = nn.Parameter(torch.zeros(members.shape[1]))
        self.register_buffer("members", members, persistent=False)  # known from the schema
        self.members: Bool[Tensor, "codes labels"]

    def forward(self, z: Float[Tensor, "rows latent"]) -> Float[Tensor, "rows labels"]:
        """The logits."""
        return torch.addmm(self.bias, z, self.weight)

    def log_prob(self, z: Float[Tensor, "cells latent"], labels: Int[Tensor, " cells"]) -> Float[Tensor, " cells"]:
        """log p(label | z) in nats, 0 for cells without a label (-1)."""
        others = ~self.members[labels.clamp_min(0)]
        found = torch.log_softmax(self(z), dim=1).masked_fill(others, -torch.inf).logsumexp(1)
        return torch.where(labels >= 0, found, torch.zeros_like(found))

    @torch.no_grad()
    def drop_dimensions(self, dropped: Bool[Tensor, " latent"], constant: Float[Tensor, " latent"]) -> None:
        """Removes latent dimensions, which are fixed at the given values."""
        self.bias.add_(constant[dropped] @ self.weight[dropped])
        self.weight = nn.Parameter(self.weight[~dropped].clone())
