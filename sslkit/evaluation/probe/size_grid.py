"""What another input size or normalisation than the model's own costs, or gains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sslkit.core.device import Precision
from sslkit.core.errors import UserError
from sslkit.evaluation.metrics.significance import accuracy
from sslkit.evaluation.probe.evaluator import FeaturePass, ProbeEvaluator
from sslkit.evaluation.probe.readout import ReadFunction, read_out
from sslkit.models.encoder import IMAGENET_MEAN, IMAGENET_STD, Encoder

FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5)
"""Of the model's own size."""
Normalization = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per channel."""


@dataclass(frozen=True)
class Cell:
    """One size and one normalisation; accuracies in percent."""

    source: str
    size: int
    normalization: str  # "own", "ImageNet", "none"
    knn: float
    knn_interval: float  # half of 95 %
    linear: float
    linear_interval: float


def sizes_around(size: int, stride: int) -> tuple[int, ...]:
    """Multiples of the stride next to `FACTORS` times the size, ascending, each once."""
    return tuple(sorted({max(stride, round(size * factor / stride) * stride) for factor in FACTORS}))


def normalizations(encoder: Encoder) -> dict[str, Normalization]:
    """The encoder's own; ImageNet's, where it is another one; none."""
    own = tuple(encoder.mean.flatten().tolist()), tuple(encoder.std.flatten().tolist())
    imagenet = bool(torch.allclose(torch.tensor(own), torch.tensor((IMAGENET_MEAN, IMAGENET_STD))))
    others = {} if imagenet else {"ImageNet": (IMAGENET_MEAN, IMAGENET_STD)}
    return {"own": own, **others, "none": ((0.0,) * 3, (1.0,) * 3)}


def with_normalization(encoder: Encoder, kind: Normalization, read: ReadFunction) -> ReadFunction:
    """`read` of images that reach the model with this mean and deviation instead of the encoder's own."""

    # The images are changed, not the encoder's buffers: it stays the only one that normalises.
    def other(images: Tensor) -> dict[str, Tensor]:
        mean, std = (images.new_tensor(values).view(1, -1, 1, 1) for values in kind)
        return read(encoder.denormalize((images - mean) / std))

    return other


def measure_grid(
    bench: ProbeEvaluator,
    name: str,
    open_at: Callable[[int], Encoder],
    sizes: tuple[int, ...],
    readouts: Mapping[str, str],
    precision: Precision,
) -> list[Cell]:
    """Accuracy at every size and normalisation, with the read-outs chosen at the model's own.

    Args:
        open_at: the source's encoder for images of a size; one that raises UserError has no such size.
        readouts: "knn", "linear" → name.
    """
    cells = []
    for size in sizes:
        try:
            encoder = open_at(size)
        except UserError:
            continue
        kinds = normalizations(encoder)
        train, validation = bench.features(_pass(name, encoder, kinds, readouts, precision))
        for kind in kinds:
            shown = {part: f"{kind} {readout}" for part, readout in readouts.items()}
            reading = bench.read(train, validation, seed=bench.seed, fixed=shown)
            knn, linear = (accuracy(reading.predictions[part], bench.labels) for part in ("knn", "linear"))
            cells.append(Cell(name, size, kind, *knn, *linear))
    return cells


def _pass(
    name: str,
    encoder: Encoder,
    kinds: Mapping[str, Normalization],
    readouts: Mapping[str, str],
    precision: Precision,
) -> FeaturePass:
    """All normalisations of one size in one pass: decoding is the larger part of small models."""
    names = sorted(set(readouts.values()))
    reads = {
        kind: with_normalization(encoder, values, read_out(encoder, names)) for kind, values in kinds.items()
    }

    def read(images: Tensor) -> dict[str, Tensor]:
        return {
            f"{kind} {readout}": vectors
            for kind, one in reads.items()
            for readout, vectors in one(images).items()
        }

    description = f"grid {kinds} {names}"
    return FeaturePass(f"{name} at {encoder.size} px", encoder, read, description, encoder.size, precision)
