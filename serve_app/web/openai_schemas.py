"""Parameters, answers and the OpenAPI description of the routes that OpenAI's clients call."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from serve_app.frames import MIN_SIDE, Size
from serve_app.web.schemas import BINARY, ReceiptInfo, format_name, headers

MOST_PICTURES = 10  # in one answer: OpenAI's have no more, since `n` ends there
SIZE = re.compile(r"(\d{1,5})x(\d{1,5})", re.ASCII)


class EditFields(BaseModel):
    """The parameters of an edit that mean something here. Others are passed over, because new ones come often."""

    model: str | None = Field(
        None, max_length=256, description="A style, as /v1/models lists them; by default the service's."
    )
    n: int = Field(
        1,
        ge=1,
        le=MOST_PICTURES,
        description=f"How often each picture is in the answer, which has at most {MOST_PICTURES}.",
    )
    size: str = Field(
        "auto",
        description=f"`auto`, or `WIDTHxHEIGHT` of {MIN_SIDE} or more: the painting fits into it, and keeps its shape.",
    )
    output_format: Annotated[Literal["png", "webp", "jpeg"], BeforeValidator(format_name)] = "png"
    output_compression: int | None = Field(None, ge=0, le=100, description="The quality of webp and jpeg.")
    response_format: Literal["b64_json"] = "b64_json"
    stream: bool = Field(False, description="Whether each picture comes as soon as it is painted, as an event.")

    @model_validator(mode="before")
    @classmethod
    def _without_empty_ones(cls, fields: Any) -> Any:
        """Takes null, and an empty field of a form, for one that is not given."""
        if not isinstance(fields, Mapping):
            return fields
        return {name: value for name, value in fields.items() if value is not None and value != ""}

    @field_validator("size")
    @classmethod
    def _is_a_size(cls, size: str) -> str:
        sides = SIZE.fullmatch(size)
        if size != "auto" and (sides is None or min(map(int, sides.groups())) < MIN_SIDE):
            raise PydanticCustomError("size", f"write auto, or WIDTHxHEIGHT in pixels, each {MIN_SIDE} or more")
        return size

    @property
    def box(self) -> Size | None:
        """What the painting has to fit into; None if the service decides."""
        sides = SIZE.fullmatch(self.size)
        return None if sides is None else Size(int(sides[2]), int(sides[1]))


class ImageReference(BaseModel):
    """An image in JSON."""

    image_url: str | None = Field(None, description="`data:image/…;base64,…`; others are not fetched.")
    file_id: str | None = Field(None, description="Not taken: there are no files here.")


class TokenDetails(BaseModel):
    """Kinds of tokens."""

    image_tokens: int = 0
    text_tokens: int = 0


class Usage(BaseModel):
    """Tokens, of which painting takes none."""

    input_tokens: int = 0
    input_tokens_details: TokenDetails = TokenDetails()
    output_tokens: int = 0
    output_tokens_details: TokenDetails = TokenDetails()
    total_tokens: int = 0


class EditedImage(BaseModel):
    """One painting."""

    b64_json: str
    receipt: ReceiptInfo = Field(description="What was done to the photograph. OpenAI's answers have no such member.")


class EditedImages(BaseModel):
    """The answer of an edit."""

    created: int = Field(description="Seconds since 1970.")
    data: list[EditedImage] = Field(description="In the order of the images; `n` of each.")
    output_format: Literal["png", "webp", "jpeg"]
    size: str | None = Field(description="`WIDTHxHEIGHT` of the paintings; null if they differ.")
    usage: Usage


class EditCompleted(BaseModel):
    """The data of an event: a painting is complete."""

    type: Literal["image_edit.completed"] = "image_edit.completed"
    background: Literal["auto"] = "auto"
    created_at: int
    output_format: Literal["png", "webp", "jpeg"]
    quality: Literal["auto"] = "auto"
    size: str
    usage: Usage = Usage()
    receipt: ReceiptInfo


class ModelInfo(BaseModel):
    """A style as OpenAI's clients see it."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="When its file was written here, in seconds since 1970; 0 if that is not known.")
    owned_by: str = Field(description="Whose work it is.")


class ModelList(BaseModel):
    """The installed styles."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]


class ErrorInfo(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """A refusal as OpenAI's clients read it."""

    error: ErrorInfo


def openai_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns the OpenAPI description of refusals with these statuses."""
    return {status: {"model": OpenAIError, "description": "Refused"} for status in statuses}


def body_schema(images: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the OpenAPI description of an edit's body, given that of the fields that hold images."""
    schema = EditFields.model_json_schema()
    prompt = {"type": "string", "description": "Accepted and ignored."}
    return {"type": "object", "properties": {"prompt": prompt, **images, **schema["properties"]}}


EDIT: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": f"Up to {MOST_PICTURES} images, which count together as one upload. Unknown fields are ignored.",
        "content": {
            "multipart/form-data": {
                "schema": body_schema({"image": BINARY, "image[]": {"type": "array", "items": BINARY}})
            },
            "application/json": {
                "schema": body_schema(
                    {
                        "images": {
                            "type": "array",
                            "minItems": 1,
                            "maxItems": MOST_PICTURES,
                            "items": ImageReference.model_json_schema(),
                        }
                    }
                )
            },
        },
    }
}
EDITED: dict[int | str, dict[str, Any]] = {
    200: {
        "model": EditedImages,
        "description": "The paintings. With `stream`, an event `image_edit.completed` for each.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
        "headers": headers(
            X_Style="Of the painting, if there is one; so are the other headers of /v1/stylize but `ETag`."
        ),
    }
}
