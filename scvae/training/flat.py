"""The parameters of a network and their moments in flat arrays, as the kernel of `scvae.kernels.steps` takes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..likelihoods.base import OutputLayer
from ..likelihoods.counts import NegativeBinomial, Poisson, ZeroInflated
from ..model.encoder import Encoder
from ..model.optimizer import Adam
from ..model.vae import VAE

STATE = ("values", "gradients", "means", "squares")
LAYER = ("weight", "bias", "weight", "bias")
CountHead = NegativeBinomial | ZeroInflated | Poisson


class Flat:
    """Flat arrays of values, gradients and both moments. The network and the optimizer become views of them.

    Attributes
    ----------
    arrays
        The flat arrays and the places of the layers, by the names of fields of `scvae.kernels.records.JOB`.
    numbers
        Places of the parameters, their number, and learning rates and decays of the optimizer, by these names.
    """

    def __init__(self, network: VAE, optimizer: Adam) -> None:
        of_genes = list(_of_genes(network))
        late = {id(p) for p in of_genes}
        small = [p for p in network.parameters() if id(p) not in late]
        everything = [*small, *of_genes]
        starts = np.cumsum([0, *(p.numel() for p in everything)])
        self.arrays = {name: torch.zeros(int(starts[-1])).numpy() for name in STATE}
        start_of = {id(p): int(start) for p, start in zip(everything, starts, strict=False)}
        self._take_over(optimizer, start_of)
        self.arrays |= _layers(network, start_of)
        self.numbers = _places(network, start_of) | _rates(optimizer, head_of(network))
        self.numbers["n_small"] = int(sum(p.numel() for p in small))
        self.numbers["n_logits"] = sum(len(layer.bias) for layer in _outputs(head_of(network)))

    def _take_over(self, optimizer: Adam, start_of: dict[int, int]) -> None:
        """Moves values and moments into the flat arrays; the tensors of network and optimizer become views."""
        for group, means, squares in zip(optimizer.groups, optimizer.means, optimizer.squares, strict=True):
            for i, parameter in enumerate(group.parameters):
                start = start_of[id(parameter)]
                parameter.data = _moved(parameter.data, self.arrays["values"], start)
                means[i] = _moved(means[i], self.arrays["means"], start)
                squares[i] = _moved(squares[i], self.arrays["squares"], start)


def head_of(network: VAE) -> CountHead:
    """The likelihood, which is one of those that the kernel computes."""
    assert isinstance(network.likelihood, CountHead)
    return network.likelihood


def negative_binomial_of(head: CountHead) -> NegativeBinomial | None:
    """The part of the head with the dispersions."""
    if isinstance(head, ZeroInflated):
        return head.base
    return head if isinstance(head, NegativeBinomial) else None


def _outputs(head: CountHead) -> list[OutputLayer]:
    return [head.base.output, head.zero_logit] if isinstance(head, ZeroInflated) else [head.output]


def _of_genes(network: VAE) -> Iterator[nn.Parameter]:
    """The parameters that belong to genes, in the order of `scvae.kernels.records.PLACES`."""
    head = head_of(network)
    yield from (layer.bias for layer in _outputs(head))
    base = negative_binomial_of(head)
    if base is not None:
        yield base.log_inverse_dispersion
    assert isinstance(network.encoder, Encoder)
    yield network.encoder.genes.weight
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
    encoder, head = network.encoder, head_of(network)
    assert isinstance(encoder, Encoder)
    base, outputs = negative_binomial_of(head), _outputs(head)
    parameters = {
        "covariates": encoder.covariates.weight,
        "mean": encoder.mean.weight,
        "mean_bias": encoder.mean.bias,
        "log_variance": encoder.log_variance.weight,
        "log_variance_bias": encoder.log_variance.bias,
        "labels": None if network.classifier is None else network.classifier.weight,
        "labels_bias": None if network.classifier is None else network.classifier.bias,
        "bias": outputs[0].bias,
        "theta": base.log_inverse_dispersion if base else None,
        "genes": encoder.genes.weight,
        "output": outputs[0].weight,
    }
    return {f"{name}_place": _place(parameter, start_of) for name, parameter in parameters.items()}


def _rates(optimizer: Adam, head: CountHead) -> dict[str, Any]:
    """Learning rates of dispersions and output weights, relative to that of the network, and their decays."""
    by_parameter = {id(p): group for group in optimizer.groups for p in group.parameters}
    base = negative_binomial_of(head)
    of_output = by_parameter[id(_outputs(head)[0].weight)]
    of_theta = by_parameter[id(base.log_inverse_dispersion)] if base else of_output
    return {
        "theta_rate": of_theta.rate,
        "theta_decay": of_theta.decay,
        "output_rate": of_output.rate,
        "output_decay": of_output.decay,
    }
