"""The same call gives the same result wherever it is made: whatever is set, in threads, after a fork, after scanpy."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import scvae
from scvae import TrainingConfig
from scvae.kernels import context
from tests.kernels.test_context import SETTINGS, changed

ROOT = Path(__file__).parents[1]
SHORT = {"n_latent": 3, "verbose": False, "device": "cpu", "training": TrainingConfig(epochs=2)}
PUBLIC = {
    f"{module.__name__}.{name}": function
    for module in (scvae, scvae.tl)
    for name in module.__all__
    if inspect.isfunction(function := getattr(module, name))
}
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot"}


def cells():
    return scvae.datasets.simulate(n_cells=100, n_genes=40, n_batches=2, rng=0)


def digest(*arrays):
    return hashlib.blake2b(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


def weights(model):
    return [tensor.numpy() for _, tensor in sorted(model.network.state_dict().items())]


def fit(seed=0, **options):
    """What a fit writes, as a digest, and the number of threads that it used."""
    adata = cells()
    if options.get("likelihood") == "gaussian":
        adata.X = adata.X.log1p()
    model = scvae.fit(adata, rng=seed, **SHORT, **options)
    return digest(adata.obsm["X_scvae"], adata.obsm["X_scvae_var"]), model.threads


def embed(model):
    adata = cells()
    scvae.tl.embed(adata, model, n_samples=2)
    return digest(adata.obsm["X_scvae_samples"])


def with_unused(model):
    """The model as if its last dimension had no information."""
    kl = (*[1.0] * (model.n_latent - 1), 0.0)
    return dataclasses.replace(model, outcome=dataclasses.replace(model.outcome, kl_per_dimension=kl))


def everything(path):
    """A digest of the result of each of many functions."""
    adata, query = cells(), cells()
    adata.obs["group"], query.obs["batch"] = np.tile(["a", "b"], 50), "new"
    model = scvae.fit(adata, batch_key="batch", rng=0, **SHORT)
    model.save(path)
    found = {"fit": digest(*weights(model)), "gaussian": fit(likelihood="gaussian"), "zinb": fit(likelihood="zinb")}
    model = scvae.load(path)
    found["load"], found["embed"] = digest(*weights(model)), embed(model)
    found["map_query"] = digest(*weights(scvae.tl.map_query(query, model, epochs=2, verbose=False)))
    found["prune"] = digest(*weights(scvae.tl.prune(cells(), with_unused(model), epochs=1, verbose=False)))
    found["log_likelihood"] = digest(scvae.tl.log_likelihood(adata, model))
    found["sample"] = digest(scvae.tl.sample(adata, model, n_samples=1).X.toarray())
    found["diagnose"] = repr(scvae.tl.diagnose(adata, model))
    scvae.tl.denoise(adata, model)
    found["denoise"] = digest(adata.layers["scvae_denoised"])
    scvae.tl.neighbors(adata, model)
    found["neighbors"] = digest(adata.obsp["connectivities"].toarray())
    scvae.tl.rank_genes(adata, model, groupby="group")
    found["rank_genes"] = digest(*(adata.uns["rank_genes_groups"]["scores"][group] for group in "ab"))
    return found


def test_what_the_program_has_set_does_not_change_a_result(tmp_path):
    expected = everything(tmp_path / "model")
    with contextlib.ExitStack() as stack:
        for set_by_program, _, _ in SETTINGS.values():
            stack.enter_context(set_by_program())
        found = everything(tmp_path / "other")
    assert found == expected


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_function_that_computes_holds_its_settings(name):
    assert inspect.getsource(PUBLIC[name]).startswith("@computing()\n")


def test_fits_in_several_threads_give_the_bits_of_fits_alone():
    alone = [fit(seed) for seed in range(3)]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(fit, range(3))) == alone


class InTurn(TorchDispatchMode):
    """Notes products of matrices outside a turn, where another thread could change how they are rounded."""

    def __init__(self):
        super().__init__()
        self.inside, self.outside = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.__name__.split(".")[0] in PRODUCTS:
            in_turn = context._here.turn is not None
            self.inside += in_turn
            self.outside += [] if in_turn else [str(function)]
        return function(*args, **(kwargs or {}))


def test_products_of_matrices_are_made_in_turn(tmp_path):
    with InTurn() as noted:
        everything(tmp_path / "model")
    assert noted.inside > 100
    assert noted.outside == []


def in_child(function, arguments):
    """The results of a process made by fork; a failed assertion if there are none within a minute."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.map_async(function, arguments).get(timeout=60)


def in_grandchild(seed):
    """How a process ends that a process made by fork makes by fork."""
    if (child := os.fork()) == 0:
        fit(seed)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def refused(_=None):
    """The error where torch refuses to compute after a fork."""
    with pytest.raises(RuntimeError) as caught, context.computing():
        raise RuntimeError("Unable to handle autograd's threading in combination with fork-based multiprocessing.")
    return str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="fork is not safe or does not exist")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
class TestAfterAFork:
    def test_a_child_computes_what_its_parent_computes_with_one_thread(self, monkeypatch):
        monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)  # where tests run in several processes
        before = torch.get_num_threads()
        with changed(torch.set_num_threads, before, 1):
            expected = [fit(seed) for seed in (0, 1)]
        with changed(torch.set_num_threads, before, 2):
            assert fit()[1] == 2
            assert in_child(fit, [0, 1]) == expected
        assert all(threads == 1 for _, threads in expected)

    def test_a_child_uses_a_model_of_its_parent(self):
        adata = cells()
        model = scvae.fit(adata, rng=0, batch_key="batch", **SHORT)
        assert in_child(embed, [model, model]) == [embed(model)] * 2

    def test_a_child_of_a_child_computes(self):
        fit()
        assert in_child(in_grandchild, [0]) == [0]

    def test_a_child_of_a_thread_computes_while_another_thread_fits(self):
        with ThreadPoolExecutor(2) as pool:
            fits = pool.submit(lambda: [fit(seed) for seed in range(3)])
            child = pool.submit(in_child, fit, [0])
            assert child.result()[0] == in_child(fit, [0])[0]
            fits.result()

    def test_where_torch_cannot_compute_the_error_names_the_start_method(self):
        assert "get_context('spawn')" in in_child(refused, [None])[0]
        assert "spawn" not in refused()


AFTER_SCANPY = """
import sys, scanpy, torch
from tests.test_wherever import cells, fit
at_first = torch.get_num_threads()
if sys.argv[1] == "after":
    scanpy.pp.normalize_total(cells())
before = torch.get_num_threads()
print(at_first, before, *fit(), torch.get_num_threads())
"""


@pytest.mark.parametrize(("of_torch", "of_numba"), [("1", "2"), ("2", "1")])
@pytest.mark.slow
def test_a_fit_after_numba_functions_of_scanpy_gives_the_same_bits(of_torch, of_numba):
    threads = {"OMP_NUM_THREADS": of_torch, "NUMBA_NUM_THREADS": of_numba}
    first, before, bits, used, after = run(AFTER_SCANPY, "after", **threads).split()
    assert (first, before) == (of_torch, of_numba), "scanpy changes torch's number of threads no longer"
    assert (used, after) == (min(of_torch, of_numba), before)  # NUMBA_NUM_THREADS can only lower the number
    assert run(AFTER_SCANPY, "alone", **threads).split() == [of_torch, of_torch, bits, used, of_torch]


IN_THREADS = """
import sys, scvae
from concurrent.futures import ThreadPoolExecutor
from tests.test_wherever import SHORT, TrainingConfig, cells, digest, weights
cells().write_h5ad(sys.argv[1])
from_disk = SHORT | {"training": TrainingConfig(epochs=2, memory=1e-9)}
def fit(seed):
    return digest(*weights(scvae.fit(sys.argv[1], rng=seed, key_added=f"fit_{seed}", **from_disk)))
alone = [fit(seed) for seed in range(3)]
def again(seed):
    return digest(*weights(scvae.fit(cells(), rng=seed, **SHORT)))
in_memory = [again(seed) for seed in range(3)]
with ThreadPoolExecutor(3) as pool:
    print(list(pool.map(again, range(3))) == in_memory, fit(0) == alone[0])
"""


@pytest.mark.slow
def test_fits_in_threads_give_what_they_give_alone_whatever_layer_numba_has(tmp_path):
    variables = {"NUMBA_THREADING_LAYER": "workqueue", "NUMBA_NUM_THREADS": "2"}
    assert run(IN_THREADS, str(tmp_path / "cells.h5ad"), **variables) == "True True\n"


def run(code, *arguments, **environment):
    """What a new process of this Python prints."""
    paths = os.pathsep.join([str(ROOT), *(path for path in sys.path if path)])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": paths} | environment,
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
