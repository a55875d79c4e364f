"""Adam in the package's groups against torch's own class."""

import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from scvae.model.optimizer import Adam, Group

FINITE = torch.tensor(1.0)


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((5, 3), (4,), (2, 2))]


def gradients(step):
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=generator) for shape in ((5, 3), (4,), (2, 2))]


def test_updates_are_those_of_torch():
    ours, theirs = parameters(), parameters()
    adam = Adam([Group(ours[:1]), Group(ours[1:2], rate=10.0), Group(ours[2:], decay=0.3)])
    peer = torch.optim.Adam(
        [{"params": theirs[:1]}, {"params": theirs[1:2]}, {"params": theirs[2:], "weight_decay": 0.3}], eps=1e-8
    )
    for step, rate in enumerate((1e-3, 3e-3, 2e-3, 1e-4)):
        for p, q, gradient in zip(ours, theirs, gradients(step), strict=True):
            p.grad, q.grad = gradient.clone(), gradient.clone()
        adam.step(rate, FINITE)
        for group, times in zip(peer.param_groups, (1.0, 10.0, 1.0), strict=True):
            group["lr"] = rate * times
        peer.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_a_parameter_without_a_gradient_stays():
    (first, second, _) = ours = parameters()
    adam = Adam([Group(ours), Group([])])
    before = second.detach().clone()
    first.grad = torch.ones_like(first)
    adam.step(0.1, FINITE)
    assert torch.equal(second, before)
    assert not torch.equal(first, parameters()[0])
    adam.zero_grad()
    assert first.grad is None


def test_a_centred_decay_adds_the_gradient_of_a_normal_prior_around_the_mean_of_each_row():
    (ours,), (theirs,) = parameters()[:1], parameters()[:1]
    adam, peer = Adam([Group([ours], decay=0.3, centred=True)]), Adam([Group([theirs])])
    for step in range(4):
        gradient = gradients(step)[0]
        prior = -0.15 * (theirs - theirs.mean(-1, keepdim=True)).square().sum()  # log-density, variance 1 / 0.3
        prior.backward()
        ours.grad, theirs.grad = gradient.clone(), gradient - theirs.grad
        adam.step(1e-2, FINITE)
        peer.step(1e-2, FINITE)
        adam.zero_grad()
        peer.zero_grad()
    torch.testing.assert_close(ours, theirs)
    assert not torch.equal(ours, parameters()[0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["objective", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_and_one_that_is_goes_on(bad, where):
    ours, theirs = parameters(), parameters()
    adam, peer = Adam([Group(ours)]), Adam([Group(theirs)])
    for step in range(3):
        for p, q, gradient in zip(ours, theirs, gradients(step), strict=True):
            p.grad, q.grad = gradient.clone(), gradient.clone()
        if step == 1:
            before = {name: tensor.clone() for name, tensor in adam.state().items()}
            if where == "gradient":
                ours[1].grad[2] = bad
            assert adam.step(1e-2, torch.tensor(bad if where == "objective" else 1.0)) == 1
            assert all(torch.equal(before[name], tensor) for name, tensor in adam.state().items())
        else:
            assert adam.step(1e-2, FINITE) == 0
            peer.step(1e-2, FINITE)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)


def test_a_restored_state_goes_on_to_the_same_bits():
    def run(steps, ours, adam, start=0):
        for step in range(start, steps):
            for p, gradient in zip(ours, gradients(step), strict=True):
                p.grad = gradient
            adam.step(1e-2, FINITE)

    whole = parameters()
    run(6, whole, Adam([Group(whole)]))
    first = parameters()
    stopped = Adam([Group(first)])
    run(3, first, stopped)
    second = [nn.Parameter(p.detach().clone()) for p in first]
    resumed = Adam([Group(second)])
    resumed.load({name: t.clone() for name, t in stopped.state().items()})
    run(6, second, resumed, start=3)
    assert all(torch.equal(p, q) for p, q in zip(whole, second, strict=True))


@pytest.mark.slow
def test_a_fit_and_a_mapping_on_the_cpu_import_no_compiler():
    code = (
        "import sys, scvae; adata = scvae.datasets.simulate(n_cells=80, n_genes=20, n_batches=2); "
        "new = (adata.obs['batch'] == 'batch_1').to_numpy(); old = adata[~new].copy(); "
        "options = {'rng': 0, 'device': 'cpu', 'verbose': False, 'training': scvae.TrainingConfig(epochs=1)}; "
        "model = scvae.fit(old, batch_key='batch', **options); "
        "scvae.tl.map_query(adata[new].copy(), model, epochs=1, verbose=False); "
        "print({'torch._dynamo', 'triton'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
