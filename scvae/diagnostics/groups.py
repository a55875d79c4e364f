"""How cells use the codes or categories of a discrete latent, and what a code tells of its cell."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import entr

from ..inference.fitted import FittedModel
from ..inference.groups import Moments, discrete_of, memberships
from ..kernels.context import working_on
from ..model.latent.codebook import Codebook
from .information import Information


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupUse:
    """Use of the groups of a discrete latent.

    Parameters
    ----------
    kind
        "code" or "category".
    n_cells
        Number of cells in each group: those for which it is the most probable one.
    perplexity
        exp of the entropy of the mean probabilities: n if n groups have equally many cells, 1 if all are in one.
    information
        I_q(x; group) in nats, of these cells: the entropy of the mean probabilities minus the mean entropy.
    """

    kind: Literal["code", "category"]
    n_cells: Int[np.ndarray, " groups"]
    perplexity: float
    information: float

    @property
    def empty(self) -> int:
        """Number of groups without a cell."""
        return int((self.n_cells == 0).sum())

    @property
    def told_apart(self) -> float:
        """Number of equally large groups, each cell in one for certain, that would tell as much of a cell."""
        return math.exp(self.information)


def group_use(model: FittedModel, moments: Moments) -> GroupUse | None:
    """Use of the groups by cells with these posteriors; None for a latent without groups."""
    prior = discrete_of(model)
    if prior is None:
        return None
    probability = memberships(model, moments).astype(np.float64)
    total = float(entr(probability.mean(0)).sum())
    return GroupUse(
        kind=prior.kind,
        n_cells=np.bincount(probability.argmax(1), minlength=probability.shape[1]),
        perplexity=math.exp(total),
        information=max(0.0, total - float(entr(probability).sum(1).mean())),
    )


def of_codes(
    book: Codebook, mean: Float[np.ndarray, "cells latent"]
) -> tuple[Float[np.ndarray, "cells latent"], Information]:
    """The code of each cell with this output of the encoder, and what codes tell of the cells.

    A cell has one code, so that all is exact for these cells: the mean rate is the cross entropy of the codes with
    p(code), I_q(x; code) their entropy, and KL(q(code) || p(code)) the rest. What a dimension tells is its share of the
    variance between codes.
    """
    with torch.no_grad(), working_on(torch.device("cpu")):
        book = copy.deepcopy(book).cpu().double()
        code = book.nearest(torch.from_numpy(mean))
        log_prior, codes = book.log_weight[code].numpy(), book.codes[code].numpy()
        share = book.in_proportion(torch.ones(1), book.variance)[0].numpy()
    log_share = np.log(np.bincount(code)[code] / len(code))
    information, apart = -log_share, log_share - log_prior
    error = 1.0 / math.sqrt(len(code))
    told = Information(
        kl=float(-log_prior.mean()),
        mutual_information=float(information.mean()),
        mutual_information_error=error * float(information.std(ddof=1)),
        marginal_kl=float(apart.mean()),
        marginal_kl_error=error * float(apart.std(ddof=1)),
        density_kl=math.nan,
        density_kl_error=math.nan,
        upper_bound=float(-log_prior.mean()),
        per_dimension=share * float(information.mean()),
        marginal_kl_per_dimension=share * float(apart.mean()),
        cap=math.log(len(code)),
    )
    return codes, told
