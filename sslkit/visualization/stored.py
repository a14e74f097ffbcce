"""The robustness that a run's probe.json holds, as figures again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from sslkit.console import command
from sslkit.errors import UserError
from sslkit.evaluation.robustness_scores import Plan, RobustnessResult, SourceRobustness
from sslkit.visualization.robustness import attack_curves, corruption_bars, heat_maps, radius_curves

FIGURES: dict[str, tuple[str, Callable[[RobustnessResult], Figure]]] = {
    "robust-corruptions": ("severities", corruption_bars),
    "robust-filters": ("radii", radius_curves),
    "robust-waves": ("frequencies", heat_maps),
    "robust-attacks": ("epsilons", attack_curves),
}
"""Kind of picture → the part of the plan that must have been measured, and who draws it."""


def probe_document(run: Path) -> dict[str, Any] | None:
    """What the latest `probe` of a run has found, or None. Raises UserError for a damaged file."""
    file = run / "probe.json"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as problem:
        raise UserError(f"{file} can't be read: {problem}", "delete it, or probe again") from None
    return document if isinstance(document, dict) else None


def stored_robustness(run: Path) -> RobustnessResult | None:
    """Of probe.json, without the shares of single images; None where there is none."""
    found = (probe_document(run) or {}).get("robustness")
    if not found:
        return None
    try:
        rows = tuple(_row(row) for row in found["rows"])
        plan = Plan(**{name: _tuple(found["plan"][name]) for name in _names(Plan)})
        return RobustnessResult(rows, found["baseline"], plan, found["count"], found["side"])
    except (KeyError, TypeError) as problem:
        file = run / "probe.json"
        raise UserError(
            f"{file} holds another robustness: {problem!r}", "probe again with --robust"
        ) from None


def draw_stored(run: Path, kind: str) -> Figure:
    """One of `FIGURES`. Raises UserError where it was not measured."""
    problem, result = refusal_of(run, kind), stored_robustness(run)
    if problem or result is None:
        raise problem or UserError(f"{run}: nothing measured")
    return FIGURES[kind][1](result)


def refusal_of(run: Path, kind: str, asked: str = "") -> UserError | None:
    """Why there is no such figure of the run, if there is none. `asked` is the word for it, if another."""
    result, name = stored_robustness(run), asked or kind
    cure = command("sslkit", "probe", run, "DATA", "--robust")
    if result is None:
        return UserError(f"{name}: no robustness was measured of {run}", cure)
    part = FIGURES[kind][0]
    if not getattr(result.plan, part):
        more = " --attacks" if part == "epsilons" else ""
        return UserError(f"{name}: the probe of {run} left {part} out", cure + more)
    return None


def _row(row: dict[str, Any]) -> SourceRobustness:
    values = {name: _tuple(row[name]) for name in _names(SourceRobustness) if name not in _LEFT_OUT}
    values["corruptions"] = {name: tuple(found) for name, found in row["corruptions"].items()}
    return SourceRobustness(**values, share=torch.empty(0))


_LEFT_OUT = ("share", "difference")


def _names(kind: type[Any]) -> list[str]:
    return [item.name for item in dataclasses.fields(kind)]


def _tuple(value: Any) -> Any:
    """JSON's lists as the tuples they were."""
    return tuple(map(_tuple, value)) if isinstance(value, list) else value
