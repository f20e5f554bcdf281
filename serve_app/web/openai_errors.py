"""Refusals in the shape that OpenAI's clients read, on the routes that they call."""

import re
from typing import Any

from serve_app.errors import (
    BadOption,
    BrokenImage,
    DecodeMemory,
    DecodeTimeout,
    NoImage,
    RequestError,
    TooBusy,
    TooLargeToPaint,
    TooManyBytes,
    TooManyPixels,
    TooSmall,
    Unauthorized,
    UnknownStyle,
    UnsupportedFormat,
)

PATHS = re.compile(r"/v1/(images|models)(/|$)")
# Codes that programs written for OpenAI test; others are the service's own.
CODES = {
    Unauthorized.code: "invalid_api_key",
    UnknownStyle.code: "model_not_found",
    TooBusy.code: "rate_limit_exceeded",
    RequestError.code: "server_error",
}
OF_A_PICTURE = {
    each.code
    for each in (
        BrokenImage,
        DecodeMemory,
        DecodeTimeout,
        NoImage,
        TooLargeToPaint,
        TooManyBytes,
        TooManyPixels,
        TooSmall,
        UnsupportedFormat,
    )
}
PARAMETERS = {UnknownStyle.code: "model"} | dict.fromkeys(OF_A_PICTURE, "image")
# Their clients send a request again by themselves after 408, 429 and 5xx, unless they are told that it is of no use.
NO_RETRY = {"x-should-retry": "false"}


class BadParameter(BadOption):
    """A parameter that is not taken here.

    Args:
        detail: what is wrong with it.
        parameter: its name, which OpenAI's errors have as `param`.
    """

    def __init__(self, detail: str, parameter: str) -> None:
        super().__init__(detail)
        self.args = (detail, parameter)  # pickle rebuilds it from them
        self.parameter = parameter


def is_openais(path: str) -> bool:
    """Returns whether a path is of a route that OpenAI's clients call."""
    return PATHS.search(path) is not None


def openai_error(refusal: RequestError) -> dict[str, Any]:
    """Returns a refusal as OpenAI's clients read it."""
    parameter = refusal.parameter if isinstance(refusal, BadParameter) else PARAMETERS.get(refusal.code)
    return error_document(refusal.detail, refusal.status, CODES.get(refusal.code, refusal.code), parameter)


def error_document(message: str, status: int, code: str, parameter: str | None = None) -> dict[str, Any]:
    """Returns an error in OpenAI's shape.

    Args:
        message: a sentence for people.
        status: of the answer.
        code: for programs.
        parameter: that is wrong, if it is one.
    """
    kind = "invalid_request_error" if status < 500 else "server_error"
    kind = "requests" if status == TooBusy.status else kind
    return {"error": {"message": message, "type": kind, "param": parameter, "code": code}}
