"""On one process nothing happens, and shares are cut so that nothing is lost; more processes: `tests/distributed`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import scvae
from scvae import cli
from scvae.common.distributed import ALONE, Ranks, process_group, ranks
from scvae.common.interrupt import Interrupt


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("n", [0, 1, 2, 7, 8, 41])
def test_shares_are_those_of_array_split(world, n):
    things = np.arange(n)
    shares = [things[Ranks(rank, world).part(n)] for rank in range(world)]
    for share, expected in zip(shares, np.array_split(things, world), strict=True):
        np.testing.assert_array_equal(share, expected)


def test_one_process_is_alone_and_first():
    assert ranks() is ALONE
    assert ALONE.is_first
    assert (ALONE.rank, ALONE.world) == (0, 1)


LAUNCHED = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.fixture
def launched(monkeypatch):
    """Sets the variables of torchrun, as if this process were the first of two."""
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "variables", [{"WORLD_SIZE": "1"}, *({name: empty} for name in LAUNCHED for empty in ("", " "))]
)
@pytest.mark.usefixtures("launched")
def test_no_process_group_is_made_for_one_process(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with process_group():
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("WORLD_SIZE", "two", "WORLD_SIZE is 'two', not a number"),
        ("RANK", "-1", "RANK is '-1', not a number"),
        ("RANK", "2", "RANK is 2, but WORLD_SIZE is 2"),
        ("MASTER_PORT", "1.5", "MASTER_PORT is '1.5', not a number"),
    ],
)
@pytest.mark.usefixtures("launched")
def test_variables_of_torchrun_without_sense_are_named_in_one_line(monkeypatch, capsys, tmp_path, name, value, message):
    monkeypatch.setenv(name, value)
    adata = scvae.datasets.simulate(n_cells=20, n_genes=10, truth=False, rng=0)
    adata.write_h5ad(tmp_path / "in.h5ad")
    with pytest.raises(ValueError, match=message):
        scvae.fit(adata, verbose=False)
    assert cli.main(["fit", str(tmp_path / "in.h5ad")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_one_process_says_its_own_words_only():
    assert ALONE.gather("word") == ["word"]
    assert ALONE.first(lambda: 3) == 3
    ALONE.agree({"seed": "3"})
    with ALONE.all_or_none():
        pass


def test_errors_of_one_process_stay_as_they_are():
    with pytest.raises(RuntimeError, match="closed"), process_group():
        raise RuntimeError("connection closed")


@pytest.mark.parametrize("given", ["soon", "0", "-3", "inf", "nan"])
@pytest.mark.usefixtures("launched")
def test_a_time_out_that_is_none_is_refused(monkeypatch, given):
    monkeypatch.setenv("SCVAE_TIMEOUT", given)
    adata = scvae.datasets.simulate(n_cells=20, n_genes=10, truth=False, rng=0)
    with pytest.raises(ValueError, match=f"SCVAE_TIMEOUT is {given!r}; set it to a number of seconds"):
        scvae.fit(adata, verbose=False)


def test_ctrl_c_is_held_back_once_and_then_let_through(monkeypatch):
    moments = iter([10.0, 10.5, 12.0])
    monkeypatch.setattr("scvae.common.interrupt.time.monotonic", lambda: next(moments))
    interrupt = Interrupt()
    interrupt._ask()
    interrupt._ask()  # torchrun and the terminal may both pass on the same one
    assert interrupt.asked_at == 10.0
    with pytest.raises(KeyboardInterrupt):
        interrupt._ask()


@pytest.mark.parametrize("command", ["embed", "diagnose"])
@pytest.mark.usefixtures("launched")
def test_commands_for_one_process_are_refused_under_torchrun(capsys, tmp_path, command):
    output = ["-o", str(tmp_path / "out.h5ad")]
    assert cli.main([command, str(tmp_path / "in.h5ad"), "--model", str(tmp_path / "model"), *output]) == 2
    assert f"{command} runs in one process only" in capsys.readouterr().err


@pytest.mark.usefixtures("launched")
def test_only_the_first_process_complains(monkeypatch, capsys, tmp_path):
    said = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert cli.main(["embed", str(tmp_path / "in.h5ad"), "--model", "m", "-o", str(tmp_path / "o.h5ad")]) == 2
        said.append(capsys.readouterr().err)
    assert said[0].startswith("scvae: error: ")
    assert said[1] == ""
