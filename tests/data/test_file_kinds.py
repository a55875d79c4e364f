"""Files of other kinds are refused with what they are and what to call instead."""

import gzip

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from anndata.io import write_elem

import scvae
from scvae.data.destinations import zarr_version
from scvae.data.sources import opened

ADATA = ad.AnnData(
    np.ones((3, 2), dtype=np.float32), obs=pd.DataFrame({"barcodes": ["a", "b", "c"]}, index=list("xyz"))
)
ADATA.uns["mod"] = "of the user"


def h5ad(path):
    ADATA.write_h5ad(path)
    return path.read_bytes()


def write_mudata(group):
    group.attrs["encoding-type"] = "MuData"
    for name in ("obs", "var"):
        write_elem(group, name, getattr(ADATA, name))
    for name in ("prot", "rna"):
        write_elem(group, f"mod/{name}", ADATA)


def write_old(group):
    group["X"] = ADATA.X
    group["obs"] = np.array([(b"a",), (b"b",), (b"c",)], dtype=[("index", "S1")])
    group["var"] = np.array([(b"g",), (b"h",)], dtype=[("index", "S1")])


def write_loom(group):
    group["matrix"] = ADATA.X.T
    group.create_group("row_attrs")
    group.create_group("col_attrs")


HDF5 = {
    "10x.h5": (lambda group: group.create_dataset("matrix/barcodes", data=[1]), "10x file; pass sc.read_10x_h5"),
    "10x_2.h5": (lambda group: group.create_dataset("hg19/barcodes", data=[1]), "10x file; pass sc.read_10x_h5"),
    "a.loom": (write_loom, "loom file; pass sc.read_loom"),
    "a.h5mu": (write_mudata, r"MuData of 'rna', 'prot'; pass one of them: mudata.read_h5mu\(.*\)\['rna'\]"),
    "old.h5ad": (write_old, r"anndata before 0.7; write it again .*read_h5ad\(.*\).write_h5ad"),
}
BYTES = {
    "gzipped.h5ad": (lambda path: gzip.compress(h5ad(path)), "compressed with gzip; unpack it first"),
    "a.h5ad.gz": (lambda path: gzip.compress(h5ad(path)), "compressed with gzip; unpack it first"),
    "cut.h5ad": (lambda path: h5ad(path)[:3000], r"cut off \(3,000 of [\d,]+ bytes\)"),
    "empty.h5ad": (lambda path: b"", "empty"),
    "a.csv": (lambda path: b"gene,a\n", "table of text; pass sc.read_csv"),
    "a.TSV.gz": (lambda path: gzip.compress(b"gene\ta\n"), "table of text; pass sc.read_text"),
    "matrix.mtx.gz": (lambda path: gzip.compress(b"%%MatrixMarket"), "pass sc.read_10x_mtx"),
    "a.rds": (lambda path: gzip.compress(b"X\n"), "R object; write it as h5ad in R"),
    "pointer.h5ad": (lambda path: b"version https://git-lfs.github.com/spec/v1", "pointer of Git LFS"),
    "page.h5ad": (lambda path: b"<!DOCTYPE html>", "web page"),
}


@pytest.mark.parametrize("name", HDF5 | BYTES)
@pytest.mark.filterwarnings("ignore::anndata.OldFormatWarning")
def test_the_error_says_what_a_file_is_and_what_to_call(tmp_path, name):
    path = tmp_path / name
    if name in HDF5:
        with h5py.File(path, "w") as file:
            HDF5[name][0](file)
    else:
        path.write_bytes(BYTES[name][0](path))
    message = (HDF5 | BYTES)[name][1]
    with pytest.raises(ValueError, match=f"cannot read .*{name} as an h5ad file of anndata: it (is|has) .*{message}"):
        scvae.tl.highly_variable_genes(path)


def test_a_store_of_mudata_is_told_apart(tmp_path):
    zarr = pytest.importorskip("zarr")
    write_mudata(zarr.open_group(str(tmp_path / "a.zarr"), mode="w", **zarr_version(2)))
    with pytest.raises(ValueError, match=r"it is a MuData of 'rna', 'prot'; .*mudata.read_zarr\(.*\)\['rna'\]"):
        scvae.tl.highly_variable_genes(tmp_path / "a.zarr")


def test_names_in_an_h5ad_file_do_not_make_it_another_kind(tmp_path):
    h5ad(tmp_path / "a.h5ad")
    with opened(tmp_path / "a.h5ad", None) as source:
        assert source.adata.shape == (3, 2)


def test_a_folder_of_10x_is_told_apart(tmp_path):
    (tmp_path / "matrix.mtx.gz").touch()
    with pytest.raises(FileNotFoundError, match=r"no file that ends in .*; it holds a matrix of 10x: .*read_10x_mtx"):
        scvae.tl.highly_variable_genes(tmp_path)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://bucket/a.zarr", r"s3://bucket/a.zarr is an address.* pass anndata.read_zarr\('s3://bucket/a.zarr'\)"),
        ("https://example.org/a.h5ad", r"https://example.org/a.h5ad is an address.*; download it first$"),
        ("file:///data/a.h5ad", r"pass the path: /data/a.h5ad"),
    ],
)
def test_an_address_is_no_path(address, message):
    with pytest.raises(ValueError, match=message):
        scvae.tl.highly_variable_genes(address)


def test_the_part_of_a_container_is_asked_for():
    with pytest.raises(TypeError, match=r"adata is a MuData; pass .*: one of its modalities, e.g. mdata\['rna'\]"):
        scvae.tl.highly_variable_genes(type("MuData", (), {})())
