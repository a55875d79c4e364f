"""Executes tutorials in fresh kernels and writes them back with outputs: python tutorials/execute.py [NAME ...]."""

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
    """The notebook with the outputs of a fresh kernel, which runs in a folder of its own and finds this checkout.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        With the traceback, if a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")])),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # a debugger's remark on frozen modules
    }
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=TIMEOUT,
            kernel_name="python3",
            extra_arguments=["--IPKernelApp.log_level=ERROR"],  # no remark on how it is reached
            record_timing=False,  # times would differ in every run
            resources={"metadata": {"path": folder}},
        )
        client.execute(env=environment)
    # the interpreter's version is no part of a tutorial
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    return notebook


def complaints(notebook: nbformat.NotebookNode) -> list[str]:
    """Errors, warnings and whatever else a cell has written to standard error."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                found.append(f"{output.ename}: {output.evalue}")
            elif output.output_type == "stream" and (output.name == "stderr" or "warning" in output.text.lower()):
                found.append(output.text)
    return found


def main(names: list[str]) -> int:
    """Executes all tutorials, or those named; 1 if one of them complains."""
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
