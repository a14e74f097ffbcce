"""Whether a value is what a setting wants: its type, its choices, its range. Says what was expected."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from sslkit.errors import UserError, nearest


def checked(key: str, value: Any, hint: Any, metadata: Mapping[str, Any]) -> Any:
    """`value` as `hint` wants it, or a UserError that names key, value and what was expected."""
    if value == "auto" and metadata.get("auto"):
        return value
    value = _typed(key, value, hint)
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not isinstance(number, bool):
            _in_range(key, number, metadata)
    if metadata.get("ordered") and value[0] > value[1]:
        raise UserError(f"{key}: {value[0]} is not <= {value[1]}", "the smaller of the two first")
    return value


def _typed(key: str, value: Any, hint: Any) -> Any:
    """The value with the type of the field; an int serves as float, a list as tuple."""
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if isinstance(value, list | tuple):
            if kinds[-1] is Ellipsis:
                return tuple(_typed(key, item, kinds[0]) for item in value)
            if len(value) == len(kinds):
                return tuple(_typed(key, item, kind) for item, kind in zip(value, kinds, strict=True))
        raise UserError(f"{key}: {value!r} is not a list of {_described(kinds)}")
    if get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        raise UserError(
            f"{key}: {value!r} is not one of {', '.join(map(str, get_args(hint)))}",
            nearest(str(value), get_args(hint)),
        )
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise UserError(f"{key}: {value!r} is not Unicode, which TOML needs", "rename the file or folder")
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise UserError(f"{key}: {value!r} is not {_named(hint)}")
    return value


def _named(kind: type) -> str:
    return {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}.get(
        kind, kind.__name__
    )


def _described(kinds: Sequence[Any]) -> str:
    return "texts" if kinds[-1] is Ellipsis else f"{len(kinds)} numbers"


def _in_range(key: str, number: float, metadata: Mapping[str, Any]) -> None:
    if not math.isfinite(number):
        raise UserError(f"{key}: {number} is not a finite number")
    if (above := metadata.get("above")) is not None and not number > above:
        raise UserError(f"{key}: {number} is not > {above}")
    if (low := metadata.get("low")) is not None and number < low:
        raise UserError(f"{key}: {number} is not >= {low}")
    if (high := metadata.get("high")) is not None and number > high:
        raise UserError(f"{key}: {number} is not <= {high}")
