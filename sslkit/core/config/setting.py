"""How a setting is declared: as a field of a frozen dataclass, with all that is known of it."""

from __future__ import annotations

from dataclasses import field
from typing import Any

AUTO: Any = "auto"
"""Value that is chosen automatically. Typed Any so that fields keep the type they have once resolved."""


def setting(
    default: Any,
    help: str,
    *,
    above: float | None = None,
    low: float | None = None,
    high: float | None = None,
    auto: bool = False,
    ordered: bool = False,
    pairs: bool = False,
) -> Any:
    """A dataclass field: default, one sentence, range (`above` is exclusive), if it may be "auto", if it is a
    pair whose first number must not be above the second, or one or two whose first must be below it.
    """
    limits = {"above": above, "low": low, "high": high, "ordered": ordered, "pairs": pairs}
    return field(default=default, metadata={"help": help, "default": default, **limits, "auto": auto})


def range_setting(otherwise: str) -> Any:
    """`data.range`, of pre-training and of fine-tuning; `otherwise` says what auto is."""
    text = "numbers that are black and white in files of more than 8 bits: [low, high], or four, of integers "
    text += f"and of floats; full: those of each file's type; auto: {otherwise}"
    return setting(AUTO, text, auto=True, pairs=True)


def nodata_setting(otherwise: str) -> Any:
    """`data.nodata` likewise."""
    text = "numbers that stand for no data there and become black, beside what files name themselves; auto: "
    return setting(AUTO, text + otherwise, auto=True)


def workers_setting() -> Any:
    """`data.workers` likewise."""
    text = "processes that read images; 0: none, read in the training process; "
    text += "auto: one per core for a GPU, at most 8; on a CPU one for four cores"
    return setting(AUTO, text, low=0, auto=True)


def device_setting() -> Any:
    """`run.device` likewise."""
    return setting(AUTO, "cpu, cuda, cuda:1, mps; auto: a GPU where there is one", auto=True)


def precision_setting(otherwise: str = "") -> Any:
    """`run.precision` likewise; `otherwise` ends the sentence."""
    text = f"of matrix products and convolutions; auto: what the chip multiplies fastest{otherwise}"
    return setting(AUTO, text, auto=True)


def lines_setting() -> Any:
    """`run.log_every` likewise."""
    text = "steps between two lines of metrics; auto: about a hundred lines a run"
    return setting(AUTO, text, low=1, auto=True)
