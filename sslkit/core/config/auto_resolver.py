"""A value for each setting that is `auto`, and the reason that is printed beside it."""

from __future__ import annotations

import dataclasses
from typing import Any, Generic, TypeVar

from sslkit.core.config.setting import AUTO

Configuration = TypeVar("Configuration")


class AutoResolver(Generic[Configuration]):
    """Replaces each `auto` in a configuration and keeps the reason; a value that was set stays."""

    def __init__(self, config: Configuration) -> None:
        self.config = config
        self.reasons: dict[str, str] = {}

    def __call__(self, key: str, value: Any, reason: str) -> Any:
        """The value that `key` ("section.name") now has."""
        section, _, name = key.partition(".")
        given = getattr(getattr(self.config, section), name)
        return self.take(key, value, reason) if given == AUTO else given

    def take(self, key: str, value: Any, reason: str) -> Any:
        """Set `key` to `value`, whatever it has now; returns `value`."""
        section, _, name = key.partition(".")
        own = getattr(self.config, section)
        self.reasons[key] = reason
        changed: dict[str, Any] = {section: dataclasses.replace(own, **{name: value})}
        self.config = dataclasses.replace(self.config, **changed)  # type: ignore[type-var]
        return value
