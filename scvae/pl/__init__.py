"""Plots of the results that a tool or a fit has written to an AnnData."""

from ._abundance import abundance
from ._beta_explorer import beta_explorer
from ._diagnose import diagnose
from ._history import history
from ._label_confidence import label_confidence
from ._latent import latent
from ._loadings import loadings
from ._posterior_predictive import posterior_predictive
from ._rate_distortion import rate_distortion
from ._views import views

__all__ = [
    "abundance",
    "beta_explorer",
    "diagnose",
    "history",
    "label_confidence",
    "latent",
    "loadings",
    "posterior_predictive",
    "rate_distortion",
    "views",
]
