"""One row of a probe: features of both parts, from the cache or from one pass, classified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sslkit.core.console import Console
from sslkit.core.device import Precision
from sslkit.core.value_range import BYTES, Range
from sslkit.data.sources.image_set import ImageSet
from sslkit.evaluation.probe.feature_cache import FeatureCache, encoder_digest, images_digest, key_of
from sslkit.evaluation.probe.features import Features, extract
from sslkit.evaluation.probe.knn import choose_knn, knn_predict
from sslkit.evaluation.probe.leaks import Leaks, find_leaks
from sslkit.evaluation.probe.linear import LinearProbe, fit_best
from sslkit.evaluation.probe.readout import ReadFunction
from sslkit.evaluation.probe.shots import draw_shots
from sslkit.models.encoder import Encoder


@dataclass(frozen=True)
class FeaturePass:
    """One way of making features of images."""

    name: str  # of the progress bar
    encoder: Encoder | None  # None: raw pixels
    read: ReadFunction
    reads: str  # what `read` computes, for the cache
    size: int
    precision: Precision
    range: Range = BYTES  # of the images; BYTES: that of the bench

    def key(self, images: str, device: torch.device) -> str:
        """The cache's key for images with this digest; last digits depend on the kind of device."""
        return key_of(
            images=images,
            encoder=encoder_digest(self.encoder),
            reads=self.reads,
            size=self.size,
            precision=self.precision,
            device=device.type,
        )


@dataclass(frozen=True)
class ProbePredictions:
    """The validation images as kNN and the linear probe classify them."""

    predictions: dict[str, Tensor]  # "knn", "linear" → int64 [M], on the CPU
    readouts: dict[str, str]  # "knn", "linear" → the read-out chosen on training images
    width: int  # of the linear probe's read-out
    head: LinearProbe


@dataclass
class ProbeEvaluator:
    """The labelled images, and how they are read; measures one job after the other on the same images."""

    train: ImageSet
    validation: ImageSet
    device: torch.device
    k: int
    workers: int
    seed: int
    cache: FeatureCache
    exclude_leaks: bool
    console: Console
    shots: Sequence[int] = ()
    seeds: int = 1
    labels: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    leaks: Leaks | None = None
    unreadable: int = 0

    def __post_init__(self) -> None:
        self._digests: dict[tuple[int, Range], str] = {}

    @property
    def scored(self) -> ImageSet:
        """The validation images, leaks taken out where they are to be; once these are known."""
        if self.leaks is None or not self.leaks.excluded:
            return self.validation
        leaks = {*self.leaks.copies, *self.leaks.near}
        return self.validation.subset(i for i in range(len(self.validation)) if i not in leaks)

    def features(self, one: FeaturePass) -> tuple[Features, Features]:
        """Of both parts, without leaks if they are to be excluded; the first call also looks for them."""
        if one.encoder is not None:
            one.encoder.to(self.device)
        parts = (self.train, self.validation)
        if one.range != BYTES:
            parts = (replace(self.train, range=one.range), replace(self.validation, range=one.range))
        train, validation = (self._features(part, one) for part in parts)
        if one.encoder is not None:
            one.encoder.cpu()
        if self.leaks is None:
            self.leaks = find_leaks(train, validation, self.exclude_leaks)
            self.unreadable = len(self.train) + len(self.validation) - len(train.kept) - len(validation.kept)
            self.labels = self.leaks.without(validation).labels
        return train, self.leaks.without(validation)

    def _features(self, images: ImageSet, one: FeaturePass) -> Features:
        looks, key = self.leaks is None, ""
        if self.cache.folder:
            part = (id(images.paths), images.range)
            if part not in self._digests:
                self._digests[part] = images_digest(images)
            key = one.key(self._digests[part], self.device)
        found = self.cache.load(key, images, looks)
        if found is None:
            found = extract(
                one.read,
                images,
                one.size,
                device=self.device,
                precision=one.precision,
                workers=self.workers,
                looks=looks,
                label=one.name,
                console=self.console,
            )
            self.cache.save(key, found)
        else:
            self.console.say(f"{one.name}: features of {len(found.kept)} images from the cache")
        return found

    def read(
        self,
        train: Features,
        validation: Features,
        rows: Tensor | None = None,
        seed: int = 0,
        fixed: Mapping[str, str] | None = None,
    ) -> ProbePredictions:
        """kNN and the linear probe, each with the read-out that suits it on a held-out fifth of `train`.

        Args:
            rows: of the training images; None takes all.
            fixed: "knn", "linear" → the read-out to take, instead of choosing.
        """
        known = train if rows is None else train.take(rows)
        nears, names = ([fixed[part]] if fixed else list(known.vectors) for part in ("knn", "linear"))
        labels, classes = known.labels.to(self.device), len(self.train.classes)
        vectors, queries = (
            {n: one.vectors[n].to(self.device) for n in {*nears, *names}} for one in (known, validation)
        )
        near = choose_knn({n: vectors[n] for n in nears}, labels, classes=classes, k=self.k, seed=seed)
        name, head = fit_best({n: vectors[n] for n in names}, labels, classes=classes, seed=seed)
        predictions = {
            "knn": knn_predict(vectors[near], labels, queries[near], classes=classes, k=self.k).cpu(),
            "linear": head.predict(queries[name]).cpu(),
        }
        return ProbePredictions(predictions, {"knn": near, "linear": name}, vectors[name].shape[1], head)

    def few(self, train: Features, validation: Features, shots: int) -> dict[str, Tensor]:
        """Predictions after `shots` images per class: "knn", "linear" → int64 [S, M], a row per draw."""
        seeds = range(self.seed, self.seed + self.seeds)
        readings = [
            self.read(train, validation, draw_shots(train.labels, shots, seed), seed).predictions
            for seed in seeds
        ]
        return {name: torch.stack([found[name] for found in readings]) for name in readings[0]}
