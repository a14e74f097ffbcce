"""Check a value against its setting: type, choices, range. Errors say what was expected."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from sslkit.core.errors import UserError, nearest

MIN_SIDE, MAX_SIDE = 8, 4096
"""Sides of square views, pixels; larger ones fill the memory, and files have 64 megapixels at most."""


def checked(key: str, value: Any, hint: Any, metadata: Mapping[str, Any]) -> Any:
    """`value` with the type of `hint`, or a UserError that names key, value and what was expected."""
    auto = bool(metadata.get("auto"))
    if value == "auto" and auto:
        return value
    try:
        value = _typed(key, value, hint, auto)
    except UserError as problem:
        problem.hint = problem.hint or _expected(key, hint, metadata)
        raise
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not isinstance(number, bool):
            _in_range(key, number, metadata)
    if metadata.get("pairs") and isinstance(value, tuple):
        _in_pairs(key, value)
    if metadata.get("ordered") and value[0] > value[1]:
        raise UserError(f"{key}: {value[0]} is not <= {value[1]}", "the smaller of the two first")
    return value


def refuse_range(size: int | None, seed: int) -> None:
    """Raises UserError: a --size that no image can have (None: the source's own), or a --seed below 0."""
    checked("--seed", seed, int, {"low": 0, "default": 0})
    if size is not None:
        checked("--size", size, int, {"low": MIN_SIDE, "high": MAX_SIDE})


def refuse_huge(name: str, size: int) -> None:
    """Raises UserError, before anything is built: images of more than MAX_SIDE pixels a side."""
    if size > MAX_SIDE:
        problem = f"{name} can't take images of {size} px: more than {MAX_SIDE}"
        raise UserError(problem, f"--size of {MAX_SIDE} at most")


def _expected(key: str, hint: Any, metadata: Mapping[str, Any]) -> str:
    """What may be given, in words: the range, `auto`, the default.

    An option that expects a number takes no `auto`: leaving it out means that.
    """
    typed = key.startswith("--")
    low, high, above = (metadata.get(name) for name in ("low", "high", "above"))
    words = [_named(hint)] if isinstance(hint, type) and hint is not bool else []
    if above is not None:
        words.append(f"above {above:g}" + (f", up to {high:g}" if high is not None else ""))
    elif low is not None and high is not None:
        words.append(f"from {low:g} to {high:g}")
    elif low is not None:
        words.append(f"of {low:g} or more")
    text = " ".join(words) + (", or auto" if words and metadata.get("auto") and not typed else "")
    default = metadata.get("default")
    advice = "" if default in (None, "", ()) else f"the default is {default}"
    advice = f"leave it out: {advice}" if typed and advice else advice
    return "; ".join(filter(None, (text, advice)))


def _typed(key: str, value: Any, hint: Any, auto: bool = False) -> Any:
    """The value with the type of the field; an int serves as float or text, a list as tuple.

    Of a choice between words and numbers a list is the numbers.
    """
    if get_origin(hint) in (Union, UnionType):
        numbers, words = sorted(get_args(hint), key=lambda kind: str(get_origin(kind)) == str(Literal))
        return _typed(key, value, numbers if isinstance(value, list | tuple) else words, auto)
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if kinds == (float, ...) and isinstance(value, int | float) and not isinstance(value, bool):
            value = [value]
        if isinstance(value, list | tuple):
            if kinds[-1] is Ellipsis:
                return tuple(_typed(key, item, kinds[0]) for item in value)
            if len(value) == len(kinds):
                return tuple(_typed(key, item, kind) for item, kind in zip(value, kinds, strict=True))
        raise UserError(f"{key}: {value!r} is not a list of {_described(kinds)}")
    if get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        known = [*(["auto"] if auto else []), *map(str, get_args(hint))]
        raise UserError(f"{key}: {value!r} is not one of {', '.join(known)}", nearest(str(value), known))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, int) and not isinstance(value, bool):  # run.save_every=500
        return str(value)
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
    many = "numbers" if kinds[0] is float else "texts"
    return many if kinds[-1] is Ellipsis else f"{len(kinds)} numbers"


def _in_pairs(key: str, numbers: Sequence[float]) -> None:
    """Two numbers, or four, the first of each two below the second."""
    if len(numbers) not in (2, 4):
        raise UserError(f"{key}: {len(numbers)} numbers, two or four expected", "[0, 4095], for example")
    for low, high in zip(numbers[::2], numbers[1::2], strict=True):
        if not low < high:
            raise UserError(f"{key}: {low:g} is not < {high:g}", "the smaller of the two first")


def _in_range(key: str, number: float, metadata: Mapping[str, Any]) -> None:
    low, high, above = (metadata.get(name) for name in ("low", "high", "above"))
    if not math.isfinite(number):
        wrong = "a finite number"
    elif above is not None and not number > above:
        wrong = f"> {above}"
    elif low is not None and number < low:
        wrong = f">= {low}"
    elif high is not None and number > high:
        wrong = f"<= {high}"
    else:
        return
    raise UserError(f"{key}: {number} is not {wrong}", _expected(key, type(number), metadata))
