"""Times and intervals among the settings: what they mean, and those that are longer than the run.

A recipe's warm-up is kept as it is written, so a much shorter run would be warm-up from its first step to its
last, and end at a few percent of its rate.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from sslkit.core.console import Console
from sslkit.core.errors import UserError

_COUNTS_EPOCHS = "epochs "
"""How the sentence of a method's setting begins that counts epochs."""


def interval(text: str) -> tuple[float, str]:
    """ "10m" → (600, "seconds"); also s, h; "5e" → (5, "epochs"); "500" → (500, "steps").

    Raises:
        UserError: none of these, or not positive.
    """
    if (found := _amount(text)) is None:
        problem = f"--save-every (run.save_every): {text!r} is not an interval"
        raise UserError(problem, "--save-every 10m, or 30s, 2h, 5e (epochs), 500 (steps)")
    return found


def refuse_times(run: Any) -> None:
    """A UserError for `save_every` or `max_time` that is none, before anything is read."""
    interval(run.save_every)
    if run.max_time:
        seconds_of(run.max_time)


def _amount(text: str) -> tuple[float, str] | None:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhe]?)", text.strip())
    if match is None or float(match[1]) <= 0:
        return None
    number, unit = float(match[1]), match[2]
    if unit in ("s", "m", "h"):
        return number * {"s": 1, "m": 60, "h": 3600}[unit], "seconds"
    return number, "epochs" if unit == "e" else "steps"


def seconds_of(text: str) -> float:
    """ "8h" → 28,800.

    Raises:
        UserError: not a time.
    """
    found = _amount(text)
    if found is None or found[1] != "seconds":
        cure = "--max-time 8h, or 30s, 30m: a number with its unit"
        raise UserError(f"--max-time (run.max_time): {text!r} is not a time", cure)
    return found[0]


class _Span(NamedTuple):
    """Something of a run that lasts too long for it, and what to type instead."""

    told: str
    cure: str


def refuse_longer_than_run(config: Any, count: int, share: int, console: Console) -> None:
    """Nothing if warm-up, saving, logging and the method's own epochs fit into the run.

    Args:
        config: a PretrainConfig or FinetuneConfig without auto.
        count: images of an epoch.
        share: the usual warm-up is 1 of so many epochs.

    Raises:
        UserError: names each one that doesn't, the run's length, and what to type.
    """
    if getattr(config.run, "max_time", ""):  # the clock decides how many epochs there are
        return
    epochs, per_epoch = config.schedule.epochs, count // config.run.batch_size
    found = [*_of_schedule(config, epochs, share), *_of_run(config.run, epochs, per_epoch)]
    found += _of_method(getattr(config, "method", None), epochs)
    if config.schedule.warmup_epochs == epochs:
        console.warn("the whole run is warm-up: its rate only rises", _shorter(epochs, share))
    if found:
        told = ", ".join(span.told for span in found)
        length = f"{epochs} epoch{'s' * (epochs != 1)} of {per_epoch} step{'s' * (per_epoch != 1)}"
        raise UserError(f"longer than the run ({length}): {told}", " ".join(span.cure for span in found))


def _of_schedule(config: Any, epochs: int, share: int) -> Iterator[_Span]:
    warmup = config.schedule.warmup_epochs
    if warmup > epochs:
        yield _Span(f"a warm-up of {warmup:g} epochs", _shorter(epochs, share))


def _shorter(epochs: int, share: int) -> str:
    return f"-s schedule.warmup_epochs={round(epochs / share, 2):g}"


def _of_run(run: Any, epochs: int, per_epoch: int) -> Iterator[_Span]:
    number, unit = interval(run.save_every)
    if number > {"epochs": epochs, "steps": epochs * per_epoch}.get(unit, number):
        yield _Span(f"saving every {number:g} {unit}", "--save-every 1e")
    if run.log_every > epochs * per_epoch:
        yield _Span(f"logging every {run.log_every} steps", f"-s run.log_every={max(1, per_epoch)}")


def _of_method(method: Any, epochs: int) -> Iterator[_Span]:
    for item in dataclasses.fields(method) if method is not None else ():
        value = getattr(method, item.name)
        if str(item.metadata.get("help", "")).startswith(_COUNTS_EPOCHS) and value > epochs:
            fewer = min(value, epochs // 10)
            yield _Span(f"method.{item.name} of {value:g} epochs", f"-s method.{item.name}={fewer}")
