"""Files and folders appear complete, at the place that is meant, and replace nothing else than files."""

import os
import stat
from pathlib import Path

import pytest

import scvae
from scvae import cli
from scvae.common.files import folder_written_whole, written_whole


def names_in(folder):
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture(scope="module")
def model():
    adata = scvae.datasets.simulate(n_cells=60, n_genes=20, rng=0)
    return scvae.fit(adata, n_latent=2, rng=0, verbose=False, training=scvae.TrainingConfig(epochs=1))


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path, monkeypatch):
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    adata = scvae.datasets.simulate(n_cells=60, n_genes=20, rng=0)
    adata.write_h5ad(home / "a.h5ad")
    quick = {"n_latent": 2, "rng": 0, "verbose": False, "training": scvae.TrainingConfig(epochs=1)}
    model = scvae.fit("~/a.h5ad", checkpoint="~/checkpoint", **quick)
    scvae.fit(Path("~/a.h5ad"), checkpoint="~/checkpoint", **quick | {"rng": None})  # whose seed is that of the file
    assert model.save("~/m") == home / "m"
    with pytest.raises(FileExistsError, match="overwrite=True"):
        model.save("~/m", overwrite=False)
    scvae.tl.embed(["~/a.h5ad"], scvae.load("~/m"))
    scvae.tl.denoise("~/a.h5ad", model, path="~/d.zarr")
    scvae.tl.embed(adata, model)
    scvae.pl.latent(adata, save="~/latent.png", show=False)
    assert cli.main(["embed", "~/a.h5ad", "--model=~/m", "--output=~/out.h5ad"]) == 0
    made = {"a.h5ad", "checkpoint", "d.zarr", "latent.png", "m", "out.h5ad"}
    assert {name for name in names_in(home) if name[0] != "."} == made  # libraries may make folders for themselves
    assert names_in(here) == []
    with pytest.raises(FileNotFoundError, match="there is no file ~nobody-of-this-name/a"):
        scvae.fit("~nobody-of-this-name/a", **quick)


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


def test_a_picture_follows_a_link_and_refuses_a_pipe(tmp_path):
    adata = scvae.datasets.simulate(n_cells=60, n_genes=20, rng=0)
    scvae.fit(adata, n_latent=2, rng=0, verbose=False, training=scvae.TrainingConfig(epochs=1))
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(FileExistsError, match="no regular file"):
        scvae.pl.latent(adata, save=tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("real.png")
    scvae.pl.latent(adata, save=tmp_path / "link.png")
    scvae.pl.latent(adata, save=tmp_path / "plain")
    assert names_in(tmp_path) == ["link.png", "pipe.png", "plain.png", "real.png"]
    assert (tmp_path / "link.png").is_symlink()


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
