"""Two processes do what one does: each claim about the results of one run of `together.py` under torchrun."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest
import torch

import scvae
from tests.distributed.launch import torchrun
from tests.distributed.scenarios import CASES, FITS, data, fit, fitted, gradients_of, record_of

NATS = 0.01  # to which the held-out ELBO agrees
pytestmark = pytest.mark.slow


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder with the checkpoint of a run that was killed in epoch 3."""
    folder, calls, original = tmp_path_factory.mktemp("together"), [], scvae.training.train.evaluate

    def evaluate(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise Killed
        return original(*args, **options)

    with patch("scvae.training.train.evaluate", evaluate), pytest.raises(Killed):
        fit(data(), checkpoint=folder / "begun")
    data(700).write_h5ad(folder / "cells.h5ad")
    return folder


@pytest.fixture(scope="module")
def both(begun):
    """What each of the two processes found."""
    run = torchrun(Path(__file__).with_name("together.py"), begun)
    assert run.returncode == 0, run.stdout + run.stderr
    return [torch.load(begun / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def without_seconds(record):
    return {name: value for name, value in record.items() if name != "seconds"}


def test_rank_and_world_are_those_of_the_process_group(both):
    assert [found["ranks"] for found in both] == [(0, 2), (1, 2)]


def test_the_process_group_lasts_as_long_as_the_fit(both):
    assert all(found["group is left"] for found in both)


@pytest.mark.parametrize("case", CASES)
def test_gradients_in_float64_are_those_of_one_process(both, case):
    expected = gradients_of(case)
    for found in both:
        assert len(found["gradients"][case]) == len(expected)
        for step, (of_one, of_two) in enumerate(zip(expected, found["gradients"][case], strict=True)):
            assert of_two.keys() == of_one.keys()
            for name, value in of_one.items():
                assert value.dtype == torch.float64 or name.startswith("buffer"), name
                torch.testing.assert_close(of_two[name], value, rtol=1e-10, atol=1e-10, msg=f"{name}, step {step}")


@pytest.mark.parametrize("case", FITS)
def test_a_fit_ends_where_that_of_one_process_does(both, case):
    expected = fitted(case)
    for found in both:
        record = found["fits"][case]
        for name in ("n_latent", "seed", "skipped"):
            assert record[name] == expected[name]
        if case in ("no validation", "batch norm"):
            # a bias before batch normalisation has no gradient but rounding, which Adam makes steps of: they change
            # nothing in training, but the running mean has caught up with them only at the end
            assert record["history"]["train_elbo"] == pytest.approx(expected["history"]["train_elbo"], abs=NATS)
        elif case != "early stop":  # where rounding decides in which epoch it stops
            elbo = "validation_elbo"
            assert record["history"][elbo] == pytest.approx(expected["history"][elbo], abs=NATS)
        if case != "no validation":
            assert record["held_out_elbo"] == pytest.approx(expected["held_out_elbo"], abs=NATS)


@pytest.mark.parametrize("case", FITS)
def test_all_processes_return_the_same_model_history_and_embedding(both, case):
    first, second = (found["fits"][case] for found in both)
    assert first["history"]["epoch"] == list(range(1, first["epochs"] + 1)) or case == "auto"
    if case == "no validation":  # NaN is not itself
        for record in (first, second):
            record["history"] = {n: v for n, v in record["history"].items() if not n.startswith("validation")}
            del record["held_out_elbo"]
    assert first == second  # seconds included: those of rank 0


def test_early_stopping_is_decided_by_all(both):
    epochs = [found["fits"]["early stop"]["epochs"] for found in both]
    assert epochs[0] == epochs[1] < 200
    assert both[0]["fits"]["early stop"]["best_epoch"] < epochs[0]


@pytest.mark.parametrize("sizes", [(41, 8), (7, 8), (9, 1)], ids=str)
def test_each_cell_goes_by_once_in_an_epoch(both, sizes):
    """Uneven tails, fewer cells than processes x batch, and batches of a single cell, which one process takes."""
    n_cells, batch_size = sizes
    for epoch in (0, 1):
        plan = both[0]["positions"][sizes]["planned"][epoch]
        assert plan == both[1]["positions"][sizes]["planned"][epoch]
        parts = [found["positions"][sizes]["read"][epoch] for found in both]
        assert len(parts[0]) == len(parts[1]) == len(plan)
        for batch, first, second in zip(plan, *parts, strict=True):
            assert first + second == batch if batch_size > 1 else first == second == batch
        assert sorted(cell for batch in plan for cell in batch) == list(range(n_cells))


def test_each_process_reads_its_own_blocks_of_a_file_and_rank_0_writes_into_it(both):
    first, second = (found["on disk"] for found in both)
    for plan, *parts in zip(first["planned"], first["read"], second["read"], strict=True):
        assert [a + b for a, b in zip(*parts, strict=True)] == plan
        assert sorted(cell for batch in plan for cell in batch) == list(range(700))
    assert first["embedding"].shape == (700, 3)
    assert (first["embedding"] == second["embedding"]).all()


def test_other_data_in_one_process_are_refused_by_all_with_one_message(both):
    kinds, texts = zip(*(found["other data"] for found in both), strict=True)
    assert kinds == ("ValueError", "ValueError")
    assert texts[0] == texts[1]
    assert "data of rank 1 differ from those of rank 0" in texts[0]


def test_another_seed_in_one_process_is_refused_by_all(both):
    for found in both:
        assert found["other seed"][0] == "ValueError"
        assert "seed of rank 1 differ" in found["other seed"][1]


def test_an_error_in_one_process_is_told_to_the_others(both):
    assert both[1]["broken data"][0] == "ValueError"
    assert both[0]["broken data"][0] == "RankError"
    assert both[0]["broken data"][1] == f"rank 1 failed: ValueError: {both[1]['broken data'][1]}"


def test_a_loss_that_is_not_finite_in_one_process_is_skipped_by_all(both):
    assert [found["not finite once"]["skipped"] for found in both] == [1, 1]
    assert both[0]["not finite once"]["weights"] == both[1]["not finite once"]["weights"]


def test_all_give_up_where_one_process_never_has_a_finite_loss(both):
    assert [found["never finite"][0] for found in both] == ["NonFiniteLossError"] * 2
    assert both[0]["never finite"][1] == both[1]["never finite"][1]


def test_ctrl_c_in_one_process_ends_all_after_the_same_epoch_with_what_they_have(both):
    first, second = (found["stopped by hand"] for found in both)
    assert first["epochs"] == second["epochs"] == 2
    assert first["weights"] == second["weights"]
    assert first["reason"] == second["reason"] == "interrupted after 2 epochs; the best weights so far were kept"
    assert ["interrupted after 2 epochs" in text for text in first["warnings"]] == [True]
    assert second["warnings"] == []


def test_a_checkpoint_that_cannot_be_written_ends_all(both):
    assert both[0]["full disk"] == ("OSError", "[Errno 28] No space left on device")
    assert both[1]["full disk"][0] == "RankError"
    assert both[1]["full disk"][1].startswith("rank 0 failed: OSError: [Errno 28] No space left")


def test_the_checkpoint_of_another_run_is_refused_by_all_with_one_message(both):
    assert both[0]["of another run"] == both[1]["of another run"]
    kind, text = both[0]["of another run"]
    assert kind == "ValueError"
    assert "belongs to another run: beta differ" in text


def test_a_run_of_one_process_is_continued_by_two(both):
    adata = data()
    expected = record_of(fit(adata), adata)
    assert without_seconds(both[0]["continued"]) == without_seconds(both[1]["continued"])
    elbo = both[0]["continued"]["history"]["validation_elbo"]
    assert elbo == pytest.approx(expected["history"]["validation_elbo"], abs=NATS)


def test_with_dropout_all_processes_still_have_the_same_model(both):
    assert both[0]["dropout"] == both[1]["dropout"]
    assert both[0]["dropout"]["weights"] != both[0]["fits"]["nb"]["weights"]


def test_without_a_seed_one_is_drawn_for_all(both):
    assert both[0]["without a seed"] == both[1]["without a seed"]
    assert both[0]["without a seed"]["seed"] != 3
