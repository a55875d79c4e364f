"""The parameters of a network and their moments in flat arrays, as the kernel of `scvae.kernels.steps` takes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..likelihoods.base import OutputLayer
from ..likelihoods.continuous import Gaussian
from ..likelihoods.counts import NegativeBinomial, Poisson, ZeroInflated
from ..model.blocks import Linear
from ..model.encoder import Encoder
from ..model.optimizer import Adam
from ..model.vae import VAE
from ..model.views import ViewLayers

STATE = ("values", "gradients", "means", "squares")
LAYER = ("weight", "bias", "weight", "bias")
Head = NegativeBinomial | ZeroInflated | Poisson | Gaussian


class Flat:
    """Flat arrays of values, gradients and both moments. The network and the optimizer become views of them.

    Attributes
    ----------
    arrays
        The flat arrays, the places of the layers, and what labels stand for, by the names of fields of
        `scvae.kernels.records.JOB`.
    numbers
        Places of the parameters and their number, by these names.
    of_measurements
        The same for each measurement, with learning rates and decays of the optimizer.
    """

    def __init__(self, network: VAE, optimizer: Adam) -> None:
        of_genes = [p for part in measurements_of(network) for p in _of_genes(*part)]
        early, late = list(network.prior.parameters()), [*_of_covariates(network), *of_genes]
        placed = {id(p) for p in (*early, *late)}
        everything = [*early, *(p for p in network.parameters() if id(p) not in placed), *late]
        starts = np.cumsum([0, *(p.numel() for p in everything)])
        self.arrays = {name: torch.zeros(int(starts[-1])).numpy() for name in STATE}
        start_of = {id(p): int(start) for p, start in zip(everything, starts, strict=False)}
        self._take_over(optimizer, start_of)
        self.arrays |= _layers(network, start_of)
        members = torch.empty(0) if network.classifier is None else network.classifier.members.float()
        self.arrays["members"] = members.numpy()
        self.numbers = _places(network, start_of) | {"n_small": start_of[id(of_genes[0])]}
        term_weights = [1.0, *(view.term_weight for view in views_of(network))]
        self.of_measurements = [
            _of_measurement(head, first, start_of) | _rates(optimizer, head) | {"term_weight": weight}
            for (head, first), weight in zip(measurements_of(network), term_weights, strict=True)
        ]

    def _take_over(self, optimizer: Adam, start_of: dict[int, int]) -> None:
        """Moves values and moments into the flat arrays; the tensors of network and optimizer become views."""
        for group, means, squares in zip(optimizer.groups, optimizer.means, optimizer.squares, strict=True):
            for i, parameter in enumerate(group.parameters):
                start = start_of[id(parameter)]
                parameter.data = _moved(parameter.data, self.arrays["values"], start)
                means[i] = _moved(means[i], self.arrays["means"], start)
                squares[i] = _moved(squares[i], self.arrays["squares"], start)


def measurements_of(network: VAE) -> list[tuple[Head, Linear]]:
    """The head of each measurement, which is one of those that the kernel computes, and its part of the first layer."""
    assert isinstance(network.encoder, Encoder)
    parts = [(network.likelihood, network.encoder.genes), *((view.head, view.values) for view in views_of(network))]
    return [(head, first) for head, first in parts if isinstance(head, Head)]


def views_of(network: VAE) -> Iterator[ViewLayers]:
    """The layers of each further measurement."""
    for view in network.views:
        assert isinstance(view, ViewLayers)
        yield view


def base_of(head: Head) -> NegativeBinomial | Poisson | Gaussian:
    """The head without zero inflation."""
    return head.base if isinstance(head, ZeroInflated) else head


def _scales_of(head: Head) -> nn.Parameter | None:
    """The parameters of the head for each gene alone: its dispersions, or scales of real values."""
    base = base_of(head)
    if isinstance(base, Poisson):
        return None
    return base.log_free_scale if isinstance(base, Gaussian) else base.log_inverse_dispersion


def _outputs(head: Head) -> list[OutputLayer]:
    return [head.base.output, head.zero_logit] if isinstance(head, ZeroInflated) else [head.output]


def _of_covariates(network: VAE) -> Iterator[nn.Parameter]:
    """The rows of the matrix for all covariates of the encoder; a bias of a view is a row for whether a cell has it."""
    assert isinstance(network.encoder, Encoder)
    for view in views_of(network):
        yield from (view.covariates.weight, view.values.bias)
    yield network.encoder.covariates.weight


def _of_genes(head: Head, first: Linear) -> Iterator[nn.Parameter]:
    """The parameters that belong to genes, in the order of `scvae.kernels.records.PLACES`."""
    yield from (layer.bias for layer in _outputs(head))
    scales = _scales_of(head)
    if scales is not None:
        yield scales
    yield first.weight
    yield from (layer.weight for layer in _outputs(head))


def _moved(tensor: Tensor, flat: NDArray[np.float32], start: int) -> Tensor:
    view = torch.from_numpy(flat[start : start + tensor.numel()]).view(tensor.shape)
    view.copy_(tensor)
    return view


def _place(parameter: object, start_of: dict[int, int]) -> int:
    return start_of[id(parameter)] if isinstance(parameter, nn.Parameter) else 0


def _layers(network: VAE, start_of: dict[int, int]) -> dict[str, NDArray[Any]]:
    """Places of the layers' weights and biases, and of those of the normalisation."""

    def table(linear: list[nn.Module], module: nn.Module) -> NDArray[np.int64]:
        rows = [
            [_place(getattr(part, name, None), start_of) for part, name in zip((a, a, n, n), LAYER, strict=True)]
            for a, n in zip(linear, getattr(module, "norms", ()), strict=True)
        ]
        return np.array(rows, dtype=np.int64).reshape(-1, len(LAYER))

    encoder, decoder = network.encoder, network.decoder
    assert isinstance(encoder, Encoder)
    return {
        "encoder": table([encoder.genes, *encoder.hidden], encoder),
        "decoder": table([*getattr(decoder, "hidden", ())], decoder),
    }


def _places(network: VAE, start_of: dict[int, int]) -> dict[str, Any]:
    encoder = network.encoder
    assert isinstance(encoder, Encoder)
    parameters = {
        "covariates": next(_of_covariates(network)),
        "mean": encoder.mean.weight,
        "mean_bias": encoder.mean.bias,
        "log_variance": encoder.log_variance.weight,
        "log_variance_bias": encoder.log_variance.bias,
        "labels": None if network.classifier is None else network.classifier.weight,
        "labels_bias": None if network.classifier is None else network.classifier.bias,
    }
    return {f"{name}_place": _place(parameter, start_of) for name, parameter in parameters.items()}


def _of_measurement(head: Head, first: Linear, start_of: dict[int, int]) -> dict[str, Any]:
    """Places and sizes of the parameters of a measurement."""
    theta, outputs = _scales_of(head), _outputs(head)
    parameters = {"bias": outputs[0].bias, "theta": theta, "genes": first.weight, "output": outputs[0].weight}
    return {f"{name}_place": _place(parameter, start_of) for name, parameter in parameters.items()} | {
        "n_genes": len(first.weight),
        "n_logits": sum(len(layer.bias) for layer in outputs),
        "n_theta": 0 if theta is None else theta.numel() // len(first.weight),
    }


def _rates(optimizer: Adam, head: Head) -> dict[str, Any]:
    """Learning rates of dispersions (or scales) and output weights, relative to the network's, and their decays."""
    by_parameter = {id(p): group for group in optimizer.groups for p in group.parameters}
    theta = _scales_of(head)
    of_output = by_parameter[id(_outputs(head)[0].weight)]
    of_theta = of_output if theta is None else by_parameter[id(theta)]
    return {
        "theta_rate": of_theta.rate,
        "theta_decay": of_theta.decay,
        "output_rate": of_output.rate,
        "output_decay": of_output.decay,
    }
