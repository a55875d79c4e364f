"""Which donors are compared with which, for designs that occur."""

import numpy as np
import pytest

from scvae.inference.donor_design import DesignError, design_of

DONORS, BATCHES = [f"d{i}" for i in range(6)], ["x", "y", "z"]


def sizes(*rows):
    """Rows of donor, batch, side, cells."""
    table = np.zeros((6, 3, 2), int)
    for donor, batch, side, cells in rows:
        table[donor, batch, side] += cells
    return table


def designed(*rows):
    return design_of(sizes(*rows), DONORS, BATCHES, least=2)


def test_donors_of_one_condition_each_are_one_block_and_three_cells_are_enough():
    found = designed((0, 0, 0, 50), (1, 0, 0, 3), (2, 0, 1, 40), (3, 0, 1, 60))
    assert not found.paired
    assert found.n_donors == (2, 2)
    assert found.donor[found.on_side].tolist() == [0, 1]
    assert set(found.block) == {0}
    assert found.notes == ()


def test_donors_with_both_conditions_are_paired_and_those_with_one_are_named():
    found = designed((0, 0, 0, 9), (0, 0, 1, 9), (1, 0, 0, 9), (1, 0, 1, 9), (2, 0, 1, 9), (3, 0, 1, 1))
    assert found.paired
    assert found.donor.tolist() == [0, 0, 1, 1] == found.block.tolist()
    assert found.on_side.tolist() == [True, False, True, False]
    assert "'d2'" in found.notes[0]


def test_few_donors_with_both_conditions_do_not_make_a_paired_design():
    rows = [(d, 0, d % 2, 20) for d in range(6)] + [(0, 0, 1, 5)]
    found = designed(*rows)
    assert not found.paired
    assert found.n_donors == (3, 3)
    assert found.on_side[found.donor == 0].tolist() == [True]
    assert "count on that with more cells: 'd0'" in found.notes[0]


def test_batches_with_several_donors_are_blocks_and_those_with_one_side_are_left_out():
    rows = [(0, 0, 0, 9), (1, 0, 1, 9), (2, 1, 0, 9), (3, 1, 1, 9), (4, 1, 1, 9), (5, 2, 1, 9)]
    found = designed(*rows)
    assert found.donor.tolist() == [0, 1, 2, 3, 4]
    assert found.block.tolist() == [0, 0, 1, 1, 1]
    assert "'z' with 'd5'" in found.notes[0]


def test_a_batch_for_each_donor_or_sample_is_no_block():
    nested = np.zeros((4, 4, 2), int)
    for donor in range(4):
        nested[donor, donor, donor // 2] = 9
    assert set(design_of(nested, DONORS[:4], [*BATCHES, "w"], least=2).block) == {0}
    samples = np.zeros((2, 4, 2), int)
    samples[0, 0, 0] = samples[0, 1, 1] = samples[1, 2, 0] = samples[1, 3, 1] = 9
    found = design_of(samples, DONORS[:2], [*BATCHES, "w"], least=2)
    assert found.paired
    assert not found.stratified


def test_pairs_are_compared_within_the_batches_that_hold_both_sides():
    rows = [(0, 0, 0, 10), (0, 0, 1, 30), (0, 1, 1, 50), (1, 1, 0, 8), (1, 1, 1, 8), (2, 0, 0, 9), (2, 1, 1, 9)]
    found = designed(*rows)
    assert found.stratified
    np.testing.assert_allclose(found.weight[0], [7.5, 0, 0])
    assert found.donor.tolist() == [0, 0, 1, 1]
    assert "share no batch are left out: 'd2'" in found.notes[0]


def test_what_donors_in_several_batches_leave_is_named():
    rows = [(d, b, d % 2, 10 + 80 * (d % 2 == b)) for d in range(4) for b in range(2)]
    assert "partly confounded: of the cells of a donor, batch 'x' has 90% in the group" in designed(*rows).notes[0]
    assert designed(*[(d, b, d % 2, 10 + d) for d in range(4) for b in range(2)]).notes == ()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(0, 0, 0, 50), (1, 0, 1, 9), (2, 0, 1, 9)], "the group has at least 2 cells of 1 donor.*'d0', and"),
        ([(0, 0, 0, 50), (1, 0, 0, 9), (2, 0, 1, 1)], "the reference has at least 2 cells of 0 donor.*none"),
        ([(d, int(d > 2), int(d > 2), 9) for d in range(6)], "confounded: no batch has donors of both sides"),
        ([(0, 0, 0, 9), (1, 0, 1, 9), (2, 1, 0, 9), (3, 1, 0, 9), (4, 2, 1, 9)], "nothing shows how much"),
        ([(d, s, s, 9) for d in range(3) for s in range(2)], "only 0 donor.* have cells of both sides in one batch"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_by_name(rows, message):
    with pytest.raises(DesignError, match=message):
        designed(*rows)
