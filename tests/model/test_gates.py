"""Layers that depend on β: between knots they are what is between, and a model of one β knows nothing of them."""

import torch

from scvae.model.blocks import Linear
from scvae.model.gates import make_gate

ROWS = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
KNOTS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.5, 0.5, 0.0], [0.0, 0.75, 0.25]])


def new(n_knots):
    layer = Linear(4, 3, n_knots=n_knots, generator=torch.Generator().manual_seed(1))
    if n_knots:
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    return layer


def test_a_layer_with_knots_interpolates_weights_and_biases():
    layer = new(3)
    weight, bias = layer.weight.view(4, 3, 3), layer.bias.view(3, 3)  # inputs, knots, outputs
    expected = torch.stack(
        [
            row @ (weight * knots[None, :, None]).sum(1) + (knots[:, None] * bias).sum(0)
            for row, knots in zip(ROWS, KNOTS, strict=True)
        ]
    )
    torch.testing.assert_close(layer(ROWS, KNOTS), expected)


def test_all_knots_begin_as_the_layer_of_one_beta():
    plain = Linear(4, 3, generator=torch.Generator().manual_seed(1))
    many = Linear(4, 3, n_knots=3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(many(ROWS, KNOTS), plain(ROWS))


def test_dropped_outputs_are_gone_at_every_knot():
    layer = new(3)
    before = layer(ROWS, KNOTS)
    layer.drop_outputs(torch.tensor([False, True, False]))
    torch.testing.assert_close(layer(ROWS, KNOTS), before[:, [0, 2]])


def test_dropped_inputs_go_on_as_constants_at_every_knot():
    layer = new(3)
    rows = ROWS.clone()
    rows[:, 1] = 0.7
    before = layer(rows, KNOTS)
    layer.drop_inputs(torch.tensor([False, True]), torch.tensor([9.0, 0.7]))
    torch.testing.assert_close(layer(rows[:, [0, 2, 3]], KNOTS), before)


def test_a_gate_scales_each_unit_between_0_and_2_by_its_knots():
    gate = make_gate(3, 4, generator=torch.Generator().manual_seed(3))
    scale = gate(torch.ones(5, 4), KNOTS)
    torch.testing.assert_close(scale[:3], 2.0 * torch.sigmoid(gate.logit))
    torch.testing.assert_close(scale[3], 2.0 * torch.sigmoid(gate.logit[:2].mean(0)))


def test_a_gate_begins_open_in_the_middle_of_the_range_and_monotone_in_beta():
    logit = make_gate(5, 64, generator=torch.Generator().manual_seed(3)).logit
    assert not logit[2].any()
    steps = logit.diff(dim=0)
    assert ((steps > 0).all(0) | (steps < 0).all(0)).all()


def test_without_knots_nothing_is_gated():
    gate = make_gate(0, 4, generator=torch.Generator().manual_seed(3))
    assert not list(gate.parameters())
    assert gate(ROWS, None) is ROWS
