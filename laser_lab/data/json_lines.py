"""JSON lines, read with doubt: every line is an object of whole characters, or a reason why it is not; and written."""

import argparse
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from laser_lab.base.files import write_text
from laser_lab.base.inputs import unwritable


def json_lines(file: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """(``file:line``, object), or (``file:line``, reason) where the line is no JSON object. FileNotFoundError: `file`
    is not there. ValueError: it is no text, but compressed or in UTF-16."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist.")
    with file.open("rb") as start:
        check_head(start.read(4), file)
    # bytes that are not UTF-8 become halves of surrogate pairs, which no text has
    with file.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"{file.name}:{number}", parse_line(line)


def check_head(head: bytes, name: Any) -> None:
    """Raise a ValueError if the first bytes of a file are not those of a text in UTF-8."""
    if head.startswith(b"\x1f\x8b"):
        raise ValueError(f"{name} is compressed by gzip: unpack it first")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head:
        raise ValueError(f"{name} is in UTF-16, or no text: save it as UTF-8")


def parse_line(line: str) -> dict[str, Any] | str:
    """The object of a line, or the reason why there is none."""
    if unwritable(line):
        return "not UTF-8"
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg} at column {error.colno}"
    except ValueError as error:  # a number of too many digits
        return f"not JSON: {error}"
    except RecursionError:
        return "not JSON that can be read: it is nested too deeply"
    if not isinstance(row, dict):
        return f"a JSON object is expected, not {type(row).__name__}"
    if "\\ud" in line.lower() and unwritable(json.dumps(row, ensure_ascii=False)):
        return "half of a surrogate pair (\\ud800 to \\udfff without its other half), which is no character"
    return row


def id_text(value: Any) -> Any:
    """An id as text: a string or a whole number (0 is "0"); anything else as it is."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def check_ids(ids: Any, what: str) -> None:
    """Raise a ValueError if an id is no string, or one that the scoring library cannot hold (it would end the
    process, or cut the id)."""
    for name in ids:
        if not isinstance(name, str):
            raise ValueError(f"{what}: ids are strings, got {name!r} ({type(name).__name__})")
        if unwritable(name) or "\0" in name:
            raise ValueError(f"{what}: the id {name!r} holds what is no character")


def write_json_lines(folder: str | os.PathLike[str], files: dict[str, list[dict[str, Any]]]) -> dict[str, int]:
    """Write ``NAME.jsonl`` for each of `files` into `folder`; returns rows per file."""
    for name, rows in files.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(Path(folder) / f"{name}.jsonl", lines)
    return {name: len(rows) for name, rows in files.items()}


def convert_by(
    convert: Callable[[str, str], dict[str, int]], about: str, arguments: Sequence[str] | None = None
) -> int:
    """The command of a converter of a public release: ``RELEASE FOLDER``."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("release", help="the unpacked release")
    parser.add_argument("folder", help="folder to write")
    options = parser.parse_args(arguments)
    print(convert(options.release, options.folder))
    return 0
