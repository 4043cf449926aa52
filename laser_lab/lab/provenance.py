"""The import graph of the package, and a hash of the source that a module can reach. Imports inside functions count,
those for type checking do not."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
EQUAL = Path(__file__).with_name("equal_code.json")
"""Versions of the code, or of one module, that give the same results as an earlier one, which keeps its name: {version:
{"equals": the earlier version, "changed": what changed, "shown": by what trainings}}. The slow test of
``tests/test_recipes.py`` trains some anew and compares."""


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """{full name: file} of every module; a folder's ``__init__`` has the folder's name."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(name: str, package: Path = PACKAGE) -> set[str]:
    """The modules of the package that module `name` imports, without the ``__init__`` of the folders above them."""
    return imported(modules(package)[name].read_text(encoding="utf-8"), package) - {name}


def imported(source: str, package: Path = PACKAGE) -> set[str]:
    """The modules of the package that Python `source` imports."""
    known = modules(package)
    found = set()
    for node in _nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            whole = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {full if full in known else node.module for full in whole.values()}
    return found & known.keys()


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under ``if TYPE_CHECKING``."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
            continue
        yield node
        waiting += ast.iter_child_nodes(node)


def reachable(*names: str, package: Path = PACKAGE) -> list[str]:
    """`names` and all modules that they import, directly or not, sorted."""
    found, waiting = set(), list(names)
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            waiting += imports(name, package)
    return sorted(found)


def _written(node: ast.AST | list | object) -> str:
    """A syntax tree as text. Fields that are empty are left out: newer Pythons add some."""
    if isinstance(node, list):
        return "[" + ",".join(map(_written, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = (f"{name}={_written(value)}" for name, value in ast.iter_fields(node) if value not in (None, []))
    return f"{type(node).__name__}({','.join(fields)})"


@cache
def code_version(*names: str, package: Path = PACKAGE) -> str:
    """A hash of the :func:`reachable` source, without comments, docstrings and layout; the same on every Python. That
    of an earlier version where :data:`EQUAL` says so."""
    return _named(hashlib.sha256("".join(versions(*names, package=package).values()).encode()).hexdigest())


def _named(version: str) -> str:
    return json.loads(EQUAL.read_text(encoding="utf-8")).get(version, {}).get("equals", version)


def versions(*names: str, package: Path = PACKAGE) -> dict[str, str]:
    """A hash of the source of each :func:`reachable` module, by its name, as :func:`code_version` reads it; that of an
    earlier version where :data:`EQUAL` says so."""
    return {name: _named(_version(name, package)) for name in reachable(*names, package=package)}


def _version(name: str, package: Path) -> str:
    tree = ast.parse(modules(package)[name].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [n for n in body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
    return hashlib.sha256(name.encode() + _written(tree).encode()).hexdigest()
