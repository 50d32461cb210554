"""bonsai/serving/api/faults.py: the JSON of an error is OpenAI's, whatever went wrong."""

import json

import pytest

from bonsai.serving.api.faults import ApiError, bad_request, error_body


@pytest.mark.parametrize(
    "status, kind",
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "invalid_request_error"),
        (413, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_the_type_follows_from_the_status(status, kind):
    error = json.loads(error_body(status, "it is so", "n", "a_code"))["error"]
    assert error == {"message": "it is so", "type": kind, "param": "n", "code": "a_code"}


def test_a_request_that_is_wrong_is_400():
    error = bad_request("no", "n")
    assert (error.status, str(error), error.headers) == (400, "no", {})
    assert json.loads(error.body())["error"]["param"] == "n"


def test_a_message_has_an_end():
    body = ApiError(400, "x" * 5000).body()
    assert len(json.loads(body)["error"]["message"]) == 1000
