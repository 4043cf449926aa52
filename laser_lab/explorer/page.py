"""The explorer as a page: its JavaScript and style sheet, and the one file that holds everything."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from pathlib import Path
from typing import Any

SCRIPTS = tuple("dom hosts charts tokens layers ranking plane map effects export forms cards page".split())
"""The JavaScript files, in the order in which they are joined into one module."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>{style}</style>
</head>
<body class="laser-page">
<h1>{title}</h1>
<main id="explorer"></main>
<script type="application/json" id="settings">{data}</script>
<script type="module">{script}</script>
</body>
</html>
"""
START = """
const held = JSON.parse(document.getElementById("settings").textContent);
mount(document.getElementById("explorer"), fileHost(held));
"""


def script() -> str:
    """The page's JavaScript, one module."""
    return "\n".join(_read(f"{name}.js") for name in SCRIPTS)


def style() -> str:
    """The page's style sheet."""
    return _read("explorer.css")


def page(title: str, data: dict[str, Any]) -> str:
    """A whole HTML document that needs no network. Its content security policy allows this script and this style
    sheet by their hashes, and nothing else."""
    code, look = script() + START, style()
    policy = (
        f"default-src 'none'; script-src {_hash(code)}; style-src {_hash(look)}; base-uri 'none'; form-action 'none'"
    )
    # "<" cannot end the script element, whatever a document says
    told = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return PAGE.format(title=html.escape(title), policy=policy, style=look, data=told, script=code)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _read(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
