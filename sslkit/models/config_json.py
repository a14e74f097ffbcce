"""config.json beside weights: what timm reads, written, and checked before anything is built from it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import safetensors
import timm
from torch import Tensor

from sslkit.core.console import counted
from sslkit.core.errors import UserError
from sslkit.core.value_range import BYTES, FULL, Range, parse_range
from sslkit.models.encoder import Encoder
from sslkit.models.factory import Stem, is_vit, named_patch
from sslkit.models.foreign import read_safetensors, refuse_transformers
from sslkit.models.foreign.shapes import grid_of

LARGEST = 4096
"""Pixels of a side above which a config.json is taken for damaged."""

BUILT = {"img_size", "patch_size", "dynamic_img_size", "global_pool", "fc_norm", "pool_include_prefix"}
BUILT |= {"use_fc_norm", "use_post_transformer_norm", "in_chans", "num_classes", "num_heads"}
"""What model_args may hold: with another activation, for example, tensors would fit and features be wrong."""


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json that timm and sslkit share; "sslkit" is a section that timm does not read."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))
        refuse_transformers(folder, config)
        _check_config(config)
    except (AttributeError, ValueError, KeyError, TypeError, IndexError, OSError, RecursionError) as problem:
        reason = str(problem) if isinstance(problem, ValueError) else repr(problem)
        raise UserError(
            f"{folder / 'config.json'} is not a timm model configuration: {reason}", "was it edited?"
        ) from None
    for name, value in config.get("model_args", {}).items():
        if (name not in BUILT and not name.endswith("_rate")) or (name == "pool_include_prefix" and value):
            wrong = f"{folder / 'config.json'}: model_args {name} {value!r:.40} is not built here"
            raise UserError(wrong, "give weights of timm's own architecture; image and patch size may differ")
    return config


def _check_config(config: dict[str, Any]) -> None:
    """Types and ranges of all that is read from a config.json."""
    arguments, made = config.get("model_args", {}), config["pretrained_cfg"]
    if isinstance(pair := arguments.get("img_size"), list) and len(pair) == 2 and pair[0] == pair[1]:
        arguments["img_size"] = pair[0]  # as timm itself writes it
    sides = {key: arguments[key] for key in ("img_size", "patch_size", "num_heads") if key in arguments}
    for key, value in {**sides, "input_size": made["input_size"][-1]}.items():
        if type(value) is not int or not 0 < value <= LARGEST:
            unit = "heads" if key == "num_heads" else "pixels"
            raise ValueError(f"{key} {value!r:.40}, {unit} from 1 to {LARGEST:,} expected")
    if type(config.get("num_classes", 0)) is not int:
        raise ValueError(f"num_classes {config['num_classes']!r:.40}, a whole number expected")
    if type(config["architecture"]) is not str or stem_of(config) not in get_args(Stem):
        raise ValueError(f"architecture {config['architecture']!r:.40}, stem {stem_of(config)!r:.40}")
    if arguments.get("dynamic_img_size"):
        arguments["img_size"]
    _range_of(config)
    for key, least in (("mean", -math.inf), ("std", 0.0)):
        if len(made[key]) != 3 or not all(least < float(value) < math.inf for value in made[key]):
            raise ValueError(f"{key} {made[key]!r:.40}, three finite numbers expected")


def config_behind(file: Path, tensors: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """The config.json beside a file of weights; a ViT's sizes are read from its tensors where it has none.

    timm 1.0.26 writes no model_args unless `save_for_hf` is handed them.
    `tensors`: those of the file, where they are read already.
    """
    config = read_config(file.parent)
    name, arguments = config["architecture"], config.get("model_args", {})
    if "img_size" in arguments or not is_vit(name):
        return config
    found = grid_of(read_safetensors(file) if tensors is None else tensors)
    if found is not None and found != (side_of(config), named_patch(name)):
        size, patch = found
        config["model_args"] = {"patch_size": patch, **arguments, "img_size": size}
    return config


def side_of(config: dict[str, Any]) -> int:
    """The side of the images that the weights were made for, pixels."""
    arguments = config.get("model_args", {})
    fixed = None if arguments.get("dynamic_img_size") else arguments.get("img_size")
    return int(fixed or config["pretrained_cfg"]["input_size"][-1])


def stem_of(config: dict[str, Any]) -> Stem:
    """The stem in a config.json; the model's own where it has none."""
    stem: Stem = config.get("sslkit", {}).get("stem", "standard")
    return stem


def range_behind(file: Path, config: dict[str, Any]) -> Range:
    """The range of the images that weights were trained on; earlier versions read all of them in full."""
    if known := _range_of(config):
        return known
    with safetensors.safe_open(file, framework="pt") as opened:
        return FULL if "sslkit" in (opened.metadata() or {}) else BYTES


def _range_of(config: dict[str, Any]) -> Range | None:
    """The range in a config.json; None where it has none."""
    own = config.get("sslkit", {})
    return parse_range(own["range"], own.get("nodata", [])) if "range" in own else None


def without_head(
    file: Path, config: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[dict[str, Tensor], str]:
    """A classifier's tensors without its last layer's, and one line about what was left out.

    Raises:
        UserError: there is no last layer of that many classes.
    """
    classes, heads = config["num_classes"], _heads(config)
    begins, named = tuple(f"{head}." for head in heads), ", ".join(heads) or "of no name"
    if not any(t.shape[:1] == (classes,) for name, t in tensors.items() if name.startswith(begins)):
        problem = f"{file} has no last layer ({named:.40}) of {classes:,} classes"
        raise UserError(problem, "was config.json edited?")
    note = f"classifier of {counted(classes, 'class', 'classes')}; its last layer ({named}) is not taken"
    own = config.get("model_args", {}).get("global_pool", config.get("global_pool", "avg"))
    if own not in ("avg", "fast", "", None):
        note += f", and vectors are means where it pooled by {own!r:.40}"
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(begins)}, note


def _heads(config: dict[str, Any]) -> tuple[str, ...]:
    """What timm calls the last layer: `fc`, `head.fc`; two of a distilled model."""
    named = config["pretrained_cfg"].get("classifier")
    if not named and (entry := timm.get_pretrained_cfg(config["architecture"], allow_unregistered=True)):
        named = entry.classifier
    if isinstance(named, str):
        return (named,)
    return tuple(map(str, named)) if isinstance(named, list | tuple) else ()


def timm_config(encoder: Encoder) -> dict[str, Any]:
    """What `timm.create_model("local-dir:FOLDER", pretrained=True)` reads as config.json.

    timm has no argument for the small stem and knows no range: those stand in the section "sslkit".
    """
    side = encoder.size
    own: dict[str, Any] = {"range": encoder.range.setting()}
    own |= {"nodata": list(encoder.range.nodata)} if encoder.range.nodata else {}
    own |= {"stem": encoder.stem} if encoder.stem != "standard" else {}
    return {
        "architecture": encoder.name.split(".")[0],
        "num_classes": 0,
        "num_features": int(encoder.model.num_features),
        "global_pool": "avg",
        "model_args": encoder.arguments,
        "pretrained_cfg": {
            "input_size": [3, side, side],
            "fixed_input_size": "img_size" in encoder.arguments
            and not encoder.arguments.get("dynamic_img_size"),
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "mean": [round(value, 6) for value in encoder.mean.flatten().tolist()],
            "std": [round(value, 6) for value in encoder.std.flatten().tolist()],
            "num_classes": 0,
            "pool_size": None,
            "first_conv": None,
            "classifier": None,
        },
        "sslkit": own,
    }
