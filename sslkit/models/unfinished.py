"""The encoder of a run that has not ended: its newest whole checkpoint, under its settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from sslkit.core.checkpoint_files import whole
from sslkit.core.config import build as configuration
from sslkit.core.errors import UserError
from sslkit.core.value_range import Range, parse_range
from sslkit.models.config_json import timm_config
from sslkit.models.encoder import Encoder
from sslkit.models.foreign import read_safetensors

CHECKPOINTS = "checkpoints"
_MODEL, _BUFFERS = "encoder.model.", ("encoder.mean", "encoder.std")
_TRIES = 3  # a run that still trains removes its oldest checkpoint now and then


class Unfinished(NamedTuple):
    """The encoder so far."""

    file: Path  # of the weights, in the checkpoint
    config: dict[str, Any]  # as config.json will say it
    tensors: dict[str, Tensor]  # in timm's key names


def has_ended(run: Path) -> bool:
    """Whether a folder is a run's that is complete, or no run's at all."""
    try:
        facts = json.loads((run / "run.json").read_text(encoding="utf-8-sig"))
        kind, status = facts.get("kind", "pretrain"), facts.get("status", "completed")
        return bool(kind != "pretrain" or status == "completed")
    except (OSError, ValueError, RecursionError, AttributeError):
        return True


def newest_file(run: Path) -> Path | None:
    """The file of weights in the newest whole checkpoint of a run that has not ended; None: there is none."""
    if has_ended(run) or not (run / "config.toml").is_file():
        return None
    found = whole(run / CHECKPOINTS)
    return None if found is None else found / "model.safetensors"


def folder_of(file: Path) -> Path:
    """The run or exported folder that a file of weights belongs to."""
    above = file.parent.parent
    return above.parent if above.name == CHECKPOINTS else file.parent


def unfinished_notice(file: Path) -> str:
    """The sentence about weights that are those of a checkpoint."""
    step = int(file.parent.name.rpartition("-")[2])
    return f"{folder_of(file)} has not ended: the weights are those of its newest checkpoint, step {step:,}"


def open_unfinished(run: Path) -> Unfinished | None:
    """The newest weights; None for a run that has ended or has saved nothing.

    Raises:
        UserError: they don't fit the network of config.toml.
    """
    for _ in range(_TRIES):
        if (file := newest_file(run)) is None:
            return None
        try:
            tensors = read_safetensors(file)
        except (OSError, UserError):
            if file.is_file():
                raise
            continue
        return Unfinished(file, _described(run, tensors), _of_model(tensors))
    return None


def range_of(run: Path) -> Range:
    """The range of images of more than 8 bits in a run's settings. Raises ValueError."""
    values = configuration.read(str(run / "config.toml"))
    return parse_range(values["data.range"], values["data.nodata"])


def _of_model(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(_MODEL): t for name, t in tensors.items() if name.startswith(_MODEL)}


def _described(run: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The config.json of the encoder that the run's settings build."""
    values = configuration.read(str(run / "config.toml"))
    try:
        encoder = Encoder(
            str(values["model.backbone"]),
            int(values["data.size"]),
            patch_size=int(values.get("model.patch_size", 0)) or None,
            heads=int(values.get("model.heads", 0)) or None,
            stem=values.get("model.stem", "standard"),
        )
        encoder.range = range_of(run)
        for name in _BUFFERS:
            buffer = getattr(encoder, name.rpartition(".")[2])
            buffer.copy_(tensors[name])
    except (KeyError, ValueError, TypeError, RuntimeError) as problem:
        reason = str(problem).splitlines()[0]
        raise UserError(
            f"{run}: config.toml does not fit the checkpoint: {reason}", "was it edited?"
        ) from None
    return timm_config(encoder)
