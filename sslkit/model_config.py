"""config.json beside weights: what timm reads, checked before anything is built from it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, get_args

from sslkit.errors import UserError
from sslkit.timm_models import Stem

LARGEST = 4096
"""Pixels of a side above which a config.json is taken for damaged."""


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json that timm and sslkit share; "sslkit" is a section that timm does not read."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        _check_config(config)
    except (AttributeError, ValueError, KeyError, TypeError, IndexError, OSError, RecursionError) as problem:
        reason = str(problem) if isinstance(problem, ValueError) else repr(problem)
        raise UserError(
            f"{folder / 'config.json'} is not a timm model configuration: {reason}", "was it edited?"
        ) from None
    return config


def _check_config(config: dict[str, Any]) -> None:
    """Types and ranges of all that is read from a config.json."""
    arguments, made = config.get("model_args", {}), config["pretrained_cfg"]
    sides = {key: arguments[key] for key in ("img_size", "patch_size") if key in arguments}
    for key, value in {**sides, "input_size": made["input_size"][-1]}.items():
        if type(value) is not int or not 0 < value <= LARGEST:
            raise ValueError(f"{key} {value!r:.40}, pixels from 1 to {LARGEST:,} expected")
    if type(config.get("num_classes", 0)) is not int:
        raise ValueError(f"num_classes {config['num_classes']!r:.40}, a whole number expected")
    if type(config["architecture"]) is not str or stem_of(config) not in get_args(Stem):
        raise ValueError(f"architecture {config['architecture']!r:.40}, stem {stem_of(config)!r:.40}")
    if arguments.get("dynamic_img_size"):
        arguments["img_size"]
    for key, least in (("mean", -math.inf), ("std", 0.0)):
        if len(made[key]) != 3 or not all(least < float(value) < math.inf for value in made[key]):
            raise ValueError(f"{key} {made[key]!r:.40}, three finite numbers expected")


def stem_of(config: dict[str, Any]) -> Stem:
    """The stem that a config.json tells of; the model's own where it tells nothing."""
    stem: Stem = config.get("sslkit", {}).get("stem", "standard")
    return stem
