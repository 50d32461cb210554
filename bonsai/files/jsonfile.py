"""JSON: objects read from files that others made, within bounds; results written for programs."""

import json
import math
import os
from pathlib import Path
from typing import Any

from bonsai.files.access import SETTINGS
from bonsai.files.atomic import replace_text
from bonsai.files.textfile import read_text
from bonsai.system.errors import UserError, why_not_written

DEPTH = 64  # the deepest nesting; no file of this field comes near it
MOST_VALUES = 1_000_000  # in one text: as Python objects they take 100 MB


def read_json_object(path: str | Path, limit: int = SETTINGS) -> dict:
    """The JSON object in a file. Raises UserError for more than `limit` bytes, and for errors of
    `parse_json_object`."""
    return parse_json_object(read_text(path, limit=limit), str(path))


def parse_json_object(text: str, name: str) -> dict:
    """The object in a text. Raises UserError, which begins with `name`, if the text is not a JSON
    object or is nested deeper than DEPTH."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise UserError(f"{name} is nested too deep") from None
    except ValueError as e:
        raise UserError(f"{name} is not valid JSON: {e}") from None
    if not isinstance(value, dict):
        raise UserError(f"{name} is not a JSON object")
    left = [(value, 1)]
    while left:
        item, depth = left.pop()
        if depth > DEPTH:
            raise UserError(f"{name} is nested too deep")
        inner = item.values() if isinstance(item, dict) else item
        left += [(x, depth + 1) for x in inner if isinstance(x, dict | list)]
    return value


def has_many_values(text: bytes, most: int = MOST_VALUES) -> bool:
    """Whether a JSON text has more than `most` values. It is not parsed: `[],[],...` would take 25
    times its bytes in memory."""
    plain = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    if plain.count(b'"') > 4 * most:  # more than two strings, a key and a value, for each value
        return True
    signs = (b",", b"[", b"{")
    if sum(map(plain.count, signs)) <= most:
        return False
    outside = b"".join(plain.split(b'"')[::2])  # without strings, which may contain these signs
    return sum(map(outside.count, signs)) > most


def finite(value: Any) -> Any:
    """A value that JSON can express: at any depth NaN and infinities become None, tuples lists, and
    characters that UTF-8 cannot encode a ?."""
    if isinstance(value, float):  # first what is frequent: the rows of a run are a million
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {finite(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value


def write_json(target: str | os.PathLike[str], results: dict) -> None:
    """Write results to a file, whole or not at all. '-': to stdout, as one line, its last one.

    Numbers that JSON does not have (nan, inf) become null. Raises UserError for errors of the disk.
    """
    if str(target) == "-":
        print(json.dumps(finite(results), allow_nan=False), flush=True)
        return
    path = Path(target)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(finite(results), indent=1, allow_nan=False)
        replace_text(path, text + "\n")
    except OSError as e:
        raise UserError(f"cannot write the results to {path}: {why_not_written(e, path)}") from None
