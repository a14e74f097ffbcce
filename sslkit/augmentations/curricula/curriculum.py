"""A curriculum: how large images are, and how strongly they are augmented, from a run's beginning to its end.

It is a pure function of the share of the planned compute that is used. A run is planned once: `plan` turns
shares of compute into shares of steps, which differ, as a step on smaller images costs less.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, Protocol

from sslkit.core.errors import UserError


@dataclass(frozen=True)
class Stage:
    """What a step sees."""

    size: float  # share of each view's side, in (0, 1]
    strength: float  # of the augmentation, 0 … 1
    cost: float  # of a step, relative to one at full size


class StageShare(NamedTuple):
    """A stage, and the share of the run's compute that it gets."""

    share: float
    stage: Stage


class Curriculum(Protocol):
    """Stages one after the other; a file of this folder holds one, with a `Config` of its settings."""

    parts: tuple[StageShare, ...]

    def at(self, progress: float) -> Stage:
        """The stage when this share of the planned compute is used, 0 … 1."""
        ends = list(accumulate(part.share for part in self.parts[:-1]))
        # A share such as 0.6 is not a sum of floats: what rounding leaves belongs to the next stage.
        return self.parts[bisect_right(ends, progress + 1e-9)].stage


def stages_of(sizes: Sequence[float], strengths: Sequence[float]) -> list[Stage]:
    """Stages of these sizes; a step costs as many pixels as it sees.

    Raises:
        UserError: none.
    """
    if not sizes:
        raise UserError("sizes: a curriculum of no stages", "one number for each stage, 1 is the full side")
    return [Stage(size, strength, size**2) for size, strength in zip(sizes, strengths, strict=True)]


def by_compute(stages: Sequence[Stage]) -> tuple[StageShare, ...]:
    """Stages that get equal shares of the compute."""
    return tuple(StageShare(1 / len(stages), stage) for stage in stages)


def by_steps(stages: Sequence[Stage], shares: Sequence[float] | None = None) -> tuple[StageShare, ...]:
    """Stages that get these shares of the steps, equal ones by default; they sum to 1."""
    shares = [1 / len(stages)] * len(stages) if shares is None else shares
    costs = [share * stage.cost for share, stage in zip(shares, stages, strict=True)]
    total = math.fsum(costs)
    return tuple(StageShare(cost / total, stage) for cost, stage in zip(costs, stages, strict=True))


def steps_per_full_step(curriculum: Curriculum) -> float:
    """Steps of the curriculum for the compute of one step at full size, on average: Σ share / cost."""
    return math.fsum(part.share / part.stage.cost for part in curriculum.parts)


@dataclass(frozen=True)
class Plan:
    """The stage of each of a run's steps, and the share of the compute used before it.

    Attributes:
        stages: those that have steps, in their order.
        firsts: the first step of each; the first of all is 0.
        steps: of the whole run.
    """

    stages: tuple[Stage, ...]
    firsts: tuple[int, ...]
    steps: int

    def stage(self, step: int) -> Stage:
        """Of a step, counted from 0."""
        return self.stages[bisect_right(self.firsts, step) - 1]

    def progress(self, step: int) -> float:
        """Share of the compute used before this step: continuous, 0 at step 0 and 1 at the end."""
        return self._used(step) / self._used(self.steps)

    @property
    def full_steps(self) -> float:
        """Steps at full size that would cost as much as this run."""
        return self._used(self.steps)

    def _used(self, step: int) -> float:
        """Compute before a step, in steps at full size."""
        ends = (*self.firsts[1:], self.steps)
        spans = zip(self.firsts, ends, self.stages, strict=True)
        return math.fsum(stage.cost * max(0, min(step, end) - first) for first, end, stage in spans)


def plan(curriculum: Curriculum, steps: int) -> Plan:
    """The curriculum over a run of so many steps; called once, when the run is planned.

    Each stage gets the steps that its share of the compute pays for, rounded to whole ones; a stage for which
    that is none is left out.
    """
    if steps < 1:
        raise ValueError(f"a run of {steps} steps, expected 1 or more")
    total = steps_per_full_step(curriculum)
    spent = accumulate(part.share / part.stage.cost / total for part in curriculum.parts)
    ends = [round(steps * share) for share in spent]
    ends[-1] = steps
    firsts = [0, *ends[:-1]]
    kept = [number for number, (first, end) in enumerate(zip(firsts, ends, strict=True)) if first < end]
    stages = tuple(curriculum.parts[number].stage for number in kept)
    return Plan(stages, tuple(firsts[number] for number in kept), steps)
