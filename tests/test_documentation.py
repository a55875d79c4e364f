"""Pages of the site name what exists, and all of it, and their code runs; `make docs` shows that the site builds."""

from __future__ import annotations

import ast
import functools
import importlib
import json
import re
from pathlib import Path

import pytest
import scanpy as sc

import scvae

ROOT = Path(__file__).parents[1]
FRONT = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
PATHS = {path.name: path for path in [*FRONT, *sorted((ROOT / "docs").glob("*.md"))] if path.exists()}
PAGES = {name: path.read_text(encoding="utf-8") for name, path in PATHS.items()}
SPACES = ("scvae", "scvae.datasets", "scvae.pl", "scvae.tl")
SUBMODULES = {"datasets", "pl", "tl"}
WORDS_OF_THE_README = 700


def snippets(page):
    """The Python code of a page, with the heading that it stands under."""
    sections = re.split(r"^#+ (.+)$", PAGES[page], flags=re.MULTILINE)[1:]
    return [
        pytest.param(code, id=f"{page}: {title}")
        for title, text in zip(sections[::2], sections[1::2], strict=True)
        for code in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    ]


def listed():
    """What the page on the API lists, without the leading "scvae."."""
    return set(re.findall(r"^   ([\w.]+)$", PAGES["api.md"], re.MULTILINE))


@pytest.mark.parametrize("space", SPACES)
def test_the_api_page_lists_every_public_name(space):
    prefix = space.removeprefix("scvae").removeprefix(".")
    names = {f"{prefix}.{name}".strip(".") for name in importlib.import_module(space).__all__}
    assert names - SUBMODULES - {"__version__"} <= listed()


def test_the_api_page_lists_nothing_else():
    for name in listed():
        assert functools.reduce(getattr, name.split("."), scvae)


@pytest.mark.parametrize("page", PAGES)
def test_names_in_a_page_exist(page):
    names = set(re.findall(r"\bscvae\.((?:tl|pl|datasets)\.\w+|[a-zA-Z]\w+)(?=[`(])", PAGES[page]))
    for name in names - SUBMODULES:
        assert functools.reduce(getattr, name.split("."), scvae), name


@pytest.mark.parametrize("page", PAGES)
def test_scripts_that_a_page_names_exist(page):
    for path in re.findall(r"`((?:benchmarks|tests|scvae|data)/[\w/]+\.\w+)", PAGES[page]):
        assert (ROOT / path).exists(), path


def targets(page):
    """Where the links and images of a page lead, within the repository."""
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", PAGES[page], flags=re.MULTILINE | re.DOTALL))
    return {link.partition("#")[0] for link in links if not re.match(r"\w+:|#", link)}


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_to_files(page):
    for target in targets(page):
        assert (PATHS[page].parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_tutorials_that_a_page_names_exist(page):
    for name in re.findall(r"tutorials/(\d\w+)", PAGES[page]):
        assert (ROOT / "tutorials" / f"{name}.ipynb").exists(), name


def test_the_readme_can_be_read_in_five_minutes():
    assert len(PAGES["README.md"].split()) <= WORDS_OF_THE_README


@pytest.fixture(scope="module")
def cells():
    """Cells as the pages have them: of two donors, and of one to come; with a model of the first, and one by donor."""
    every = scvae.datasets.simulate(
        n_cells=240, n_genes=60, n_types=3, n_batches=3, n_proteins=6, truth=False, rng=0
    )  # fmt: skip
    every.layers["counts"] = every.X.copy()
    every.obs["condition"] = ["control", "treated"] * 120
    every.obs["donor"] = every.obs["batch"].cat.rename_categories(lambda name: name.replace("batch", "donor"))
    every.obs["sex"] = ["f", "m"] * 120
    every.obs["percent_mito"] = every.obs_vector(every.var_names[0])
    late = every.obs["donor"] == "donor_2"
    adata, query = every[~late].copy(), every[late].copy()
    short = {"n_latent": 4, "training": scvae.TrainingConfig(epochs=15), "rng": 0, "verbose": False}
    by_donor = scvae.fit(adata.copy(), layer="counts", batch_key="donor", **short)
    return adata, query, scvae.fit(adata, **short), by_donor


@pytest.fixture
def at_work(cells, tmp_path, monkeypatch):
    """What code of a page finds: names, an empty folder, and fits that take a moment and show no bars."""
    from matplotlib import pyplot as plt

    monkeypatch.chdir(tmp_path)
    plt.switch_backend("agg")
    short = functools.partial(scvae.TrainingConfig, epochs=15)
    monkeypatch.setattr(scvae, "TrainingConfig", lambda **given: short(**given | {"epochs": 15}))
    for name in ("fit", "tune_beta"):
        call = functools.partial(getattr(scvae, name), n_latent=4, training=short(), rng=0)
        monkeypatch.setattr(scvae, name, lambda *args, call=call, **given: call(*args, **given | {"verbose": False}))
    monkeypatch.setattr(scvae.tl, "map_query", functools.partial(scvae.tl.map_query, epochs=5, verbose=False))
    monkeypatch.setattr(scvae.tl, "diagnose", functools.partial(scvae.tl.diagnose, n_cells=60))
    few = functools.partial(scvae.tl.beta_embeddings, betas=[0.3, 3.0], verbose=False)
    monkeypatch.setattr(scvae.tl, "beta_embeddings", few)
    adata, query, *_ = cells
    yield {"scvae": scvae, "sc": sc, "adata": adata.copy(), "query": query.copy()}
    plt.close("all")


def run(code, names):
    """Runs the code and returns what a notebook would show."""
    *statements, last = ast.parse(code).body
    exec(compile(ast.Module(statements, []), "page", "exec"), names)
    if isinstance(last, ast.Expr):
        return eval(compile(ast.Expression(last.value), "page", "eval"), names)
    return exec(compile(ast.Module([last], []), "page", "exec"), names)


@pytest.mark.parametrize("code", snippets("faq.md"))
@pytest.mark.slow
def test_the_answer_to_a_question_runs_and_does_something(code, cells, at_work, digest):
    shown = run(code, at_work | {"model": cells[2]})
    assert shown is not None or digest(at_work["adata"]) != digest(cells[0])


@pytest.mark.parametrize("code", snippets("guide.md"))
@pytest.mark.slow
def test_the_code_of_the_guide_runs_and_does_something(code, cells, at_work, digest):
    at_work["adata"].write_h5ad("atlas.h5ad")
    before, there = digest(at_work["adata"]), {path.name: path.stat().st_mtime_ns for path in Path().iterdir()}
    names = at_work | {"model": cells[3]}
    known = dict(names)
    shown = run(code, names)
    written = {path.name: path.stat().st_mtime_ns for path in Path().iterdir()} != there
    made = [name for name in names if name != "__builtins__" and names[name] is not known.get(name)]
    assert shown is not None or made or written or digest(at_work["adata"]) != before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:no cell gets a name")  # so few cells are enough for the code alone
def test_the_code_of_the_page_on_labels_runs_from_top_to_bottom(at_work):
    for snippet in snippets("labels.md"):
        run(*snippet.values, at_work)
    assert {"scvae_label", "scvae_outlier"} <= set(at_work["adata"].obs)
    assert len(at_work["table"]) == 15


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:1 of the 1 batches")
def test_the_code_of_the_page_on_views_runs_from_top_to_bottom(at_work):
    for snippet in snippets("views.md"):
        run(*snippet.values, at_work)
    assert at_work["unstained"].obsm["scvae_protein"].shape == (80, 6)
    assert {"scvae_protein_denoised", "X_by_rna"} <= set(at_work["adata"].obsm)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # of matplotlib, for what scanpy does
def test_the_code_of_the_page_on_references_runs_from_top_to_bottom(cells, at_work):
    names = at_work | {"model": cells[3]}
    names["adata"].obsm["X_umap"] = names["adata"].X[:, :2].toarray()  # stands for one made with scanpy
    for snippet in snippets("reference.md"):
        run(*snippet.values, names)
    assert {"X_scvae_umap", "scvae_nearest"} <= set(names["query"].obsm)


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # of matplotlib, for what scanpy does
@pytest.mark.parametrize("code", [*snippets("README.md"), *snippets("index.md")])
def test_the_quickstart_clusters_and_draws(code, cells, at_work, monkeypatch):
    monkeypatch.setattr(scvae.datasets, "pbmc3k", cells[1].copy)  # which no fit has written to
    monkeypatch.setattr(sc.pp, "neighbors", functools.partial(sc.pp.neighbors, method="gauss"))  # nothing to compile
    run(code, at_work)
    assert {"X_scvae", "X_umap"} <= set(at_work["adata"].obsm)
    assert "leiden" in at_work["adata"].obs


def test_tutorials_are_notebooks_with_outputs_and_a_title():
    for path in (ROOT / "tutorials").glob("[0-9]*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert "".join(cells[0]["source"]).startswith("# "), path.name
        assert any(cell["cell_type"] == "code" and cell["outputs"] for cell in cells), path.name
