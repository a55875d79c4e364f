"""What a file is that scvae does not read, and what to call instead."""

from __future__ import annotations

import contextlib
import gzip
import re
from pathlib import Path
from typing import Any, Final

from ..common.checks import listing

GZIP, HDF5 = b"\x1f\x8b", b"\x89HDF"
ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")  # a Path has lost one of the slashes
TRUNCATED = re.compile(r"truncated file: eof = (\d+).* stored_eof = (\d+)")  # in an error of HDF5
OLD = ("obs", "var", "obsm", "varm", "uns")  # arrays before anndata 0.7, groups since
IN_R = "it is an R object; write it as h5ad in R, e.g. with anndataR::write_h5ad or zellkonverter::writeH5AD"
BEGINNINGS: Final = {
    b"version https://git-lfs": "it is a pointer of Git LFS; git lfs pull gets the file itself",
    b"<": "it is a web page or XML, perhaps the answer to a failed download; download it again",
    b"PK\x03\x04": "it is an archive (zip); unpack it first",
}
ENDINGS: Final = {
    ".csv": "it is a table of text; pass sc.read_csv({path}), cells x genes",
    ".tsv": "it is a table of text; pass sc.read_text({path}), cells x genes",
    ".txt": "it is a table of text; pass sc.read_text({path}), cells x genes",
    ".mtx": "it is a matrix of text; pass sc.read_10x_mtx({folder}), or sc.read_mtx({path}) with names, cells x genes",
    ".rds": IN_R,
    ".rda": IN_R,
    ".rdata": IN_R,
    ".parquet": "it is a table; pass anndata.AnnData(pandas.read_parquet({path})), cells x genes",
}


def refuse_address(path: Path) -> None:
    """Raises ValueError if this is the address of a file elsewhere, which is not read."""
    found = ADDRESS.match(str(path))
    if found is None or path.exists():
        return
    name = str(path)[found.end() :]
    if found[1] == "file":
        raise ValueError(f"file:///{name} is an address; pass the path: /{name}")
    address = f"{found[1]}://{name}"
    opened = f", or pass anndata.read_zarr({address!r})" if path.suffix == ".zarr" else ""
    raise ValueError(f"{address} is an address, but only files on disk are read; download it first{opened}")


def refuse_other_kinds(group: Any, path: Path) -> None:
    """Raises ValueError if an open file is not of the kind that anndata writes now, though it can be read in part."""
    words = _kind_of_group(group)
    if words is not None:
        raise ValueError(words.replace("{path}", repr(str(path))))


def why_unreadable(path: Path, error: Exception) -> str:
    """What a file is that could not be read, and what to call instead; the text of the error if that is unknown."""
    words = None
    with contextlib.suppress(OSError, RuntimeError, EOFError, ImportError):
        words = _kind_of_store(path) if path.is_dir() else _kind_of_file(path)
    if words is None:
        cut = TRUNCATED.search(str(error))
        if cut is None:
            return str(error)
        words = f"it is cut off ({int(cut[1]):,} of {int(cut[2]):,} bytes); copy or download it again"
    return words.replace("{path}", repr(str(path))).replace("{folder}", repr(str(path.parent)))


def _kind_of_store(path: Path) -> str | None:
    import zarr

    return _kind_of_group(zarr.open_group(str(path), mode="r"))


def _kind_of_file(path: Path) -> str | None:
    import h5py

    with path.open("rb") as file:
        start, name = file.read(64), path.name.lower()
    if start.startswith(HDF5):
        with h5py.File(path, "r") as group:
            return _kind_of_group(group)
    if not start:
        return "it is empty; copy or download it again"
    if start.startswith(GZIP):
        with gzip.open(path) as file:
            start, name = file.read(64), name.removesuffix(".gz")
        if start.startswith(HDF5) or not name.endswith(tuple(ENDINGS)):
            return "it is compressed with gzip; unpack it first: gunzip --stdout {path} > new.h5ad"
    found = [words for beginning, words in BEGINNINGS.items() if start.startswith(beginning)]
    found += [words for ending, words in ENDINGS.items() if name.endswith(ending)]
    return found[0] if found else None


def _kind_of_group(group: Any) -> str | None:
    """What a file is, by its groups and arrays; None for an AnnData, or if that is unknown."""
    if "mod" in group:
        names = sorted(group["mod"], key=lambda name: (name != "rna", name))
        read = "read_zarr" if type(group).__module__.startswith("zarr") else "read_h5mu"
        return f"it is a MuData of {listing(names)}; pass one of them: mudata.{read}({{path}})[{names[0]!r}]"
    if any(name in group and not hasattr(group[name], "keys") for name in OLD):
        new = "anndata.read_h5ad({path}).write_h5ad(...)"
        return f"it has the format of anndata before 0.7; write it again with a newer anndata: {new}"
    if "obs" in group:
        return None
    if "tables" in group:
        return "it is a SpatialData; pass one of its tables: spatialdata.read_zarr({path}).tables[...]"
    if "row_attrs" in group:
        return "it is a loom file; pass sc.read_loom({path})"
    if any("barcodes" in group[name] for name in group if hasattr(group[name], "keys")):
        return "it is a 10x file; pass sc.read_10x_h5({path})"
    if "cell.names" in group:
        return "it is an h5Seurat file; write it as h5ad in R: SeuratDisk::Convert({path}, dest='h5ad')"
    return None
