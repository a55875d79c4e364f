"""Executes tutorials in fresh kernels and saves them with their outputs: python tutorials/execute.py [NAME ...]."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
TIMEOUT = 600  # seconds a cell may take


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a fresh kernel, run in a temporary folder with the scvae of this checkout.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        With the traceback, if a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")])),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # no debugger warning about frozen modules
    }
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=TIMEOUT,
            kernel_name="python3",
            extra_arguments=["--IPKernelApp.log_level=ERROR"],  # no messages about the connection
            record_timing=False,  # times differ in every run
            resources={"metadata": {"path": folder}},
        )
        client.execute(env=environment)
    # leave out the version of the interpreter
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    return notebook


def complaints(notebook: nbformat.NotebookNode) -> list[str]:
    """Errors, warnings and all other output to standard error."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                found.append(f"{output.ename}: {output.evalue}")
            elif output.output_type == "stream" and (output.name == "stderr" or "warning" in output.text.lower()):
                found.append(output.text)
    return found


def main(names: list[str]) -> int:
    """Executes all tutorials, or those named; returns 1 if any has errors or warnings."""
    paths = [FOLDER / name for name in names] or sorted(FOLDER.glob("*.ipynb"))
    failed = False
    for path in paths:
        notebook = execute(path)
        nbformat.write(notebook, path)
        for complaint in complaints(notebook):
            failed = True
            print(f"{path.name}: {complaint}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
