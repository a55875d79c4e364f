"""Where a training starts: the heads at marginal means, the groups of a discrete latent at k-means clusters."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Int

from ..common.rng import numpy_generator
from ..data.batches import chunks
from ..data.cells import Cells
from ..data.feeds import Feed
from ..data.summary import summarize
from ..kernels.context import working_on
from ..likelihoods.base import dense
from ..model.latent.discrete import Discrete
from ..model.vae import VAE
from ..model.views import ViewLayers, start_of_inputs

START = 7  # random stream; depends on the seed only
MOST_CELLS, AT_ONCE = 5_000, 512
FEW = 32  # groups, for which k-means starts several times
RESTARTS = 10


def start_heads(network: VAE, cells: Cells, trained_on: Int[np.ndarray, " cells"]) -> None:
    """Starts each head at the means of the training cells that have its measurement, or of all if none of them has.

    The encoder's first layer starts at centred inputs of the further measurements.
    """
    first, *further = (_among(trained_on, present) for present in cells.having)
    network.likelihood.start_from(summarize(cells, first))
    for layers, view, positions in zip(network.views, cells.views, further, strict=True):
        assert isinstance(layers, ViewLayers)
        of_view = cells.of_view(view)
        layers.head.start_from(summarize(of_view, positions))
        some = positions[:MOST_CELLS]
        inputs = [dense(layers.head.encoder_input(of_view.batch(some[part]))[0]) for part in chunks(len(some), AT_ONCE)]
        layers.start_at(*start_of_inputs(inputs))


def _among(positions: Int[np.ndarray, " cells"], present: Bool[np.ndarray, " all"]) -> Int[np.ndarray, " some"]:
    some = positions[present[positions]]
    return some if len(some) else np.flatnonzero(present)


@torch.no_grad()
def start_groups(network: VAE, feed: Feed, trained_on: Int[np.ndarray, " cells"], *, seed: int) -> None:
    """Starts the groups at k-means clusters of the posterior means of some training cells."""
    from sklearn.cluster import KMeans

    prior = network.prior
    assert isinstance(prior, Discrete)
    rng = numpy_generator(seed, START)
    some = np.sort(rng.permutation(trained_on)[:MOST_CELLS])
    was_training = network.training
    network.eval()
    with working_on(network.device):
        plan = [some[part] for part in chunks(len(some), AT_ONCE)]
        z = torch.cat([network.encode(batch).mean for batch in feed.batches(plan)])
    n_groups = min(len(prior.share), len(some))
    clusters = KMeans(n_groups, n_init=RESTARTS if n_groups <= FEW else 1, random_state=int(rng.integers(2**31)))
    prior.start_at(z, torch.from_numpy(clusters.fit_predict(z.double().cpu().numpy())).long().to(z.device))
    network.train(was_training)
