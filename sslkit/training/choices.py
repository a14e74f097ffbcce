"""What is left to the tool: a value for each auto, and the reason that is printed beside it."""

from __future__ import annotations

import dataclasses
from typing import Any, Generic, TypeVar

from sslkit import place
from sslkit.config import AUTO
from sslkit.data.own_range import Found
from sslkit.data.workers import usable_cores

Configuration = TypeVar("Configuration")


class Chooser(Generic[Configuration]):
    """Replaces an auto in a configuration of sections and keeps the reason; a given value stays."""

    def __init__(self, config: Configuration) -> None:
        self.config = config
        self.reasons: dict[str, str] = {}

    def __call__(self, key: str, value: Any, reason: str) -> Any:
        """The value that `key` ("section.name") now has."""
        section, _, name = key.partition(".")
        given = getattr(getattr(self.config, section), name)
        return self.take(key, value, reason) if given == AUTO else given

    def take(self, key: str, value: Any, reason: str) -> Any:
        """`value` for `key` whatever it has now; returned again."""
        section, _, name = key.partition(".")
        own = getattr(self.config, section)
        self.reasons[key] = reason
        changed: dict[str, Any] = {section: dataclasses.replace(own, **{name: value})}
        self.config = dataclasses.replace(self.config, **changed)  # type: ignore[type-var]
        return value


def choose_range(choice: Chooser[Any], found: Found) -> None:
    """The range of the images; without a reason, and so untold, where none has more than 8 bits."""
    own = found.range
    choice("data.range", own.limits, found.reason if own.known else "")
    choice("data.nodata", own.nodata, found.fills if own.nodata else "")


def reading_workers(on_cpu: bool) -> int:
    """Processes that read images while a model trains: one per core for a GPU, at most eight.

    On the CPU they take cores from the training itself, and one feeds several of those. Processes that train
    together share the cores of their machine.
    """
    cores = max(1, usable_cores() // place.local_count())
    return max(1, cores // 4) if on_cpu else min(8, cores)
