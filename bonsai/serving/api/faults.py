"""Errors in the form that OpenAI's client expects: {"error": {"message", "type", "param", "code"}}.

The client repeats requests that were answered with status 408, 409, 429, or 500 and above. So a
wrong request must get 400 to 404, or 413.
"""

import json


class ApiError(Exception):
    """An error that a client gets as its answer."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    def body(self) -> bytes:
        return error_body(self.status, self.message, self.param, self.code)


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param, code)


TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error_body(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> bytes:
    """The JSON of an error."""
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    error = {"message": message[:1000], "type": kind, "param": param, "code": code}
    return json.dumps({"error": error}).encode()
