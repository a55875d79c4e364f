"""A file that is changed in place behaves as one that is changed at once."""

import numpy as np
import pytest

from scvae.data.in_place import PAGE, InPlace, changed_in_place


@pytest.mark.parametrize("size", [0, 10, PAGE, 2 * PAGE + 904])
@pytest.mark.parametrize("seed", range(5))
def test_random_writes_and_reads_are_those_of_bytes_in_memory(tmp_path, size, seed):
    rng = np.random.default_rng(seed)
    path, old = tmp_path / "file", rng.bytes(size)
    path.write_bytes(old)
    expected = bytearray(old)
    with changed_in_place(path) as file:
        for _ in range(60):
            place, n = int(rng.integers(0, len(expected) + 1)), int(rng.integers(1, 2 * PAGE))
            file.seek(place)
            if rng.random() < 0.6:
                new = rng.bytes(n)
                file.write(new)
                expected[place : place + n] = new
            else:
                assert file.read(n) == bytes(expected[place : place + n])
        assert path.read_bytes()[:size] == old, "nothing old is touched before the end"
    assert path.read_bytes() == bytes(expected)


def test_what_is_undone_was_never_there(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old" * PAGE)
    with path.open("r+b", buffering=0) as raw:
        file = InPlace(path, raw)
        file.seek(5)
        file.write(bytes(4 * PAGE))
        file.undo()
    assert path.read_bytes() == b"old" * PAGE
