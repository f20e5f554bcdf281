"""What a client asks for: the options of a query and of a form, checked, with the defaults filled in."""

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import TypeVar

from pydantic import ValidationError
from starlette.requests import Request

from serve_app.errors import BadOption, DeadlineExceeded
from serve_app.frames import StylizeRequest
from serve_app.styles.catalogue import find_style
from serve_app.web.negotiation import negotiate
from serve_app.web.pipeline import Pipeline
from serve_app.web.problems import wrong_options
from serve_app.web.request_log import note
from serve_app.web.schemas import JobOptions, Options, SubmitOptions
from serve_app.web.uploads import read_upload

AnyOptions = TypeVar("AnyOptions", bound=JobOptions)


@dataclass(frozen=True)
class Photograph:
    """A photograph as it was uploaded, and what is to be done with it.

    `has_deadline` says whether the client has set its own `timeout_s`.
    """

    data: bytes
    request: StylizeRequest
    has_deadline: bool


async def read_photograph(request: Request, options: JobOptions, pipeline: Pipeline) -> Photograph:
    """Reads the photograph of a request, and its options from the query and the form.

    Raises:
        RequestError: if an option is wrong, or there is no photograph. A wrong option of the query need not wait for
            the upload.
    """
    refuse_repeated(request)
    accept = accepted_types(request)
    wanted = stylize_request(options, accept, pipeline)
    upload = await read_upload(request, pipeline.settings.max_bytes)
    if upload.fields:
        options = with_fields(options, upload.fields)
        wanted = stylize_request(options, accept, pipeline)
    return Photograph(upload.data, wanted, isinstance(options, Options) and options.timeout_s is not None)


def callback_url(options: JobOptions, pipeline: Pipeline) -> str | None:
    """Returns the URL that is told of the end of a job, as it will be called; None if none is.

    Raises:
        BadOption: if this service does not call it.
    """
    url = options.callback_url if isinstance(options, SubmitOptions) else None
    return None if url is None or pipeline.jobs is None else pipeline.jobs.check_callback_url(url)


def refuse_repeated(request: Request) -> None:
    """Checks that no option of a query is given twice.

    Raises:
        BadOption: if one is.
    """
    for name, count in Counter(name for name, _ in request.query_params.multi_items()).items():
        if count > 1:
            raise BadOption(f"{name[:64]} is given twice in the query.")


def accepted_types(request: Request) -> str:
    """Returns the media types that a client accepts: all its Accept lines together."""
    return ",".join(request.headers.getlist("accept"))


def with_fields(options: AnyOptions, fields: dict[str, str]) -> AnyOptions:
    """Returns the options of a query together with those of a form.

    Raises:
        BadOption: if a field is not an option, has a wrong value, or is in the query too.
    """
    model = type(options)
    given = options.model_dump(exclude_unset=True)
    if both := given.keys() & fields.keys():
        raise BadOption(f"{', '.join(sorted(both))}: given in the query and in the form.")
    try:
        return model.model_validate({**given, **fields})
    except ValidationError as error:
        raise wrong_options(error.errors(), model) from None


def stylize_request(options: JobOptions, accept: str | None, pipeline: Pipeline) -> StylizeRequest:
    """Checks a client's options and fills in the defaults.

    Raises:
        UnknownStyle: if the style is not installed.
        BadOption: if `max_side` or `timeout_s` is above the setting.
    """
    settings = pipeline.settings
    style = find_style(pipeline.styles, options.style or settings.default_style, pipeline.catalogue)
    note(style=style.name)
    max_side = options.max_side or settings.max_side
    if max_side > settings.max_side:
        detail = f"max_side is {max_side}; at most {settings.max_side} pixels are painted here."
        raise BadOption(detail, settings.max_side, max_side, "pixels")
    timeout_s = (options.timeout_s if isinstance(options, Options) else None) or settings.timeout_s
    if timeout_s > settings.timeout_s:
        detail = f"timeout_s is {timeout_s:g}; a picture may take {settings.timeout_s:g} seconds here at most."
        raise BadOption(detail, settings.timeout_s, timeout_s, "seconds")
    return StylizeRequest(
        style=style.name,
        max_side=max_side,
        multiple=style.multiple,
        format=options.format or negotiate(accept, settings.default_format),
        quality=options.quality,
        timeout_s=timeout_s,
    )


def without_waited(wanted: StylizeRequest, waited_s: str) -> StylizeRequest:
    """Returns the request with less time, by the seconds that it has waited in the guard.

    Raises:
        DeadlineExceeded: if there is no time left.
    """
    if not re.fullmatch(r"\d{1,6}\.\d{3}", waited_s):  # not the guard's
        return wanted
    left_s = wanted.timeout_s - float(waited_s)
    if left_s <= 0:
        raise DeadlineExceeded(f"The picture had to wait for more than the {wanted.timeout_s:g} seconds it was given.")
    return replace(wanted, timeout_s=left_s)
