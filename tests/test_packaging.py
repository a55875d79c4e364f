"""What users get: a light import, a complete wheel and requirements that agree with each other."""

from __future__ import annotations

import email
import hashlib
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import scvae

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HEAVY = {"igraph", "leidenalg", "matplotlib", "numba", "scanpy", "sklearn", "triton", "umap"}


def python(code: str, directory: Path) -> str:
    """What `code` prints in a fresh interpreter that finds `directory` first."""
    run = subprocess.run([sys.executable, "-c", code], cwd=directory, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("hatchling", reason="hatchling builds the wheel; install the extra 'test'")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_import_leaves_heavy_packages_alone():
    loaded = python("import sys, scvae; print(*{name.split('.')[0] for name in sys.modules})", ROOT)
    assert "anndata" in loaded.split()
    assert not HEAVY & set(loaded.split())


def test_import_beside_the_other_scvae_says_what_is_wrong(tmp_path):
    other = tmp_path / "scvae-2.1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: scvae\nVersion: 2.1.0\n")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import scvae"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "another project's scvae 2.1.0 are both installed" in run.stderr.splitlines()[-1]
    assert "pip uninstall" in run.stderr.splitlines()[-1]


def test_wheel_has_the_package_and_no_leftovers(wheel):
    names = set(wheel.namelist())
    files = [path for ending in ("py", "js", "css") for path in (ROOT / "scvae").rglob(f"*.{ending}")]
    sources = {path.relative_to(ROOT).as_posix() for path in files}
    assert sources <= names
    assert "scvae/py.typed" in names
    assert {name.split("/")[0] for name in names} == {"scvae", f"scvae_torch-{scvae.__version__}.dist-info"}
    assert not [name for name in names if "__pycache__" in name]


def test_wheel_metadata_has_the_name_the_version_and_the_command(wheel):
    (folder,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    metadata = email.message_from_bytes(wheel.read(f"{folder}/METADATA"))
    assert metadata["Name"] == "scvae-torch"
    assert metadata["Version"] == scvae.__version__
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert "scvae = scvae.cli:main" in wheel.read(f"{folder}/entry_points.txt").decode()


def test_installed_wheel_reads_the_data_it_carries(wheel, tmp_path):
    wheel.extractall(tmp_path)
    for name in ("pbmc3k.h5ad", "pbmc_citeseq.h5ad"):
        carried, source = tmp_path / "scvae" / "_bundled" / name, ROOT / "data" / name
        assert hashlib.sha256(carried.read_bytes()).digest() == hashlib.sha256(source.read_bytes()).digest()
    read = "print(*scvae.datasets.pbmc3k().shape, *scvae.datasets.pbmc_citeseq().shape)"
    found = python(f"import scvae; print(scvae.__file__); {read}", tmp_path).splitlines()
    assert found == [str(tmp_path / "scvae" / "__init__.py"), "2700 32738 800 500"]


def test_every_requirement_is_pinned_within_its_range():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {canonicalize_name(name): Version(version) for name, version in pins.items()}
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *extras["test"], *extras["docs"]]:
        requirement = Requirement(text)
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, text


@pytest.mark.parametrize("path", ["CITATION.cff", ".github/scverse-ecosystem.yml"])
def test_version_and_licence_are_the_same_wherever_they_are_written(path):
    if path.startswith(".github") and not (ROOT / ".github").exists():
        pytest.skip("an sdist has no .github")
    text = (ROOT / path).read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", text, re.MULTILINE) == [scvae.__version__]
    assert re.findall(r"^license: (.+)$", text, re.MULTILINE) == [PROJECT["license"]]


def test_typed_marker_and_licence_are_there():
    assert (ROOT / "scvae" / "py.typed").is_file()
    assert re.match(r"BSD 3-Clause License\n\nCopyright \(c\) 2026, scvae contributors", (ROOT / "LICENSE").read_text())
