from __future__ import annotations

import warnings
from typing import Any


def __getattr__(name: str) -> Any:
    """What stood here when this was a file, for one version: people's own method files import it."""
    if name not in ("ImageSet", "open_images"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sslkit.data.sources import image_set

    warnings.warn(f"{__name__}.{name} is {image_set.__name__}.{name} now", DeprecationWarning, stacklevel=2)
    return getattr(image_set, name)
