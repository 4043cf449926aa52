"""JSON lines, read with doubt: every line is an object of whole characters, or a reason why it is not."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from laser_lab.base.inputs import unwritable


def json_lines(file: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """(``file:line``, object), or (``file:line``, reason) where the line is no JSON object. FileNotFoundError: `file`
    is not there. ValueError: it is no text, but compressed or in UTF-16."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist.")
    with file.open("rb") as start:
        head = start.read(2)
    if head == b"\x1f\x8b":
        raise ValueError(f"{file} is compressed by gzip: unpack it first")
    if head in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(f"{file} is in UTF-16: save it as UTF-8")
    # bytes that are not UTF-8 become halves of surrogate pairs, which no text has
    with file.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"{file.name}:{number}", parse_line(line)


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
