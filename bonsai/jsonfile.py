"""JSON from files of others: an object, whose values are not nested without end."""

import json
from pathlib import Path

from bonsai.errors import UserError
from bonsai.files import SETTINGS
from bonsai.textfile import read_text

DEPTH = 64  # of values within values; what is nested deeper is no file of this field


def read_json_object(path: str | Path, limit: int = SETTINGS) -> dict:
    """A file of one JSON object. Raises UserError for more than `limit` bytes."""
    return parse_json_object(read_text(path, limit=limit), str(path))


def parse_json_object(text: str, name: str) -> dict:
    """UserError, which begins with `name`, for what is not a JSON object, or nested too deep."""
    try:
        found = json.loads(text)
    except RecursionError:
        raise UserError(f"{name} is nested too deep") from None
    except ValueError as e:
        raise UserError(f"{name} is not valid JSON: {e}") from None
    if not isinstance(found, dict):
        raise UserError(f"{name} is not a JSON object")
    left = [(found, 1)]
    while left:
        item, depth = left.pop()
        if depth > DEPTH:
            raise UserError(f"{name} is nested too deep")
        inner = item.values() if isinstance(item, dict) else item
        left += [(x, depth + 1) for x in inner if isinstance(x, dict | list)]
    return found
