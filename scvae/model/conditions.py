"""Batch and covariates of a cell as columns for linear layers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ..data.batches import Batch


class Conditions(nn.Module):
    """One-hot columns of every categorical covariate (the batch first), then the standardised numeric covariates.

    Parameters
    ----------
    n_categories
        Number of categories of each categorical covariate.
    n_numeric
        Number of numeric covariates.
    mapped
        Columns of the categories that were mapped onto the fitted model.
    """

    mapped: Tensor
    fitted: Tensor

    def __init__(self, n_categories: tuple[int, ...], n_numeric: int, *, mapped: Iterable[int] = ()) -> None:
        super().__init__()
        self.n_categories = n_categories
        self.n_columns = sum(n_categories) + n_numeric
        later = set(mapped)
        for name, columns in (("mapped", later), ("fitted", set(range(self.n_columns)) - later)):
            self.register_buffer(name, torch.tensor(sorted(columns), dtype=torch.int64), persistent=False)

    def forward(self, batch: Batch) -> Float[Tensor, "cells columns"]:
        columns = [one_hot(batch.codes[:, i], n) for i, n in enumerate(self.n_categories)]
        return torch.cat([*(c.to(batch.numeric.dtype) for c in columns), batch.numeric], dim=1)

    def of_mapped(self, codes: Int[Tensor, "cells categoricals"]) -> Bool[Tensor, " cells"]:
        """Which cells have a category that was mapped onto the fitted model."""
        first = torch.tensor([0, *self.n_categories], device=codes.device).cumsum(0)[:-1]
        return torch.isin(codes + first, self.mapped).any(1)
