"""The parameters of a network and their moments in flat arrays, as the kernel of `scvae.kernels.steps` takes them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..kernels.records import Groups, Places, State
from ..likelihoods.base import OutputLayer
from ..likelihoods.counts import NegativeBinomial, Poisson, ZeroInflated
from ..model.optimizer import Adam
from ..model.vae import VAE

CountHead = NegativeBinomial | ZeroInflated | Poisson


class Flat:
    """Flat arrays of values, gradients and both moments. The network and the optimizer become views of them.

    Attributes
    ----------
    state
        The arrays.
    places
        Where each parameter begins.
    groups
        Learning rates and decays of the optimizer.
    n_logits
        Outputs of the output layers.
    """

    def __init__(self, network: VAE, optimizer: Adam) -> None:
        of_genes = list(_of_genes(network))
        late = {id(p) for p in of_genes}
        small = [p for p in network.parameters() if id(p) not in late]
        everything = [*small, *of_genes]
        starts = np.cumsum([0, *(p.numel() for p in everything)])
        self.state = State(*(torch.zeros(int(starts[-1])).numpy() for _ in State._fields))
        start_of = {id(p): int(start) for p, start in zip(everything, starts, strict=False)}
        self._take_over(optimizer, start_of)
        self.places = _places(network, start_of, int(sum(p.numel() for p in small)))
        self.groups = _groups(optimizer, head_of(network))
        self.n_logits = sum(len(layer.bias) for layer in _outputs(head_of(network)))

    def _take_over(self, optimizer: Adam, start_of: dict[int, int]) -> None:
        """Moves values and moments into the flat arrays; the tensors of network and optimizer become views."""
        for group, means, squares in zip(optimizer.groups, optimizer.means, optimizer.squares, strict=True):
            for i, parameter in enumerate(group.parameters):
                start = start_of[id(parameter)]
                parameter.data = _moved(parameter.data, self.state.values, start)
                means[i] = _moved(means[i], self.state.means, start)
                squares[i] = _moved(squares[i], self.state.squares, start)


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
    """The parameters that belong to genes, in the order of `Places`."""
    head = head_of(network)
    yield from (layer.bias for layer in _outputs(head))
    base = negative_binomial_of(head)
    if base is not None:
        yield base.log_inverse_dispersion
    yield network.encoder.genes.weight
    yield from (layer.weight for layer in _outputs(head))


def _moved(tensor: Tensor, flat: NDArray[np.float32], start: int) -> Tensor:
    view = torch.from_numpy(flat[start : start + tensor.numel()]).view(tensor.shape)
    view.copy_(tensor)
    return view


def _places(network: VAE, start_of: dict[int, int], n_small: int) -> Places:
    encoder, decoder, head = network.encoder, network.decoder, head_of(network)

    def place(parameter: object) -> int:
        return start_of[id(parameter)] if isinstance(parameter, nn.Parameter) else 0

    def layers(linear: list[nn.Module], module: nn.Module) -> np.ndarray:
        rows = [
            [place(getattr(part, name, None)) for part, name in zip((a, a, n, n), NAMES, strict=True)]
            for a, n in zip(linear, getattr(module, "norms", ()), strict=True)
        ]
        return np.array(rows, dtype=np.int64).reshape(-1, len(NAMES))

    base = negative_binomial_of(head)
    outputs = _outputs(head)
    return Places(
        encoder=layers([encoder.genes, *encoder.hidden], encoder),
        decoder=layers([*getattr(decoder, "hidden", ())], decoder),
        covariates=place(encoder.covariates.weight),
        mean=place(encoder.mean.weight),
        mean_bias=place(encoder.mean.bias),
        log_variance=place(encoder.log_variance.weight),
        log_variance_bias=place(encoder.log_variance.bias),
        bias=place(outputs[0].bias),
        theta=place(base.log_inverse_dispersion) if base else place(encoder.genes.weight),
        genes=place(encoder.genes.weight),
        output=place(outputs[0].weight),
        n_small=n_small,
    )


NAMES = ("weight", "bias", "weight", "bias")


def _groups(optimizer: Adam, head: CountHead) -> Groups:
    """Rates and decays of dispersions and output weights."""
    by_parameter = {id(p): group for group in optimizer.groups for p in group.parameters}
    base = negative_binomial_of(head)
    of_output = by_parameter[id(_outputs(head)[0].weight)]
    of_theta = by_parameter[id(base.log_inverse_dispersion)] if base else of_output
    return Groups(
        *(np.float32(x) for x in (of_theta.rate, of_theta.decay, of_output.rate, of_output.decay)),
    )
