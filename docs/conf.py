"""Settings of the documentation site; `make docs` builds it into docs/_build/html."""

from __future__ import annotations

import base64
import contextlib
import importlib
import io
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("MPLCONFIGDIR", tempfile.mkdtemp())  # a build machine may have no home to write to

from docutils import nodes
from PIL import Image
from sphinx.domains.python import PyXRefRole
from sphinx.util.docutils import SphinxRole

import scvae
from scvae.cli import main

if TYPE_CHECKING:
    from sphinx.application import Sphinx

HERE = Path(__file__).parent
ROOT = HERE.parent
SPACES = ("scvae", "scvae.tl", "scvae.pl", "scvae.datasets")
PUBLIC = {
    f"{module.__name__}.{name}"
    for module in map(importlib.import_module, SPACES)
    for name in module.__all__
    if callable(getattr(module, name))
}

project = "scvae"
author = "scvae contributors"
copyright = "2026, scvae contributors"  # noqa: A001 - the name that Sphinx reads
release = version = scvae.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "jupyter_execute"]
default_role = "name"  # what docstrings put between single backticks

# docstrings: numpy's form, types from the signatures
autosummary_generate = True
autodoc_typehints = "description"
autodoc_typehints_format = "short"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Warns"]
maximum_signature_line_length = 88

# types of other packages: there is no inventory to look them up in, so that a build needs no network; and inner ones
INNER = r"model|data|diagnostics\.(examination|heads|view_shares)|inference\.(coverage|density|known_labels|metric)"
nitpick_ignore_regex = [("py:.*", rf"(?!scvae\.).*|scvae\.({INNER})\..*")]

# pages and notebooks
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_dmath_double_inline = True
nb_execution_mode = "off"  # the notebooks' outputs are committed; `make tutorials` makes them anew
nb_merge_streams = True

html_theme = "sphinx_book_theme"
html_title = "scvae"
html_static_path = ["_static"]
html_css_files = ["scvae.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navbar_persistent": [],  # the sidebar has the search already
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
mathjax_path = "https://cdn.jsdelivr.net/npm/mathjax@3.2.2/es5/tex-mml-chtml.js"  # in the reader's browser only
mathjax3_config = {"chtml": {"displayAlign": "left", "displayIndent": "1.5em"}}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"


class NameRole(SphinxRole):
    """A name between backticks in a docstring: a link where the API has a page of it, code elsewhere."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        if self.text in PUBLIC:
            return PyXRefRole()("py:obj", self.rawtext, self.text, self.lineno, self.inliner)
        return [nodes.literal(self.rawtext, self.text)], []


(HERE / "generated").mkdir(exist_ok=True)


def take_notebooks(_: Sphinx) -> None:
    """Copies the tutorials below the sources, where Sphinx looks for pages, and lists as many as there are."""
    for old in (HERE / "tutorials").glob("*.ipynb"):
        old.unlink()
    notebooks = sorted((ROOT / "tutorials").glob("[0-9]*.ipynb"))
    for notebook in notebooks:
        shutil.copy(notebook, HERE / "tutorials" / notebook.name)
    entries = "\n".join(notebook.stem for notebook in notebooks)
    listing = f"```{{toctree}}\n:hidden:\n\n{entries}\n```\n" if notebooks else "There are none yet.\n"
    (HERE / "generated" / "tutorials.txt").write_text(listing, encoding="utf-8")
    cards = "\n".join(card(notebook) for notebook in notebooks)
    grid = f"::::{{grid}} 1 2 4 4\n:gutter: 3\n\n{cards}\n::::\n" if notebooks else ""
    (HERE / "generated" / "tutorial_cards.txt").write_text(grid, encoding="utf-8")


# which of a tutorial's pictures is its thumbnail, and the part of it that is shown: left, top, right, bottom
THUMBNAILS = {
    "1": (1, (0.0, 0.09, 0.335, 1.0)),
    "2": (0, (0.0, 0.0, 0.505, 1.0)),
    "3": (1, (0.53, 0.12, 0.9, 0.9)),
    "4": (0, (0.0, 0.56, 0.36, 1.0)),
    "5": (2, (0.5, 0.09, 0.91, 1.0)),
    "6": (2, (0.0, 0.09, 0.42, 1.0)),
    "7": (2, (0.0, 0.09, 0.65, 1.0)),
    "8": (0, (0.0, 0.1, 0.6, 1.0)),
}
THUMBNAIL_SIZE = (320, 220)


def card(notebook: Path) -> str:
    """The card of a tutorial: its thumbnail, its title and the question that it begins with."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    title, question, *_ = [line for line in "".join(cells[0]["source"]).splitlines() if line]
    thumbnail(notebook)
    return "\n".join(
        (
            f":::{{grid-item-card}} {title.removeprefix('# ')}",
            f":img-top: /generated/{notebook.stem}.png",
            f":img-alt: a picture of the tutorial {notebook.stem}",
            f":link: /tutorials/{notebook.stem}",
            ":link-type: doc",
            question,
            ":::",
        )
    )


def thumbnail(notebook: Path) -> None:
    """Cuts the thumbnail of a tutorial from its committed outputs, onto white paper of one size."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    data = [output.get("data", {}) for cell in cells for output in cell.get("outputs", ())]
    pictures = [bundle["image/png"] for bundle in data if "image/png" in bundle]
    number, part = THUMBNAILS.get(notebook.name[0], (0, (0.0, 0.0, 1.0, 1.0)))
    encoded = pictures[min(number, len(pictures) - 1)]
    picture = Image.open(io.BytesIO(base64.b64decode("".join(encoded)))).convert("RGBA")
    picture = picture.crop(tuple(round(edge * side) for edge, side in zip(part, picture.size * 2, strict=True)))
    picture.thumbnail(THUMBNAIL_SIZE, Image.Resampling.LANCZOS)
    paper = Image.new("RGBA", THUMBNAIL_SIZE, "white")
    room = [(paper_side - side) // 2 for paper_side, side in zip(THUMBNAIL_SIZE, picture.size, strict=True)]
    paper.paste(picture, tuple(room), picture)
    paper.convert("RGB").save(HERE / "generated" / f"{notebook.stem}.png")


def write_options(_: Sphinx) -> None:
    """Writes what each command says of itself with --help, as a page to be included."""
    os.environ["COLUMNS"] = "100"
    parts = []
    for command in ("fit", "tune-beta", "embed", "label", "map", "diagnose", "demo"):
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            main([command, "--help"])
        parts.append(f"### scvae {command}\n\n```text\n{shown.getvalue()}```\n")
    (HERE / "generated" / "command_line.txt").write_text("\n".join(parts), encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Registers all of it."""
    app.add_role("name", NameRole())
    for listener in (take_notebooks, write_options):
        app.connect("builder-inited", listener)
