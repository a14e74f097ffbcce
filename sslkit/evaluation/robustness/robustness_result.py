"""What a measurement of robustness found: a row per source, errors relative to a baseline, the table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sslkit.augmentations.corruptions import CORRUPTIONS, GROUPS, SEVERITIES
from sslkit.core.console import Console, counted
from sslkit.evaluation.metrics.significance import Difference, paired_shares
from sslkit.evaluation.robustness.fourier_sensitivity import (
    Wave,
    default_norm,
    default_radii,
    half_of,
    heat_map_axis,
    mirrored,
)

Key = tuple[str, float | Wave]
"""One condition: ("clean", 0), (corruption, severity), ("low" or "high", radius), ("wave", (ky, kx)), or
("fgsm" or "pgd", epsilon)."""

EPSILONS = (0.25, 1.0)
"""Of the attacks, in 1/255. Little is left of a linear classifier on frozen features at 4."""


@dataclass(frozen=True)
class RobustnessPlan:
    """What is measured. An empty tuple leaves its part out."""

    severities: tuple[int, ...]  # of the fifteen corruptions
    radii: tuple[float, ...]  # of the filters, bins
    frequencies: tuple[int, ...]  # the heat map's axis, cycles per image
    wave_norm: float  # L2 norm of the heat map's noise in one channel
    epsilons: tuple[float, ...]  # of the attacks, in 1/255
    steps: int  # of PGD
    seed: int


def make_robustness_plan(
    side: int,
    *,
    severities: Sequence[int] = SEVERITIES,
    radii: Sequence[float] | None = None,
    heat_map: int = 4,
    epsilons: Sequence[float] = EPSILONS,
    steps: int = 20,
    seed: int = 0,
) -> RobustnessPlan:
    """A plan for images of `side` pixels.

    Args:
        radii: None is `default_radii`.
        epsilons: of the attacks, 1/255; () leaves them out.
        heat_map: frequencies on either side of zero; a map costs 2 h² + 2 h + 1 passes. 0 leaves it out.
    """
    return RobustnessPlan(
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
    share: Tensor = dataclasses.field(repr=False, compare=False)
    """[S, N]: in what share of the corruptions each image is named right, by each of S classifiers: one, or
    several that differ by their seed. Empty where none was measured, or where only the figures were kept."""
    baseline: str | None = None  # the row that the following is relative to
    mean_corruption_error: float | None = None  # relative to the baseline's, which has 100
    relative_corruption_error: float | None = None  # the same of what is lost against clean images
    difference: Difference | None = None  # mean accuracy under corruptions, against the baseline's

    @property
    def corrupted(self) -> float | None:
        """Mean accuracy over corruptions and severities."""
        accuracies = [accuracy for found in self.corruptions.values() for accuracy in found]
        return sum(accuracies) / len(accuracies) if accuracies else None


@dataclass(frozen=True)
class RobustnessResult:
    """All sources, on the same changed images."""

    rows: tuple[SourceRobustness, ...]
    plan: RobustnessPlan
    count: int  # images
    side: int  # pixels
    seeds: int = 1  # classifiers that a row is the mean of

    def to_document(self) -> dict[str, Any]:
        """Everything but the shares, for JSON."""
        document = dataclasses.asdict(self)
        for row, found in zip(document["rows"], self.rows, strict=True):
            del row["share"]
            row["corrupted"] = found.corrupted
            if found.difference is not None:
                row["difference"]["outcome"] = found.difference.outcome
        return document

    @classmethod
    def of_document(cls, document: Mapping[str, Any]) -> RobustnessResult:
        """The inverse of `to_document`, but for the shares; KeyError or TypeError if it isn't one."""
        rows = tuple(_row_of(row) for row in document["rows"])
        plan = RobustnessPlan(
            **{item.name: _tuple(document["plan"][item.name]) for item in dataclasses.fields(RobustnessPlan)}
        )
        return cls(rows, plan, document["count"], document["side"], document["seeds"])


def _row_of(document: Mapping[str, Any]) -> SourceRobustness:
    names = {item.name for item in dataclasses.fields(SourceRobustness)} - {"share", "difference"}
    values = {name: _tuple(document[name]) for name in names}
    values["corruptions"] = {name: _tuple(found) for name, found in document["corruptions"].items()}
    if (found := document["difference"]) is not None:
        own = {item.name: found[item.name] for item in dataclasses.fields(Difference)}
        values["difference"] = Difference(**own)
    return SourceRobustness(**values, share=torch.empty(1, 0))


def _tuple(value: Any) -> Any:
    """JSON's lists as the tuples they were."""
    return tuple(map(_tuple, value)) if isinstance(value, list) else value


def make_robustness_row(name: str, right: Mapping[Key, Tensor], plan: RobustnessPlan) -> SourceRobustness:
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
        share=torch.stack(hits).double().mean(0, keepdim=True) if hits else torch.empty(1, 0),
    )


def mean_row(name: str, rows: Sequence[SourceRobustness]) -> SourceRobustness:
    """Classifiers that differ by their seed as one row: the means of all figures. Before `against`."""

    def mean(field: str) -> tuple[float, ...]:
        return _means([getattr(row, field) for row in rows])

    return SourceRobustness(
        name,
        clean=sum(row.clean for row in rows) / len(rows),
        corruptions={c: _means([row.corruptions[c] for row in rows]) for c in rows[0].corruptions},
        low_pass=mean("low_pass"),
        high_pass=mean("high_pass"),
        heat_map=tuple(map(_means, zip(*(row.heat_map for row in rows), strict=True))),
        fgsm=mean("fgsm"),
        pgd=mean("pgd"),
        share=torch.cat([row.share for row in rows]),
    )


def _means(lists: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Of equally long lists, place by place."""
    return tuple(sum(values) / len(values) for values in zip(*lists, strict=True))


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
        baseline=None if row is baseline else baseline.name,
        mean_corruption_error=_mean(ratios),
        relative_corruption_error=_mean(relative),
        difference=None if row is baseline else paired_shares(row.share, baseline.share),
    )


def _ratio(
    row: SourceRobustness, other: SourceRobustness, name: str, level: float, its: float
) -> float | None:
    """The summed distances of accuracies from a level, relative to those of the other, in percent."""
    lost = sum(level - accuracy for accuracy in row.corruptions[name])
    reference = sum(its - accuracy for accuracy in other.corruptions[name])
    return 100 * lost / reference if reference > 0 else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def show_robustness(result: RobustnessResult, console: Console) -> None:
    """The table for people, and what is relative to a baseline."""
    console.say(title(result))
    console.table(*robustness_table(result))
    for sentence in relative_sentences(result):
        console.say(sentence)


def title(result: RobustnessResult) -> str:
    """The table's title."""
    means = f", means over {result.seeds} seeds" if result.seeds > 1 else ""
    return f"robustness on {counted(result.count, 'image')}, accuracy in %{means}"


def robustness_table(result: RobustnessResult) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what was measured, but for the filters and the heat map, which are pictures."""
    groups = list(GROUPS) if result.plan.severities else []
    attacks = [f"{name} {epsilon:g}/255" for name in ("FGSM", "PGD") for epsilon in result.plan.epsilons]
    head = ["", "clean", *(["corrupted"] if groups else []), *groups, *attacks]
    rows = []
    for row in result.rows:
        cells = [row.clean, *([] if row.corrupted is None else [row.corrupted])]
        cells += [_group_mean(row, group) for group in groups]
        rows.append([row.name, *(f"{value:.1f}" for value in (*cells, *row.fgsm, *row.pgd))])
    return head, rows


def relative_sentences(result: RobustnessResult) -> list[str]:
    """A sentence for every row that has a baseline."""
    return [
        f"{row.name} against {row.baseline}, corrupted: {row.difference}, "
        f"mCE {_or_none(row.mean_corruption_error)}, relative {_or_none(row.relative_corruption_error)}"
        for row in result.rows
        if row.difference is not None
    ]


def _or_none(error: float | None) -> str:
    return "n/a" if error is None else f"{error:.1f}"


def _group_mean(row: SourceRobustness, group: str) -> float:
    accuracies = [accuracy for name in GROUPS[group] for accuracy in row.corruptions[name]]
    return sum(accuracies) / len(accuracies)
