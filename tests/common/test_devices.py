"""Which device is meant, and what happens where it lacks an operation."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

import scvae
from scvae.common.devices import resolve_device
from scvae.model.vae import VAE


@pytest.mark.parametrize(("there", "expected"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_cuda_where_there_is_a_device_and_the_cpu_elsewhere(monkeypatch, there, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device(expected)


def test_devices_are_found_by_name_and_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for name in ("cpu", "cuda", "cuda:1", "mps"):
        assert resolve_device(name) == torch.device(name)
        assert resolve_device(torch.device(name)) == torch.device(name)


@pytest.mark.parametrize("name", ["cuda:2", "mps"])
def test_a_device_that_is_not_there_is_refused(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"is not available: torch has [02] "):
        resolve_device(name)


@pytest.mark.parametrize("name", ["abacus", "meta", 3.5, "xpu"])
def test_what_is_no_device_is_refused_with_the_names_of_those_that_are(name):
    with pytest.raises(ValueError, match="must be 'auto', 'cpu', 'cuda', 'cuda:<n>' or 'mps'"):
        resolve_device(name)


# mps


def adata():
    return scvae.datasets.simulate(n_cells=40, n_genes=20, truth=False, rng=0)


def fit(data, device):
    return scvae.fit(data, n_latent=2, rng=0, device=device, verbose=False, training=scvae.TrainingConfig(epochs=2))


@pytest.fixture
def mps(monkeypatch):
    """An mps device that can do nothing but fail in the given way."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    original = VAE.to

    def fail_with(error):
        def to(network, device):
            if torch.device(device).type == "mps":
                raise error
            return original(network, device)

        monkeypatch.setattr(VAE, "to", to)

    return fail_with


@pytest.mark.parametrize(
    "error",
    [
        NotImplementedError("The operator 'aten::_standard_gamma' is not currently implemented for the MPS device"),
        TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64"),
    ],
)
def test_a_fit_moves_to_the_cpu_with_one_log_line_where_mps_lacks_an_operation(mps, caplog, error):
    mps(error)
    moved, plain = adata(), adata()
    with caplog.at_level(logging.WARNING):
        model = fit(moved, "mps")
    assert [r.message for r in caplog.records] == [f"mps lacks an operation ({error}); the whole fit moves to the CPU"]
    fit(plain, "cpu")
    assert model.device.type == "cpu"
    np.testing.assert_array_equal(moved.obsm["X_scvae"], plain.obsm["X_scvae"])


@pytest.mark.parametrize("error", [RuntimeError("MPS backend out of memory"), TypeError("a bug of ours")])
def test_any_other_error_on_mps_is_raised(mps, error):
    mps(error)
    with pytest.raises(type(error), match=str(error)):
        fit(adata(), "mps")


def test_an_operation_missing_on_another_device_is_raised(monkeypatch):
    def train(*_, **__):
        raise NotImplementedError("no such operation")

    monkeypatch.setattr("scvae.training.run.train", train)
    with pytest.raises(NotImplementedError):
        fit(adata(), "cpu")
