"""probe: how good are frozen features, beside random weights and raw pixels, and did pre-training help?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sslkit.backbones import Encoder
from sslkit.config import AUTO
from sslkit.console import SILENT, Console
from sslkit.data.labels import open_labelled
from sslkit.data.sources import ImageSet
from sslkit.errors import UserError, nearest
from sslkit.evaluation.features import PIXEL_SIDE, Features, VectorFunction, extract, pixels
from sslkit.evaluation.knn import knn_predict
from sslkit.evaluation.linear import fit_linear
from sslkit.evaluation.table import MEASURES, ProbeResult, Row, Verdict, show
from sslkit.evaluation.verdict import accuracy, against_pixels, against_random, paired
from sslkit.training.choices import reading_workers
from sslkit.training.device import Precision, pick_device, pick_precision
from sslkit.weights import load_encoder

BASELINES = ("random", "pixels")


def probe(
    sources: Sequence[str],
    data: str,
    *,
    baselines: Sequence[str] = BASELINES,
    size: int | None = None,
    k: int = 20,
    device: str = AUTO,
    precision: str = AUTO,
    workers: int | None = None,
    seed: int = 0,
    console: Console = SILENT,
) -> ProbeResult:
    """kNN and a linear probe on frozen features of every source, always beside baselines.

    Args:
        sources: runs, exported folders, .safetensors files, timm/NAME or random/NAME.
        data: labelled images; a validation part, or a fixed fifth of the images, is what is scored.
        baselines: "random" (each source's architecture, weights drawn by `seed`), "pixels" (32 x 32 RGB).
        size: side of the views, pixels; by default each source's own.
        k: neighbours.
        workers: processes that read images; by default as many as suit the device.

    Raises:
        UserError: no such source, no labels, a size the model can't take, an unknown baseline.
    """
    _check(sources, baselines, k)
    place = pick_device(device)
    encoders = {
        source: load_encoder(source, size, seed, console=console) for source in dict.fromkeys(sources)
    }
    train, validation = open_labelled(data)
    if len(validation) < 2:
        raise UserError(f"{data}: one validation image, two or more expected")
    jobs = _jobs(encoders, baselines, seed)
    console.say(f"{data}: {len(train)} training and {len(validation)} validation images")
    readers = reading_workers(place.type == "cpu") if workers is None else workers
    measure = _Measure(train, validation, place, k, readers, seed, console)
    exact = pick_precision(precision, place)
    rows = [measure(job, "float32" if job.kind == "pixels" else exact) for job in jobs]
    counts = {
        "train": len(train),
        "validation": len(validation),
        "classes": len(train.classes),
        "unreadable": measure.unreadable,
    }
    verdicts = tuple(
        v for source in encoders for v in _verdicts(source, encoders[source], rows, measure.labels)
    )
    result = ProbeResult(data, tuple(rows), verdicts, counts, k, seed)
    show(result, console)
    return result


@dataclass(frozen=True)
class _Job:
    """One row to be measured."""

    name: str
    kind: str
    encoder: Encoder | None  # None: raw pixels
    size: int


def _check(sources: Sequence[str], baselines: Sequence[str], k: int) -> None:
    if not sources:
        raise UserError("no source given", "name a run, e.g. runs/mfm-…-1, or timm/resnet50")
    for name in baselines:
        if name not in BASELINES:
            raise UserError(f"unknown baseline {name!r}", nearest(name, BASELINES))
    if k < 1:
        raise UserError(f"k: {k} is not >= 1")


def _jobs(encoders: dict[str, Encoder], baselines: Sequence[str], seed: int) -> list[_Job]:
    """The sources, then one row of random weights per architecture and size, then raw pixels."""
    jobs = [_Job(source, "source", encoder, encoder.size) for source, encoder in encoders.items()]
    if "random" in baselines:
        different = {_random_name(encoder): encoder for encoder in encoders.values()}
        for name, encoder in different.items():
            jobs.append(_Job(name, "random", _reset(encoder, seed), encoder.size))
    if "pixels" in baselines:
        jobs.append(_Job("raw pixels", "pixels", None, PIXEL_SIDE))
    return jobs


def _random_name(encoder: Encoder) -> str:
    patch = encoder.arguments.get("patch_size")
    variant = f" patch {patch}" if patch else " small stem" if encoder.stem == "small" else ""
    return f"random {encoder.name}{variant} {encoder.size} px"


def _reset(encoder: Encoder, seed: int) -> Encoder:
    """The same architecture with random weights."""
    torch.manual_seed(seed)
    random = Encoder(
        encoder.name, encoder.size, patch_size=encoder.arguments.get("patch_size"), stem=encoder.stem
    )
    random.mean.copy_(encoder.mean)
    random.std.copy_(encoder.std)
    return random.eval()


class _Measure:
    """Measures one row after the other on the same images."""

    def __init__(
        self,
        train: ImageSet,
        validation: ImageSet,
        device: torch.device,
        k: int,
        workers: int,
        seed: int,
        console: Console,
    ) -> None:
        self.train, self.validation, self.classes = train, validation, len(train.classes)
        self.device, self.k, self.workers, self.seed, self.console = device, k, workers, seed, console
        self.labels = torch.empty(0, dtype=torch.int64)
        self.unreadable = 0

    def __call__(self, job: _Job, precision: Precision) -> Row:
        if job.encoder is not None:
            job.encoder.to(self.device)
        vector: VectorFunction = pixels if job.encoder is None else job.encoder.vector
        train, validation = (
            extract(
                vector,
                images,
                job.size,
                device=self.device,
                precision=precision,
                workers=self.workers,
                label=job.name,
                console=self.console,
            )
            for images in (self.train, self.validation)
        )
        if job.encoder is not None:
            job.encoder.cpu()
        self.labels = validation.labels
        self.unreadable = len(self.train) + len(self.validation) - len(train.kept) - len(validation.kept)
        return self._row(job, train, validation)

    def _row(self, job: _Job, train: Features, validation: Features) -> Row:
        vectors, labels = train.vectors.to(self.device), train.labels.to(self.device)
        queries = validation.vectors.to(self.device)
        fitted = fit_linear(vectors, labels, classes=self.classes, seed=self.seed)
        predictions = {
            "knn": knn_predict(vectors, labels, queries, classes=self.classes, k=self.k).cpu(),
            "linear": fitted.predict(queries).cpu(),
        }
        knn, linear = (accuracy(predictions[name], validation.labels) for name in ("knn", "linear"))
        return Row(
            job.name,
            job.kind,
            vectors.shape[1],
            job.size,
            *knn,
            *linear,
            strength=fitted.strength,
            predictions=predictions,
        )


def _verdicts(source: str, encoder: Encoder, rows: Sequence[Row], labels: Tensor) -> list[Verdict]:
    """A source against both baselines; random weights given as source are nobody's pre-training."""
    if source.startswith("random/"):
        return []
    own = next(row for row in rows if row.kind == "source" and row.name == source)
    others = [
        row
        for row in rows
        if row.kind == "pixels" or (row.kind == "random" and row.name == _random_name(encoder))
    ]
    found = []
    for other in others:
        say = against_pixels if other.kind == "pixels" else against_random
        for measure, attribute in MEASURES.items():
            difference = paired(own.predictions[attribute], other.predictions[attribute], labels)
            found.append(Verdict(source, other.kind, measure, difference, say(measure, difference)))
    return found
