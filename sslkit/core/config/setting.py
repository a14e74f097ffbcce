"""How a setting is declared: as a field of a frozen dataclass, with all that is known of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

AUTO: Any = "auto"
"""Value that is chosen automatically. Typed Any so that fields keep the type they have once resolved."""


@dataclass(frozen=True)
class Flag:
    """The option of the command line that stands for a setting.

    Attributes:
        names: as people type them, the short one first: ("-e", "--epochs"), or ("--attacks/--no-attacks",).
        help: one sentence; "": the first part of the setting's own.
        metavar: the placeholder of the value in help; "": its type.
    """

    names: tuple[str, ...]
    help: str = ""
    metavar: str = ""

    @property
    def word(self) -> str:
        """Its name in Python: "batch_size"."""
        return self.names[-1].partition("/")[0].removeprefix("--").replace("-", "_")


def flag(names: str, help: str = "", metavar: str = "") -> Flag:
    """flag("-e --epochs")"""
    return Flag(tuple(names.split()), help, metavar)


SIZE = flag("--size", "Side of the images that go in, pixels.")
CACHE = flag("--cache", "memory: decode once, where it fits; off: never.")
LEARNING_RATE = flag("--lr", "Base learning rate, per 512 images.")
EPOCHS = flag("-e --epochs")
OUT = flag("-o --out", "Folder to make; never an existing one.")
BATCH_SIZE = flag("--batch-size", "Images per optimizer step.")
SAVE_EVERY = flag("--save-every", "30s, 10m, 2h, 5e (epochs), 500 (steps).")
SEED = flag("--seed", "Seed of everything random.")
"""Options of pre-training and of fine-tuning alike."""


def flags_of(sections: Mapping[str, type]) -> dict[str, str]:
    """Word of a flag → the setting it stands for: "lr" → "optim.lr"."""
    return {
        item.metadata["flag"].word: f"{name}.{item.name}"
        for name, part in sections.items()
        for item in dataclasses.fields(part)
        if item.metadata["flag"] is not None
    }


def setting(
    default: Any,
    help: str,
    *,
    flag: Flag | None = None,
    above: float | None = None,
    low: float | None = None,
    high: float | None = None,
    auto: bool = False,
    ordered: bool = False,
    pairs: bool = False,
    source: bool = False,
) -> Any:
    """A dataclass field: default, one sentence, its option, range (`above` is exclusive), if it may be
    "auto", as whatever has AUTO as default, if it is a pair whose first number must not be above the second,
    or one or two whose first must be below it, or if it names a SOURCE of weights.
    """
    limits = {"above": above, "low": low, "high": high, "ordered": ordered, "pairs": pairs}
    auto = auto or (isinstance(default, str) and default == AUTO)
    known = {"help": help, "default": default, "flag": flag, **limits, "auto": auto, "source": source}
    return field(default=default, metadata=known)


def source_setting(help: str) -> Any:
    """A SOURCE of weights that a method looks at: a run, a file, timm/NAME; kept as an absolute path."""
    return setting("", help, source=True)


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
    return setting(
        AUTO, text, low=0, auto=True, flag=flag("--workers", "Processes that read images; 0: none.")
    )


def device_setting() -> Any:
    """`run.device` likewise."""
    text = "cpu, cuda, cuda:1, mps; auto: a GPU where there is one"
    return setting(AUTO, text, auto=True, flag=flag("--device", "auto, cpu, cuda, cuda:1 or mps."))


def precision_setting(otherwise: str = "") -> Any:
    """`run.precision` likewise; `otherwise` ends the sentence."""
    text = f"of matrix products and convolutions; auto: what the chip multiplies fastest{otherwise}"
    option = flag("--precision", "auto, float32, tf32, bfloat16, float16.")
    return setting(AUTO, text, auto=True, flag=option)


def lines_setting() -> Any:
    """`run.log_every` likewise."""
    text = "steps between two lines of metrics; auto: about a hundred lines a run"
    return setting(AUTO, text, low=1, auto=True)
