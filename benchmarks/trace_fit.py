"""Counts the functions of the package that a small fit calls, and the calls before its training loop.

Usage: python benchmarks/trace_fit.py [--list]
"""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path
from types import CodeType, FrameType

import scvae

PACKAGE = str(Path(scvae.__file__).parent)
LONG = 3  # functions with more lines than this in their body are counted as long


def body_lines(code: CodeType, trees: dict[str, ast.Module]) -> int:
    """Lines of a function's body, without its docstring, comments and blank lines."""
    path = code.co_filename
    if path not in trees:
        trees[path] = ast.parse(Path(path).read_text(encoding="utf-8"))
    for node in ast.walk(trees[path]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == code.co_name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if first == code.co_firstlineno:
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                lines = Path(path).read_text(encoding="utf-8").splitlines()
                texts = (
                    [lines[i - 1].strip() for i in range(body[0].lineno, (body[-1].end_lineno or 0) + 1)]
                    if body
                    else []
                )
                return sum(bool(text) and not text.startswith("#") for text in texts)
    return 0  # a class body, a lambda, a comprehension


def main() -> None:
    """Traces a fit of 60 cells x 30 genes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="name the functions")
    given = parser.parse_args()
    adata = scvae.datasets.simulate(n_cells=60, n_genes=30, truth=False, rng=0)
    training = scvae.TrainingConfig(epochs=2)
    scvae.fit(adata.copy(), training=training, rng=0, verbose=False)  # compiles kernels and fills caches

    seen: set[CodeType] = set()
    stacks: list[list[str]] = []

    def watch(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(PACKAGE) or code.co_name.startswith("<"):
            return
        if code.co_name == "train" and not any(c.co_name == "train" and c is code for c in seen):
            stack, outer = [], frame
            while outer is not None:
                if outer.f_code.co_filename.startswith(PACKAGE):
                    stack.append(outer.f_code.co_name)
                outer = outer.f_back
            stacks.append(stack[::-1])
        seen.add(code)

    sys.setprofile(watch)
    try:
        scvae.fit(adata, training=training, rng=0, verbose=False)
    finally:
        sys.setprofile(None)
    trees: dict[str, ast.Module] = {}
    lines = {code: body_lines(code, trees) for code in seen}
    functions = {code: n for code, n in lines.items() if n > 0}
    long = [code for code, n in functions.items() if n > LONG]
    print(f"{len(functions)} own functions in {len({code.co_filename for code in functions})} files")
    print(f"{len(long)} of them longer than {LONG} lines")
    print("to the loop: " + " -> ".join(stacks[0]))
    if given.list:
        for code in sorted(long, key=lambda code: (code.co_filename, code.co_firstlineno)):
            path = Path(code.co_filename).relative_to(PACKAGE)
            print(f"  {path}:{code.co_firstlineno} {code.co_qualname} {lines[code]}")


if __name__ == "__main__":
    main()
