"""Loading of a model that `FittedModel.save` wrote."""

from __future__ import annotations

import os

import pandas as pd
import torch

from ..common.devices import resolve_device
from ..common.files import read_tensors
from ..config import NetworkConfig, TrainingConfig
from ..data.libraries import LibrarySizes
from ..data.schema import Schema
from ..kernels.context import computing
from ..model.vae import make_model
from .coverage import Coverage
from .density import Density
from .fitted import FORMAT, METRIC, FittedModel
from .known_labels import KnownLabels
from .metric import Metric
from .outcome import Outcome
from .reference import Reference
from .trained import range_of


@computing()
def load(path: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> FittedModel:
    """Reads a model that `FittedModel.save` wrote, on any machine or device.

    Parameters
    ----------
    path
        The safetensors file.
    device
        Device of the network, as in `scvae.fit`.

    Returns
    -------
    FittedModel
        The model, with exactly the weights that were saved.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the file is truncated, is not an scvae model or has a newer format, or if the device is not available.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> model = scvae.fit(adata, n_latent=5, rng=0, verbose=False)
    >>> path = model.save("model.safetensors")
    >>> scvae.load(path).genes.equals(adata.var_names)
    True
    """
    target = resolve_device(device)
    tensors, record = read_tensors(path, FORMAT)
    matrix = tensors.pop(METRIC, None)
    density = Density.taken_from(tensors, record.get("density"))  # older files lack it, as they do other entries
    labels = KnownLabels.taken_from(tensors, record.get("labels"))
    try:
        reference = Reference.taken_from(tensors, record.get("reference"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}; ask for the file again.") from error
    schema = Schema.from_json(record["schema"])
    network_config = NetworkConfig(**record["network_config"])
    beta = tuple(record["beta"]) if isinstance(record["beta"], list) else record["beta"]
    training_config = TrainingConfig(**record["training_config"])
    betas, inference = range_of(beta), training_config.inference
    network = make_model(
        schema, record["likelihood"], record["n_latent"], network_config, record["seed"], betas, inference
    )
    network.load_state_dict(tensors)
    return FittedModel(
        network=network.to(target).eval(),
        schema=schema,
        likelihood=record["likelihood"],
        n_latent=record["n_latent"],
        beta=beta,
        network_config=network_config,
        training_config=training_config,
        outcome=Outcome(**record["outcome"] | {"kl_per_dimension": tuple(record["outcome"]["kl_per_dimension"])}),
        history=pd.DataFrame(record["history"]),
        seed=record["seed"],
        versions=record["versions"],
        trained_on=record.get("trained_on", ""),  # "" matches no cells
        libraries=LibrarySizes.from_json(record["libraries"]) if record.get("libraries") else None,
        threads=record.get("threads"),
        metric=None if matrix is None else Metric(matrix.numpy()),
        density=density,
        labels=labels,
        reference=reference,
        licence=record.get("licence"),
        view_libraries=tuple(LibrarySizes.from_json(sizes) for sizes in record.get("view_libraries", ())),
        coverages=tuple(map(Coverage.from_json, record.get("coverages", ()))),
    )
