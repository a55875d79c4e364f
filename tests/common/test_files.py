"""Files and folders appear complete, at the place that is meant, and replace nothing else than files."""

import os
import stat
from pathlib import Path

import pytest

import scvae
from scvae.common.files import folder_written_whole, written_whole


def names_in(folder):
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture(scope="module")
def model():
    adata = scvae.datasets.simulate(n_cells=60, n_genes=20, rng=0)
    return scvae.fit(adata, n_latent=2, rng=0, verbose=False, training=scvae.TrainingConfig(epochs=1))


@pytest.mark.parametrize("content", [b"old", None], ids=["file", "nothing"])
def test_a_link_stays_one_and_its_target_is_written(tmp_path, model, content):
    (tmp_path / "real").mkdir()
    if content is not None:
        (tmp_path / "real" / "m").write_bytes(content)
    (tmp_path / "link").symlink_to("real/m")
    model.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert scvae.load(tmp_path / "real" / "m").n_latent == 2
    assert names_in(tmp_path / "real") == ["m"]


def test_what_is_no_regular_file_is_refused_and_stays(tmp_path, model):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to_pipe").symlink_to("pipe")
    (tmp_path / "circle").symlink_to("circle")
    ends = os.pipe()
    for name in ("pipe", "to_pipe", "circle", "/dev/null", f"/dev/fd/{ends[1]}"):
        with pytest.raises(FileExistsError, match="no regular file"):
            model.save(tmp_path / name)
    for end in ends:
        os.close(end)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert names_in(tmp_path) == ["circle", "pipe", "to_pipe"]


def test_a_file_that_appears_in_the_meantime_is_kept_unless_it_may_be_replaced(tmp_path):
    path = tmp_path / "out"
    with pytest.raises(FileExistsError, match="written by another program"), written_whole(path, may_replace=False):
        path.write_bytes(b"theirs")
    assert path.read_bytes() == b"theirs"
    assert names_in(tmp_path) == ["out"]


def test_a_link_to_a_folder_stays_one_and_the_folder_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "old").touch()
    (tmp_path / "link").symlink_to("real")
    with folder_written_whole(tmp_path / "link") as folder:
        (folder / "new").touch()
    assert (tmp_path / "link").is_symlink()
    assert names_in(tmp_path / "real") == ["new"]
