"""Tables for notebooks: plain HTML that uses the colours of the page, light or dark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

CELL = "padding:0.15em 1em 0.15em 0;vertical-align:top;background:none"
TEXT, NUMBER = f"{CELL};text-align:left", f"{CELL};text-align:right;white-space:nowrap"
LINE = "border:none;border-bottom:1px solid rgba(128,128,128,0.5)"  # visible on white and on black


def page(heading: str, *parts: str) -> str:
    """A heading with tables and lists below it."""
    return f'<div><p style="margin:0.3em 0"><b>{escape(heading)}</b></p>{"".join(parts)}</div>'


def paragraph(text: str) -> str:
    """A line of text."""
    return f'<p style="margin:0.3em 0">{escape(text)}</p>'


def named_values(values: Mapping[str, object]) -> str:
    """A table of two columns: names and values."""
    rows = "".join(
        f'<tr><th scope="row" style="{TEXT};font-weight:normal;opacity:0.75;white-space:nowrap">{escape(name)}</th>'
        f'<td style="{TEXT}">{escape(str(value))}</td></tr>'
        for name, value in values.items()
    )
    return _table(f"<tbody>{rows}</tbody>")


def columns(names: Sequence[str], rows: Iterable[Sequence[str]], *, marked: int | None = None) -> str:
    """A table of numbers with column names; the row `marked` is bold and has an arrow."""
    head = "".join(f'<th scope="col" style="{NUMBER};{LINE}">{escape(name)}</th>' for name in ("", *names))
    body = ""
    for i, row in enumerate(rows):
        weight = "bold" if i == marked else "normal"
        cells = ("→" if i == marked else "", *row)
        body += "<tr>" + "".join(f'<td style="{NUMBER};font-weight:{weight}">{escape(c)}</td>' for c in cells) + "</tr>"
    return f'<div style="overflow-x:auto">{_table(f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>")}</div>'


def items(texts: Iterable[tuple[str, Sequence[str]]]) -> str:
    """A list; each item has a name in bold and sentences."""
    parts = "".join(f"<li><b>{escape(name)}</b><br>{escape(' '.join(said))}</li>" for name, said in texts)
    return f'<ul style="margin:0.3em 0">{parts}</ul>' if parts else ""


def _table(content: str) -> str:
    return f'<table style="border-collapse:collapse;margin:0.3em 0">{content}</table>'
