"""Options that stand for settings, made from the fields: each is declared once, by `setting(flag=…)`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from inspect import Parameter
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from sslkit.cli import completion
from sslkit.core.config.setting import AUTO, Flag

_COMPLETED: dict[str, Callable[..., Any]] = {
    "model.backbone": completion.backbones,
    "run.device": completion.among(AUTO, "cpu", "cuda", "mps"),
}


def with_settings(
    sections: Mapping[str, type], before: str, *only: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of all settings that have a flag, in place of its `**given`.

    Args:
        sections: their names → the dataclasses.
        before: the parameter that these options come before, in help too.
        only: names of the options that the command has; none: all.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        options = [option for option in _options(sections) if not only or option.name in only]
        texts = {option.name for option in options if get_args(option.annotation)[0] == str | None}
        parameters: list[Parameter] = []
        for parameter in inspect.signature(command).parameters.values():
            if parameter.name == before:
                parameters += options
            if parameter.kind is not Parameter.VAR_KEYWORD:
                parameters.append(parameter.replace(annotation=hints[parameter.name]))

        @wraps(command)
        def run(**given: Any) -> None:
            command(**{name: _number(value) if name in texts else value for name, value in given.items()})

        # Typer reads the signature, and would otherwise find that of the wrapped function.
        del run.__wrapped__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return decorate


def _options(sections: Mapping[str, type]) -> Iterator[Parameter]:
    for section, part in sections.items():
        hints = get_type_hints(part)
        for item in dataclasses.fields(part):
            flag: Flag | None = item.metadata["flag"]
            if flag is None:
                continue
            key = f"{section}.{item.name}"
            words = completion.words_of(key) if get_origin(hints[item.name]) is Literal else None
            option = typer.Option(
                *flag.names,
                help=flag.help or _sentence(item.metadata["help"]),
                metavar=flag.metavar or None,
                autocompletion=_COMPLETED.get(key) or words,
            )
            kind = _kind(hints[item.name], item.metadata)
            yield Parameter(
                flag.word,
                Parameter.POSITIONAL_OR_KEYWORD,
                default=None,
                annotation=Annotated[kind | None, option],
            )


def _kind(hint: Any, metadata: Mapping[str, Any]) -> type:
    """What is typed: a number, a text or nothing; a text too where `auto` is more than leaving it out."""
    if metadata["auto"] and metadata["default"] != AUTO:
        return str
    return hint if hint in (int, float, bool) else str


def _sentence(help: str) -> str:
    """The first part of a field's sentence: "passes over the images; auto: …" → "Passes over the images." """
    first = help.partition(";")[0]
    return f"{first[0].upper()}{first[1:]}."


def _number(text: Any) -> Any:
    """A whole number where it is one; else the text, for the setting's own check (auto, or refused)."""
    return int(text) if isinstance(text, str) and text.lstrip("-").isdecimal() else text
