"""From the bytes of a request to a checked body, without blocking the event loop.

While Python's json parses a text, all other threads wait: some 100 ns per value, and many times as
long per key, list or object. So these are counted first, which is fast, and bodies that are not
small are parsed in a thread.
"""

import json
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError

from bonsai.serving.api.faults import ApiError, bad_request
from bonsai.serving.api.schemas import REASONS, UNUSED, Body
from bonsai.serving.background import in_background
from bonsai.system.values import did_you_mean

SMALL = 16 * 2**10  # a body of so many bytes is parsed in the event loop
MOST_VALUES = 300_000  # enough for 128 prompts of 2,000 tokens
MOST_PARTS = 20_000  # of keys, and of lists and objects: enough for 16 in each of 1,024 messages

B = TypeVar("B", bound=Body)


async def read_body(request: Request, model: type[B]) -> B:
    """The body of a request as `model`. Raises ApiError, which names the innermost wrong field."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise bad_request("the body must be a JSON object, sent as Content-Type: application/json")
    packed = request.headers.get("content-encoding", "identity")
    if packed.strip().lower() != "identity":
        raise bad_request(f"Content-Encoding: {packed[:100]} is not read: send the body as it is")
    body = await request.body()
    if len(body) <= SMALL:
        return parse(body, model)
    return await in_background(parse, body, model)


def parse(body: bytes, model: type[B]) -> B:
    """Raises ApiError."""
    try:
        text = body.decode("utf-8-sig")
        check_count(body)
        values = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        raise bad_request("the body is not valid JSON", code="invalid_json") from None
    try:
        return model.model_validate(values)
    except ValidationError as e:
        raise invalid(e, model) from None


def check_count(body: bytes) -> None:
    """Raises ApiError if there are more values or parts than any sensible request has."""
    plain = body.translate(None, b" \t\r\n").replace(b"\\\\", b"").replace(b'\\"', b"")
    keys = plain.count(b'":')
    values, parts = plain.count(b","), plain.count(b"[") + plain.count(b"{")
    strings = plain.count(b'"') // 2
    if (values > MOST_VALUES or parts > MOST_PARTS) and strings <= MOST_PARTS:
        outside = b"".join(plain.split(b'"')[::2])  # without strings, which may contain these signs
        values, parts = outside.count(b","), outside.count(b"[") + outside.count(b"{")
    if values > MOST_VALUES or max(keys, parts) > MOST_PARTS:
        raise bad_request(
            f"the body has more than {MOST_VALUES:,} values or {MOST_PARTS:,} keys, lists and "
            "objects: send fewer"
        )


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def invalid(error: ValidationError, model: type[Body]) -> ApiError:
    """The error for the first mistake, with its innermost field, such as messages[1].tool_calls."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    param = field_name(first["loc"])
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = not_supported(param, str(first["loc"][-1]), model)
    elif not param:
        message = "the body must be a JSON object"
    else:
        message = reason if reason.startswith(param) else f"{param}: {reason}"
    return bad_request(message.encode("ascii", "backslashreplace").decode(), param or None)


def not_supported(param: str, name: str, model: type[Body]) -> str:
    """The message for a field that is not known, and what to do about it."""
    if reason := REASONS.get(name):
        return f"{param!a} is not supported, as {reason}: leave it out"
    mistyped = param == name and name not in UNUSED  # known to some API, so it was meant
    hint = did_you_mean(name, model.model_fields) if mistyped else ""
    return f"{param!a} is not supported{hint or ': leave it out'}"


def field_name(places: tuple[int | str, ...]) -> str:
    """
    >>> field_name(("messages", 1, "tool_calls"))
    'messages[1].tool_calls'
    """
    name = ""
    for place in places:
        name += f"[{place}]" if isinstance(place, int) else f".{place[:100]}" if name else place
    return name[:100]


def takes(model: type[Body]) -> dict[str, Any]:
    """The `openapi_extra` of a route whose body is read here: its schema for /openapi.json."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inlined(part: Any) -> Any:
        if isinstance(part, list):
            return [inlined(p) for p in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return inlined(definitions[part["$ref"].rsplit("/", 1)[1]])
        return {name: inlined(p) for name, p in part.items()}

    content = {"application/json": {"schema": inlined(schema)}}
    return {"requestBody": {"required": True, "content": content}}
