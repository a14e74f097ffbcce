"""What a measurement of robustness found: a row per source, errors relative to a baseline, the table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sslkit.console import Console, counted
from sslkit.evaluation.corruptions import CORRUPTIONS, GROUPS, SEVERITIES
from sslkit.evaluation.frequency_robustness import (
    Wave,
    default_norm,
    default_radii,
    half_of,
    heat_map_axis,
    mirrored,
)
from sslkit.evaluation.verdict import Difference

Key = tuple[str, float | Wave]
"""One condition: ("clean", 0), (corruption, severity), ("low" or "high", radius), ("wave", (ky, kx)), or
("fgsm" or "pgd", epsilon)."""


@dataclass(frozen=True)
class Plan:
    """What is measured. An empty tuple leaves its part out."""

    severities: tuple[int, ...]  # of the fifteen corruptions
    radii: tuple[float, ...]  # of the filters, bins
    frequencies: tuple[int, ...]  # the heat map's axis, cycles per image
    wave_norm: float  # L2 norm of the heat map's noise in one channel
    epsilons: tuple[float, ...]  # of the attacks, in 1/255
    steps: int  # of PGD
    seed: int


def make_plan(
    side: int,
    *,
    severities: Sequence[int] = SEVERITIES,
    radii: Sequence[float] | None = None,
    heat_map: int = 4,
    epsilons: Sequence[float] = (0.25, 1.0),
    steps: int = 20,
    seed: int = 0,
) -> Plan:
    """A plan for images of `side` pixels.

    Args:
        radii: None is `default_radii`.
        epsilons: of the attacks. Little is left of a linear classifier on frozen features at 4/255.
        heat_map: frequencies on either side of zero; a map costs 2 h² + 2 h + 1 passes. 0 leaves it out.
    """
    return Plan(
        severities=tuple(severities),
        radii=default_radii(side) if radii is None else tuple(radii),
        frequencies=heat_map_axis(side, heat_map) if heat_map else (),
        wave_norm=default_norm(side),
        epsilons=tuple(epsilons),
        steps=steps,
        seed=seed,
    )


@dataclass(frozen=True)
class SourceRobustness:
    """One classifier. All in percent: accuracies, and errors in the heat map."""

    name: str
    clean: float
    corruptions: dict[str, tuple[float, ...]]  # accuracy for each severity
    low_pass: tuple[float, ...]  # for each radius
    high_pass: tuple[float, ...]
    heat_map: tuple[tuple[float, ...], ...]  # error; rows ky, columns kx, ascending
    fgsm: tuple[float, ...]  # for each epsilon
    pgd: tuple[float, ...]
    share: Tensor = dataclasses.field(repr=False, compare=False)  # [N]: in how many corruptions it is right
    mean_corruption_error: float | None = None  # relative to the baseline's, which has 100
    relative_corruption_error: float | None = None  # the same of what is lost against clean images
    difference: Difference | None = None  # mean accuracy under corruptions, against the baseline's

    @property
    def corrupted(self) -> float | None:
        """Mean accuracy over corruptions and severities."""
        return 100 * float(self.share.mean()) if len(self.share) else None


@dataclass(frozen=True)
class RobustnessResult:
    """All sources, on the same changed images."""

    rows: tuple[SourceRobustness, ...]
    baseline: str | None
    plan: Plan
    count: int  # images
    side: int  # pixels

    def to_document(self) -> dict[str, Any]:
        """Everything but the shares, for JSON."""
        document = dataclasses.asdict(self)
        for row, found in zip(document["rows"], self.rows, strict=True):
            del row["share"]
            row["corrupted"] = found.corrupted
            if found.difference is not None:
                row["difference"]["outcome"] = found.difference.outcome
        return document


def make_row(name: str, right: Mapping[Key, Tensor], plan: Plan) -> SourceRobustness:
    """right: bool [N] for each condition of the plan."""
    percent = {key: 100 * float(hits.double().mean()) for key, hits in right.items()}
    hits = [right[corruption, s] for corruption in CORRUPTIONS for s in plan.severities]
    errors = {wave: 100 - percent["wave", wave] for wave in half_of(plan.frequencies)}
    return SourceRobustness(
        name,
        clean=percent["clean", 0],
        corruptions={c: tuple(percent[c, s] for s in plan.severities) for c in CORRUPTIONS if hits},
        low_pass=tuple(percent["low", radius] for radius in plan.radii),
        high_pass=tuple(percent["high", radius] for radius in plan.radii),
        heat_map=mirrored(errors, plan.frequencies),
        fgsm=tuple(percent["fgsm", epsilon] for epsilon in plan.epsilons),
        pgd=tuple(percent["pgd", epsilon] for epsilon in plan.epsilons),
        share=torch.stack(hits).double().mean(0) if hits else torch.empty(0),
    )


def against(row: SourceRobustness, baseline: SourceRobustness) -> SourceRobustness:
    """The row with its errors relative to the baseline's.

    The means over corruptions of a ratio of errors summed over severities, in percent (Hendrycks and
    Dietterich, section 4), as they are and after each model's clean error was taken off. They divide by
    AlexNet's errors; here by those of the baseline, on the same images. Not defined where it has none.
    """
    if not row.corruptions:
        return row
    ratios = [_ratio(row, baseline, name, 100.0, 100.0) for name in CORRUPTIONS]
    relative = [_ratio(row, baseline, name, row.clean, baseline.clean) for name in CORRUPTIONS]
    return dataclasses.replace(
        row,
        mean_corruption_error=_mean(ratios),
        relative_corruption_error=_mean(relative),
        difference=None if row is baseline else _paired(row.share, baseline.share),
    )


def _ratio(
    row: SourceRobustness, other: SourceRobustness, name: str, level: float, its: float
) -> float | None:
    """What lies between accuracies and a level, as a ratio to the same for the other, in percent."""
    lost = sum(level - accuracy for accuracy in row.corruptions[name])
    reference = sum(its - accuracy for accuracy in other.corruptions[name])
    return 100 * lost / reference if reference > 0 else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _paired(first: Tensor, second: Tensor) -> Difference:
    """As `verdict.paired`, of shares [N] in place of hits."""
    difference = 100 * (first - second)
    margin = 1.96 * float(difference.std(correction=1)) / math.sqrt(len(difference))
    means = [100 * float(share.mean()) for share in (first, second)]
    return Difference(means[0], means[1], float(difference.mean()), margin, len(difference))


def show(result: RobustnessResult, console: Console) -> None:
    """The table for people: accuracies in percent."""
    groups = list(GROUPS) if result.plan.severities else []
    attacks = [f"PGD {epsilon:g}/255" for epsilon in result.plan.epsilons]
    head = ["", "clean", *(["corrupted"] if groups else []), *groups, *attacks]
    rows = []
    for row in result.rows:
        cells = [row.clean, *([] if row.corrupted is None else [row.corrupted])]
        cells += [_group_mean(row, group) for group in groups]
        rows.append([row.name, *(f"{value:.1f}" for value in (*cells, *row.pgd))])
    console.say(f"robustness on {counted(result.count, 'image')}, accuracy in %")
    console.table(head, rows)
    for row in result.rows:
        if row.difference is not None:
            error = "" if row.mean_corruption_error is None else f", mCE {row.mean_corruption_error:.1f}"
            console.say(f"{row.name} against {result.baseline}, corrupted: {row.difference}{error}")


def _group_mean(row: SourceRobustness, group: str) -> float:
    accuracies = [accuracy for name in GROUPS[group] for accuracy in row.corruptions[name]]
    return sum(accuracies) / len(accuracies)
