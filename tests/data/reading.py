"""`read_fit` with its keys one by one, as tests vary them."""

from scvae.data import intake
from scvae.data.intake import DataKeys


def read_fit(adata, *, kind, memory=intake.MEMORY, **keys):
    return intake.read_fit(adata, DataKeys(**keys), kind=kind, memory=memory)
