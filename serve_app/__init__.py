"""animegan-serve: turns photographs into anime with AnimeGANv2, as a Ray Serve service or from Python.

`Painter`, and torch with it, is imported when the name is first used: processes that never paint never load torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serve_app.painter import Painter

__all__ = ["Painter"]


def __getattr__(name: str) -> Any:
    if name == "Painter":
        from serve_app.painter import Painter

        return Painter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
