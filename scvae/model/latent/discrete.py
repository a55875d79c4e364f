"""Latent variables with a discrete part: every cell belongs to one of some groups."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .posterior import DiagonalNormal
from .prior import Prior

START_AT = 0.15  # of the training, from which on there are groups
MEMORY = 0.95  # share of a moving average that stays at each step; small fits have some 600 steps


class Discrete(Prior):
    """A prior with groups of cells.

    Parameters
    ----------
    n_groups
        Number of groups.

    Attributes
    ----------
    share
        Share of the training cells in each group: a moving average over steps.
    started
        1 once there are groups, else 0. For the first 15 % of the training there are none. Then they start at k-means
        clusters of cells: from random places, types share a group and groups stay empty.
    """

    kind: ClassVar[Literal["code", "category"]]
    learning_rate = 10.0  # of the centres, which have some 600 steps to get to the cells
    share: Tensor
    started: Tensor

    def __init__(self, n_groups: int) -> None:
        super().__init__()
        self.register_buffer("share", torch.zeros(n_groups))
        self.register_buffer("started", torch.tensor(0.0))

    @property
    def is_ready(self) -> bool:
        return bool(self.started)

    def wants_start(self, done: float) -> bool:
        return done > START_AT and not self.is_ready

    @abstractmethod
    def membership(self, posterior: DiagonalNormal) -> Float[Tensor, "cells groups"]:
        """Probability of each group, given the cell."""

    def kl(
        self, posterior: DiagonalNormal, draws: Float[Tensor, "*draws cells latent"]
    ) -> Float[Tensor, "cells latent"]:
        """`usage`, whose sum over dimensions is the KL."""
        return self.usage(posterior)

    @property
    def perplexity(self) -> float:
        """exp of the entropy of the shares: n if n groups have equal numbers of cells, 1 if all are in one."""
        share = self.share.double() / self.share.double().sum().clamp_min(1e-30)
        return float(torch.special.entr(share).sum().exp())

    def in_proportion(
        self, nats: Float[Tensor, " cells"], variance: Float[Tensor, " latent"]
    ) -> Float[Tensor, "cells latent"]:
        """The nats that the group takes, shared out among the dimensions by the variance between groups in each."""
        total = variance.sum()
        share = torch.where(total > 0, variance / total, 1.0 / len(variance))
        return nats[:, None] * share
