"""What every method must hold, checked one by one on two tiny backbones and generated images.

sslkit's own tests run it over all methods, `sslkit methods --test mine.py` over anybody's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sslkit.testing.contract.case import BACKBONES, Case
from sslkit.testing.contract.checks import CHECKS
from sslkit.testing.contract.two_processes import BACKBONE, compare_processes

__all__ = ["BACKBONES", "CHECKS", "Case", "Outcome", "compare_processes", "contract", "reason"]


@dataclass(frozen=True)
class Outcome:
    """One check of one method on one backbone."""

    backbone: str
    check: str
    reason: str  # why it fails, in one line; empty if it holds


def contract(name: str) -> Iterator[Outcome]:
    """All checks of one method, each as soon as it is done. A backbone that it refuses gets only the first.

    Raises:
        UserError: no such method, or its file holds none.
    """
    for backbone in BACKBONES:
        case = Case(name, backbone)
        for check in CHECKS:
            outcome = Outcome(backbone, check, reason(case, check))
            yield outcome
            if check == next(iter(CHECKS)) and (outcome.reason or not case.accepted):
                break
        else:
            if backbone == BACKBONE:
                yield Outcome(backbone, "two processes equal one", compare_processes([name])[name])


def reason(case: Case, check: str) -> str:
    """Why a check fails, in one line; empty if it holds."""
    try:
        CHECKS[check](case)
    except Exception as problem:  # what a method raises is an outcome of its test
        return case.describe(problem)
    return ""
