"""The rows of a probe before they are measured: sources, random weights, other models, raw pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sslkit.core.config.validate import refuse_range
from sslkit.core.console import Console, nearby
from sslkit.core.device import Precision
from sslkit.core.errors import UserError, nearest, nearest_path
from sslkit.core.value_range import BYTES, Range
from sslkit.data.sources.image_set import ImageSet
from sslkit.data.sources.set_range import asked_range, find_range
from sslkit.evaluation.probe.evaluator import FeaturePass
from sslkit.evaluation.probe.features import PIXEL_SIDE, pixels
from sslkit.evaluation.probe.readout import chosen, read_out
from sslkit.models.encoder import Encoder
from sslkit.models.weights import load_encoder

BASELINES = ("random", "pixels")


@dataclass(frozen=True)
class ProbeRow:
    """One row to be measured."""

    name: str
    kind: str  # "source", "random", "baseline", "pixels"
    one: FeaturePass
    against: tuple[str, ...] = ()  # names of the rows that a source is compared with


@dataclass(frozen=True)
class ProbeOptions:
    """How the rows are to be made."""

    baselines: Sequence[str]
    readout: str
    size: int | None
    seed: int
    precision: Precision
    range: str | Sequence[float] | None = None


def make_rows(sources: Sequence[str], wanted: ProbeOptions, console: Console) -> list[ProbeRow]:
    """The sources, one row of random weights per architecture and size, other baselines, raw pixels.

    Raises:
        UserError: no source, one that can't be opened, a size out of range, an unknown baseline, a read-out
            that one of them lacks.
    """
    if not sources:
        raise UserError("no source given", "name a run, e.g. runs/mfm-…-1, or timm/resnet50")
    refuse_range(wanted.size, wanted.seed)
    named = list(dict.fromkeys(sources))
    others = [name for name in dict.fromkeys(wanted.baselines) if name not in BASELINES]
    for name in others:
        if "/" not in name and not Path(name).exists():
            cure = nearest_path(name, nearest(name, BASELINES))
            raise UserError(f"unknown baseline {name!r}: random, pixels or a SOURCE", cure)
    if twice := next((name for name in others if name in named), None):
        raise UserError(f"{twice} is a source and a baseline", "name it once")

    encoders = {name: load_encoder(name, wanted.size, wanted.seed, console=console) for name in named}
    models = {name: load_encoder(name, wanted.size, wanted.seed, console=console) for name in others}
    for name, encoder in (encoders | models).items():
        encoder.range = asked_range(encoder.range, wanted.range, name, console)
    architectures = {_random_name(encoder): encoder for encoder in encoders.values()}
    random = architectures if "random" in wanted.baselines else {}
    baselines = [
        *((name, "random", _pass(name, _reset(one, wanted.seed), wanted)) for name, one in random.items()),
        *((name, "baseline", _pass(name, one, wanted)) for name, one in models.items()),
    ]
    if "pixels" in wanted.baselines:
        one = FeaturePass("raw pixels", None, pixels, "pixels", PIXEL_SIDE, "float32")
        baselines.append(("raw pixels", "pixels", one))
    rows = [
        ProbeRow(name, "source", _pass(name, encoder, wanted), _against(name, encoder, baselines))
        for name, encoder in encoders.items()
    ]
    return rows + [ProbeRow(*baseline) for baseline in baselines]


def shared_range(entries: Sequence[ProbeRow]) -> Range:
    """What rows without a range of their own read by: that of the first source that has one."""
    return next((entry.one.range for entry in entries if entry.one.range != BYTES), BYTES)


def refuse_ranges(entries: Sequence[ProbeRow], images: ImageSet, flag: str) -> None:
    """Refuse sources that read numbers differently where all are shown the same images.

    Raises:
        UserError: there are such sources, and images of more than 8 bits.
    """
    ranges = {entry.one.range: entry.name for entry in entries if entry.one.range != BYTES}
    if len(ranges) > 1 and find_range(images).range.known:
        (first, one), (second, other), *_ = ranges.items()
        problem = f"{flag} shows all sources the same images: {nearby(one)} reads numbers by "
        problem += f"data.range = {first.in_words()}, {nearby(other)} by {second.in_words()}"
        raise UserError(problem, "probe them one by one, or give --range")


def _against(
    source: str, encoder: Encoder, baselines: Sequence[tuple[str, str, FeaturePass]]
) -> tuple[str, ...]:
    """Names of the baselines; none for a source that is random weights itself."""
    if source.startswith("random/"):
        return ()
    own = _random_name(encoder)
    return tuple(name for name, kind, _ in baselines if kind != "random" or name == own)


def _pass(name: str, encoder: Encoder, wanted: ProbeOptions) -> FeaturePass:
    names = chosen(encoder, wanted.readout)
    encoder.requires_grad_(False)
    read = read_out(encoder, names)
    return FeaturePass(name, encoder, read, " ".join(names), encoder.size, wanted.precision, encoder.range)


def _random_name(encoder: Encoder) -> str:
    patch = encoder.arguments.get("patch_size")
    variant = f" patch {patch}" if patch else " small stem" if encoder.stem == "small" else ""
    variant += f" {heads} heads" if (heads := encoder.arguments.get("num_heads")) else ""
    return f"random {encoder.name}{variant} {encoder.size} px"


def _reset(encoder: Encoder, seed: int) -> Encoder:
    """The same architecture with random weights."""
    torch.manual_seed(seed)
    random = Encoder(
        encoder.name,
        encoder.size,
        patch_size=encoder.arguments.get("patch_size"),
        heads=encoder.arguments.get("num_heads"),
        stem=encoder.stem,
    )
    random.mean.copy_(encoder.mean)
    random.std.copy_(encoder.std)
    random.range = encoder.range
    return random.eval()
