"""JSON: an object from a file of others, not nested without end; results written for programs."""

import json
import math
import os
from pathlib import Path
from typing import Any

from bonsai.files.access import SETTINGS
from bonsai.files.atomic import replace_text
from bonsai.files.textfile import read_text
from bonsai.system.errors import UserError, why_not_written

DEPTH = 64  # of values within values; what is nested deeper is no file of this field
MOST_VALUES = 1_000_000  # of one text, which Python's objects for them make 100 MB


def read_json_object(path: str | Path, limit: int = SETTINGS) -> dict:
    """A file of one JSON object. Raises UserError for more than `limit` bytes."""
    return parse_json_object(read_text(path, limit=limit), str(path))


def parse_json_object(text: str, name: str) -> dict:
    """UserError, which begins with `name`, for what is not a JSON object, or nested too deep."""
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
    """Whether a text of JSON has more than `most` values, found at the speed of memory: `[],[],...`
    takes 25 times its bytes once it is read."""
    plain = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    if plain.count(b'"') > 4 * most:  # more than a key and a word for each value
        return True
    signs = (b",", b"[", b"{")
    if sum(map(plain.count, signs)) <= most:
        return False
    outside = b"".join(plain.split(b'"')[::2])  # they may stand in strings
    return sum(map(outside.count, signs)) > most


def finite(value: Any) -> Any:
    """A value as JSON has it: None for NaN and infinities, at any depth, tuples as lists, and ? for
    what UTF-8 cannot hold."""
    if isinstance(value, dict):
        return {finite(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return value


def write_json(target: str | os.PathLike[str], results: dict) -> None:
    """Write to a file, whole or not at all; '-': as one line, the last, to stdout.

    A number that JSON does not have (nan, inf) becomes null. UserError when it cannot be written.
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
