"""Settings of views that many methods share: one line in a Config, one sentence for all. Imports no torch.

A method gives its own value, and says in `help` whose it is.
"""

from __future__ import annotations

from typing import Any

from sslkit.core.config.setting import setting


def share(value: Any, help: str, *, above: float | None = None) -> Any:
    """A number, or several, in [0, 1]; `above=0` leaves 0 out."""
    return setting(value, help, low=0 if above is None else None, above=above, high=1)


def area(value: Any, help: str) -> Any:
    """Bounds of a crop's area, share of the image."""
    return setting(value, help, above=0, high=1, ordered=True)


def crop_scale(low: float, high: float = 1.0) -> Any:
    """Area of the random crops."""
    help = "area of the random crops, share of the image (official)"
    return setting((low, high), help, low=0, high=1, ordered=True)


def flip(value: float = 0.5) -> Any:
    """Probability of a horizontal flip."""
    return share(value, f"probability of a horizontal flip (official: {value:g})")


def jitter(brightness: float, contrast: float, saturation: float) -> Any:
    """Strengths of the colour jitter."""
    help = "of brightness, contrast and saturation (official)"
    return setting((brightness, contrast, saturation), help, low=0)


def hue(value: float, note: str = "") -> Any:
    """Jitter of the hue."""
    return setting(value, f"jitter of the hue, turns (official: {value:g}{note})", low=0, high=0.5)


def jitter_share(value: float, note: str = "") -> Any:
    """Probability of the colour jitter."""
    return share(value, f"probability of colour jitter (official: {value:g}{note})")
