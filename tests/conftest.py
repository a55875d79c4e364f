"""Fixtures that several test modules share."""

import hashlib
import os

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

# of several pytest-xdist workers, each has its share of the cores, and so have the processes that it starts
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:
    torch.set_num_threads(max(1, torch.get_num_threads() // WORKERS))
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):  # a thread too many waits by turning
        os.environ.setdefault(name, str(torch.get_num_threads()))


def _bytes_of(value):
    if sparse.issparse(value):
        return b"".join(np.asarray(part).tobytes() for part in (value.indptr, value.indices, value.data))
    if isinstance(value, pd.DataFrame):
        names = repr([*value.columns, *value.index, *value.dtypes]).encode()
        return names + pd.util.hash_pandas_object(value).to_numpy().tobytes()
    return np.ascontiguousarray(value).tobytes()


@pytest.fixture
def digest():
    """A function: AnnData -> {slot: hash of its content}, to tell what a call has changed."""

    def hashes(adata):
        slots = {"X": adata.X, "obs": adata.obs, "var": adata.var}
        for name in ("layers", "obsm", "varm", "obsp"):
            slots |= {f"{name}[{key}]": value for key, value in getattr(adata, name).items()}
        content = {name: hashlib.blake2b(_bytes_of(value)).hexdigest() for name, value in slots.items()}
        return content | {"uns": repr(sorted(adata.uns)), "is_view": str(adata.is_view)}

    return hashes
