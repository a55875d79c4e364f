"""Where the groups of a discrete latent start: at k-means clusters of cells."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int

from ..common.rng import numpy_generator
from ..data.batches import chunks
from ..data.feeds import Feed
from ..kernels.context import working_on
from ..model.latent.discrete import Discrete
from ..model.vae import VAE

START = 7  # random stream; depends on the seed only
MOST_CELLS, AT_ONCE = 5_000, 512
FEW = 32  # groups, for which k-means starts several times
RESTARTS = 10


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
