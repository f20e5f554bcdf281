"""The HTTP routes that OpenAI's clients call: their edits of images are paintings, and their models are styles."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.responses import Response

from serve_app.frames import Client
from serve_app.styles.catalogue import InstalledStyle, find_style
from serve_app.web.openai_edits import EditResponse, Edits
from serve_app.web.openai_schemas import EDIT, EDITED, ModelInfo, ModelList, openai_errors
from serve_app.web.pipeline import Pipeline
from serve_app.web.schemas import KEY

Identify = Callable[[Request], Awaitable[Client]]


def add_openai_routes(app: FastAPI, pipeline: Pipeline, identify: Identify) -> None:
    """Adds the routes to an application.

    Args:
        app: to which they are added.
        pipeline: that does the work.
        identify: says whose request it is, or refuses it.
    """
    edits = Edits(pipeline)

    @app.post(
        "/v1/images/edits",
        response_class=Response,
        responses=EDITED | openai_errors(400, 401, 404, 408, 413, 415, 422, 429, 503),
        openapi_extra=EDIT | KEY,
        summary="Paint photographs, for OpenAI's clients",
    )
    async def edit(request: Request, client: Annotated[Client, Depends(identify)]) -> Response:
        return EditResponse(edits, request, client)

    @app.get("/v1/models", summary="The installed styles, for OpenAI's clients")
    async def models() -> ModelList:
        default = pipeline.settings.default_style
        infos = [model_info(style) for style in pipeline.styles.values()]
        return ModelList(data=sorted(infos, key=lambda info: (info.id != default, info.id)))

    @app.get(
        "/v1/models/{model}", responses=openai_errors(404), summary="One of the installed styles, for OpenAI's clients"
    )
    async def model(model: str) -> ModelInfo:
        return model_info(find_style(pipeline.styles, model, pipeline.catalogue))


def model_info(style: InstalledStyle) -> ModelInfo:
    """Returns an installed style as OpenAI's clients see it."""
    return ModelInfo(id=style.name, created=style.written_s, owned_by=style.credit)
