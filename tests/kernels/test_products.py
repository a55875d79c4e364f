"""Large products: as exact as any of float32, whichever library computes them, and no trace left behind."""

import pytest
import torch

from scvae.kernels import products
from scvae.kernels.products import large_products


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(128, 2000, 128), (127, 33, 401), (1, 1, 1), (300, 128, 2000)])
def test_products_have_the_digits_of_float32(shape):
    n, k, m = shape
    a, b = draw(n, k), draw(k, m, seed=1)
    with large_products():
        product = a @ b
    exact = a.double() @ b.double()
    scale = a.double().abs() @ b.double().abs()
    assert (product - exact).abs().le(1e-6 * scale).all()
    assert (product.double() - exact).abs().mean() < 1e-5 * scale.mean()


def test_the_switch_is_put_back_also_after_an_error():
    switch = products._switch()
    if switch is None:
        pytest.skip("torch before 2.9 has no such switch")
    before, overall = switch.fp32_precision, torch.get_float32_matmul_precision()
    with pytest.raises(RuntimeError, match="stop"), large_products():
        raise RuntimeError("stop")
    assert switch.fp32_precision == before
    assert torch.get_float32_matmul_precision() == overall


class Rounding:
    """A switch as processors with bfloat16 units have it: products are rounded while it is on."""

    def __init__(self):
        self.fp32_precision = "none"


def test_where_the_switch_costs_digits_it_stays_off(monkeypatch):
    switch = Rounding()
    plain = torch.Tensor.__matmul__

    def rounded(a, b):
        on = switch.fp32_precision == "bf16" and a.dtype == torch.float32
        return plain(a.bfloat16().float(), b.bfloat16().float()) if on else plain(a, b)

    monkeypatch.setattr(products, "_switch", lambda: switch)
    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    products._is_exact.cache_clear()
    try:
        assert not products._is_exact()
        with large_products():
            assert switch.fp32_precision == "none"
    finally:
        products._is_exact.cache_clear()
    assert switch.fp32_precision == "none"


def test_an_older_torch_without_the_switch_multiplies_as_ever(monkeypatch):
    expected = draw(130, 40) @ draw(40, 7)
    monkeypatch.setattr(products, "_switch", lambda: None)
    with large_products():
        assert torch.equal(draw(130, 40) @ draw(40, 7), expected)
