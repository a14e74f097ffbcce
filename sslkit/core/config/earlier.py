"""What earlier versions wrote into config.toml, and what it means now. A run opens as it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RETIRED: Mapping[str, Any] = {"optim.layer_decay": 1.0}
"""Settings of pre-training that earlier versions wrote, and the value equivalent to today's behaviour.
With it such a run opens as it was; another value can't be followed, and is refused."""

ADDED: Mapping[str, Any] = {
    "schedule.cosine_after_warmup": False,
    "optim.decay_norms": False,
    "data.range": "full",
    "data.nodata": [],
}
"""Settings that earlier versions did not write, and the value that does what they did, where a method or the
field itself has another default now."""

_WHOLE = {"run.out", "run.log_every", "optim.eps", "schedule.min_lr"}
"""Settings that a run's own config.toml has, as it has all, and a file written by hand hardly ever."""


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a file; those of a run's own config.toml with what its version did not write."""
    return {**ADDED, **values} if values.keys() >= _WHOLE else dict(values)
