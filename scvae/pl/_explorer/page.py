"""The explorer as one self-contained HTML page."""

from __future__ import annotations

import base64
import json
from importlib.resources import files
from typing import Any

# the content security policy makes browsers refuse to fetch anything
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>β explorer</title>
<style>
body { margin: 0; background: #ffffff; }
@media (prefers-color-scheme: dark) { body { background: #14181d; } }
#explorer { display: flex; justify-content: center; }
#explorer > * { flex: 1; }
%(css)s.scvae-explorer { --tall: clamp(260px, calc(100vh - 140px), 1000px); }
</style>
</head>
<body>
<main id="explorer"></main>
<noscript>The β explorer needs JavaScript, which is disabled in this browser.</noscript>
<script id="record" type="application/json">%(record)s</script>
<script id="buffer" type="text/plain">%(buffer)s</script>
<script type="module">
%(js)s
const record = JSON.parse(document.getElementById("record").textContent);
const bytes = Uint8Array.from(atob(document.getElementById("buffer").textContent), (c) => c.charCodeAt(0));
const values = { record, buffer: new DataView(bytes.buffer), beta: record.beta, color: record.colors[0].name };
const model = {
  get: (name) => values[name],
  set: (name, value) => { values[name] = value; },
  save_changes() {},
  on() {},
  off() {},
};
render({ model, el: document.getElementById("explorer") });
</script>
</body>
</html>
"""


def asset(name: str) -> str:
    """The text of a file in this package."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def script() -> str:
    """The JavaScript module of the explorer, shared by the widget and the page."""
    return asset("explorer_dots.js") + asset("explorer.js")


def page(record: dict[str, Any], buffer: bytes) -> str:
    """The complete page."""
    # otherwise a name of a cell or category could close the surrounding script element
    text = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return PAGE % {
        "css": asset("explorer.css"),
        "js": script(),
        "record": text,
        "buffer": base64.b64encode(buffer).decode("ascii"),
    }
