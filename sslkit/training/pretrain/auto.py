"""Fill in every `auto` setting, with a reason.

The choices are for people with 1,000 to 100,000 images and one GPU or none; recipes hold a paper's instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sslkit.core.config.auto_resolver import AutoResolver
from sslkit.core.config.build import PretrainConfig
from sslkit.core.config.setting import AUTO
from sslkit.core.device import pick_precision
from sslkit.core.errors import UserError
from sslkit.core.paths import next_folder
from sslkit.data.images.range_estimate import NONE, RangeEstimate
from sslkit.data.loading.workers import reading_workers
from sslkit.data.sources.set_range import choose_range
from sslkit.methods import load, short_name
from sslkit.methods.base import Info
from sslkit.models.factory import Stem, is_vit, named_patch
from sslkit.models.input_size import nearest_size, outline, takes
from sslkit.models.weights import Architecture, architecture
from sslkit.training.run.folder import RUNS

IMAGES_SEEN = {"cuda": 20_000_000, "mps": 3_000_000, "cpu": 300_000}
"""How many views a run looks at by default: an hour or so on such a device."""


USUAL_WARMUP = 15
"""One of so many epochs is warm-up, as in the paper."""


@dataclass(frozen=True)
class Resolved:
    """A configuration without auto, and why each of its values was chosen."""

    config: PretrainConfig
    info: Info
    reasons: dict[str, str]


def resolve(
    config: PretrainConfig, count: int, native: int, device: torch.device, numbers: RangeEstimate = NONE
) -> Resolved:
    """Fill in every auto.

    Args:
        count: images in the set.
        native: median short side of the stored images, pixels.
        numbers: the range of the set.

    Raises:
        UserError: a batch larger than the data.
    """
    choice = AutoResolver(config)
    large = device.type == "cuda"
    if config.model.init:
        named = "" if config.model.backbone == AUTO else config.model.backbone
        made, reason = architecture(config.model.init, named), f"that of {config.model.init}"
        choice("model.backbone", made.name, reason)
        choice("data.size", made.size, reason)
        choice("model.patch_size", made.patch_size, reason)
        _take_stem(choice, made, reason)
        _take_heads(choice, made, reason)
    usual = "vit_small_patch16_224" if large else "vit_tiny_patch16_224"
    backbone = choice("model.backbone", usual, f"for {device.type}")
    stem = choice.config.model.stem
    if choice.config.data.size == AUTO:
        side = _size(backbone, native, 64 if stem == "small" else 224 if large else 96)
        choice("data.size", *_taken(backbone, side, stem, f"images have {native} px, for {device.type}"))
    size = choice.config.data.size
    choice("model.patch_size", *_patch_size(backbone, size))
    batch = choice("run.batch_size", min(256 if large else 64, count), f"for {device.type}")
    if batch > count:
        raise UserError(
            f"batch of {batch} is larger than the data: {count} images", f"--batch-size {count} or less"
        )
    epochs = choice(
        "schedule.epochs",
        max(5, min(800, IMAGES_SEEN.get(device.type, 300_000) // count)),
        "a first guess; the clock decides" if config.run.max_time else f"{count:,} images",
    )
    choice(
        "schedule.warmup_epochs",
        round(epochs / USUAL_WARMUP, 2),
        "a fifteenth of the epochs, as in the paper",
    )
    choice("run.precision", pick_precision(config.run.precision, device), "what the chip multiplies fastest")
    choice("model.memory_format", *_memory_format(backbone, size, stem, device))
    choice("run.device", str(device), "found here")
    choice("run.micro_batch", 0, "the whole batch, or what fits a GPU")
    choice("data.workers", reading_workers(not large), "processor cores")
    choice("data.cache", "memory", "decoded once where the images fit")
    choose_range(choice, numbers)
    choice(
        "run.log_every", max(1, min(50, (count // batch) * epochs // 100 or 1)), "about a hundred lines a run"
    )
    choice(
        "run.out",
        str(next_folder(RUNS, f"{short_name(config.method_name)}-{_plain(backbone)}")),
        "the next free name",
    )
    method, kind = load(config.method_name), _kind(backbone, size, stem)
    info = Info(count, size, native, backbone)
    for key, (value, reason) in method.resolve(config.method, kind, info).items():
        choice(key if "." in key else f"method.{key}", value, reason)
    adamw = choice("optim.name", "adamw", "suits every backbone") == "adamw"
    decay = choice("optim.weight_decay", 0.05 if adamw else 1e-4, f"usual for {choice.config.optim.name}")
    choice("optim.weight_decay_end", decay, "constant")
    choice("optim.lr", *_learning_rate(batch, config.optim.reference_batch))
    return Resolved(choice.config, info, choice.reasons)


def _take_stem(choice: AutoResolver[PretrainConfig], made: Architecture, reason: str) -> None:
    """The stem of the weights to start from: a small one is taken over, a standard one can't become small."""
    model = choice.config.model
    if model.stem == made.stem or _plain(model.backbone) != _plain(made.name):
        return
    if made.stem == "standard":
        raise UserError(
            f"model.stem is small, and --init {model.init} ({made.name}) has the standard stem",
            "-s model.stem=standard, or leave out --init",
        )
    choice.take("model.stem", made.stem, reason)


def _take_heads(choice: AutoResolver[PretrainConfig], made: Architecture, reason: str) -> None:
    """The attention heads of the weights to start from, where they are not the name's own."""
    model = choice.config.model
    if model.heads == made.heads or _plain(model.backbone) != _plain(made.name):
        return
    if model.heads:
        own = made.heads or "timm's number of"
        raise UserError(
            f"model.heads is {model.heads}, and --init {model.init} has {own} heads", "leave it out"
        )
    choice.take("model.heads", made.heads, reason)


def _size(backbone: str, native: int, usual: int) -> int:
    """The usual side, or what the images hold, in whole steps of 32 px, or of an odd patch such as 14."""
    patch = named_patch(backbone)
    step = patch if patch and 32 % patch else 32
    return max(step, min(usual, native) // step * step)


def _taken(backbone: str, side: int, stem: Stem, reason: str) -> tuple[int, str]:
    """That side, or the nearest one that the backbone takes (windows, fixed positions)."""
    if is_vit(backbone) or takes(backbone, side, stem=stem):
        return side, reason
    fits = nearest_size(backbone, side, stem=stem)
    return (fits, f"{backbone} does not take {side} px") if fits else (side, reason)


def _patch_size(backbone: str, size: int) -> tuple[int, str]:
    """A ViT's own patch (0) where it leaves at least 6 × 6 tokens, else the largest one that does."""
    own = named_patch(backbone)
    if not is_vit(backbone) or not own or size // own >= 6:
        return 0, "the model's own"
    patch = max(side for side in range(1, size // 6 + 1) if size % side == 0)
    if size // patch > 14:  # more tokens than the paper's: rather let the size be refused
        return 0, "the model's own"
    return patch, f"{size // patch} × {size // patch} tokens at {size} px"


def _memory_format(backbone: str, size: int, stem: Stem, device: torch.device) -> tuple[str, str]:
    """What `Encoder` does by itself; on a GPU also what only a CPU can't train."""
    if _kind(backbone, size, stem) != "cnn":
        return "contiguous", "it is no CNN"
    if device.type != "cuda" and outline(backbone, size, stem=stem).breaks_channels_last:
        return "contiguous", "a CPU can't train it in channels_last"
    return "channels_last", "the faster one for a CNN"


def _learning_rate(batch: int, reference: int) -> tuple[float, str]:
    """A base rate whose peak at this batch follows the square root of the batch, up to the paper's peak.

    The paper's linear rule is for batch 2,048 (peak 1.2e-3); at batch 64 it would leave AdamW hardly moving.
    """
    peak = min(1.2e-3, 1.5e-3 * (batch / 512) ** 0.5)
    return round(peak * reference / batch, 6), f"peak {peak:.2g} at batch {batch}: square-root rule"


def _kind(backbone: str, size: int, stem: Stem) -> str:
    """The family of a backbone, as its encoder will say."""
    return "vit" if is_vit(backbone) else outline(backbone, size, stem=stem).family


def _plain(backbone: str) -> str:
    return backbone.split(".")[0]
