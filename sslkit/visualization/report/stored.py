"""Redraw the robustness figures of a run from its probe.json."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sslkit.core.console import command, visible
from sslkit.core.errors import UserError
from sslkit.evaluation.robustness.robustness_result import RobustnessResult
from sslkit.visualization.figures.robustness_charts import (
    attack_curves,
    corruption_bars,
    heat_maps,
    radius_curves,
)
from sslkit.visualization.figures.style import save_missing

FIGURES: dict[str, tuple[str, Callable[[RobustnessResult], Figure]]] = {
    "robust-corruptions": ("severities", corruption_bars),
    "robust-filters": ("radii", radius_curves),
    "robust-waves": ("frequencies", heat_maps),
    "robust-attacks": ("epsilons", attack_curves),
}
"""Kind of picture → the part of the plan that must have been measured, and who draws it."""


def robustness_figures(result: RobustnessResult) -> dict[str, Callable[[], Figure]]:
    """Kind → what draws it, of all that was measured."""
    rows = tuple(
        dataclasses.replace(row, name=visible(row.name), baseline=row.baseline and visible(row.baseline))
        for row in result.rows
    )
    shown = dataclasses.replace(result, rows=rows)
    return {
        kind: partial(draw, shown) for kind, (part, draw) in FIGURES.items() if getattr(result.plan, part)
    }


def draw_robustness(result: RobustnessResult, folder: Path) -> None:
    """`robustness_figures` as PNG files named by kind; files that exist stay."""
    for kind, figure in robustness_figures(result).items():
        save_missing(figure, folder / f"{kind}.png")


def read_result(run: Path, name: str) -> Any:
    """The document that a command has left in a run, as RUN/name.json; None where there is none.

    Raises:
        UserError: the file is damaged.
    """
    file = run / f"{name}.json"
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as problem:
        raise UserError(f"{file} can't be read: {problem}", "delete it, or probe again") from None


def probe_document(run: Path) -> dict[str, Any] | None:
    """What the latest `probe` of a run has found, or None. Raises UserError for a damaged file."""
    document = read_result(run, "probe")
    return document if isinstance(document, dict) else None


def stored_robustness(run: Path) -> RobustnessResult | None:
    """Of probe.json, without the shares of single images; None where there is none."""
    found = (probe_document(run) or {}).get("robustness")
    if not found:
        return None
    try:
        return RobustnessResult.of_document(found)
    except (KeyError, TypeError) as problem:
        file = run / "probe.json"
        raise UserError(
            f"{file} holds another robustness: {problem!r}", "sslkit probe RUN DATA --robust makes one anew"
        ) from None


def draw_stored(run: Path, kind: str) -> Figure:
    """One of `FIGURES`. Raises UserError where it was not measured."""
    problem, result = stored_refusal(run, kind), stored_robustness(run)
    if problem or result is None:
        raise problem or UserError(f"{run}: nothing measured")
    return robustness_figures(result)[kind]()


def stored_refusal(run: Path, kind: str, asked: str = "") -> UserError | None:
    """Why there is no such figure of the run, if there is none. `asked`: the group that was asked for."""
    result, name = stored_robustness(run), asked or kind
    cure = command("sslkit", "probe", run, "DATA", "--robust")
    if result is None:
        return UserError(f"{name}: no robustness was measured of {run}", cure)
    part = FIGURES[kind][0]
    if not getattr(result.plan, part):
        more = " --attacks" if part == "epsilons" else ""
        return UserError(f"{name}: the probe of {run} left {part} out", cure + more)
    return None
