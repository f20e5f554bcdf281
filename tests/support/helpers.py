"""Small things that several tests make."""

import io
from typing import Any

import torch

from serve_app.styles.catalogue import Style


def make_style(name: str = "seeded", **changes: Any) -> Style:
    fields: dict[str, Any] = {
        "name": name,
        "title": "Seeded",
        "resize": "align",
        "eps": 1e-5,
        "licence": "MIT",
        "source": "made by a test",
        "credit": "a test",
    }
    return Style(**fields | changes)


def torch_bytes(content: Any, **options: Any) -> bytes:
    """A checkpoint's bytes as `torch.save` writes them."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()
