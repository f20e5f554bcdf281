"""The HTTP routes of styles: which there are, and how each paints. They ask for no API key."""

from fastapi import FastAPI, Request
from fastapi.responses import Response

from serve_app.errors import NoThumbnail
from serve_app.jobs.works import photo_digest
from serve_app.styles.catalogue import InstalledStyle, Style, find_style
from serve_app.web.conditions import entity_tag, read_condition
from serve_app.web.job_routes import root_path
from serve_app.web.pipeline import Pipeline
from serve_app.web.receipts import job_terms
from serve_app.web.reuse import not_modified
from serve_app.web.schemas import IF_NONE_MATCH, NOT_MODIFIED, THUMBNAIL, StyleInfo, StyleList, problems

# A retrained style keeps its address, so its old picture is shown for an hour at most.
PUBLIC = {"Cache-Control": "public, max-age=3600", "X-Content-Type-Options": "nosniff"}
CONDITION = IF_NONE_MATCH | {"description": "Entity tags of paintings that the client has: then the answer is 304."}


def add_style_routes(app: FastAPI, pipeline: Pipeline) -> None:
    """Adds the routes to an application."""

    @app.get("/v1/styles", summary="Styles that paint here, and those that can be pulled")
    async def styles(request: Request) -> StyleList:
        return list_styles(pipeline, root_path(request))

    @app.get(
        "/v1/styles/{name}/thumbnail",
        response_class=Response,
        responses=THUMBNAIL | NOT_MODIFIED | problems(404),
        openapi_extra={"parameters": [CONDITION]},
        summary="A small sample painting of a style",
    )
    async def thumbnail(request: Request, name: str) -> Response:
        style = find_style(pipeline.styles, name, pipeline.catalogue)
        if not style.thumbnail:
            raise NoThumbnail(f"The style {style.name} has no thumbnail here; installing it again paints one.")
        tag = entity_tag(photo_digest(style.thumbnail))
        if read_condition(request.headers.getlist("if-none-match")).is_met_by(tag):
            return not_modified(tag, PUBLIC)
        return Response(style.thumbnail, media_type="image/webp", headers=PUBLIC | {"ETag": tag})


def list_styles(pipeline: Pipeline, root_path: str) -> StyleList:
    """Returns the default style, then other installed ones, then those of the catalogue that can be downloaded.

    Args:
        pipeline: of the service.
        root_path: of the service, before the paths of its routes.
    """
    default = pipeline.settings.default_style
    listed: dict[str, Style] = {**pipeline.catalogue, **pipeline.styles}
    infos = [
        StyleInfo(
            **style.model_dump(include={"name", "title", "summary", "licence", "source", "credit", "resize"}),
            installed=style.name in pipeline.styles,
            default=style.name == default,
            thumbnail=thumbnail_address(style, root_path),
        )
        for style in listed.values()
    ]
    infos.sort(key=lambda info: (not info.default, not info.installed, info.name))
    return StyleList(
        styles=infos,
        max_side=pipeline.settings.max_side,
        max_bytes=pipeline.settings.max_bytes,
        jobs=None if pipeline.jobs is None else job_terms(pipeline.jobs.settings),
    )


def thumbnail_address(style: Style, root_path: str) -> str | None:
    """Returns the path of the address of a style's thumbnail; None if it has none."""
    if isinstance(style, InstalledStyle) and style.thumbnail:
        return f"{root_path.rstrip('/')}/v1/styles/{style.name}/thumbnail"
    return None
