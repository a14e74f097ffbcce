"""The result of one check of the environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One line of `sslkit doctor`."""

    name: str
    state: State
    text: str  # what was found
    cure: str = ""  # what to do; empty if it is well

    @classmethod
    def judged(cls, name: str, well: bool, text: str, cure: str, otherwise: State = "warning") -> Finding:
        """ok, or `otherwise` with the cure."""
        return cls(name, "ok", text) if well else cls(name, otherwise, text, cure)
