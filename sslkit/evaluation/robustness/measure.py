"""How much of a classifier's accuracy is left: common corruptions, filters, single waves, attacks.

Several sources are scored on the same changed images, so that they can be compared image by image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.augmentations.corruptions import CORRUPTIONS, common_corruption
from sslkit.augmentations.crops import CenterCrop
from sslkit.core.console import SILENT, Bar, Console
from sslkit.core.device import Precision, autocast, to_device
from sslkit.core.errors import UserError
from sslkit.data.loading.loader import evaluation_loader
from sslkit.data.sources.image_set import ImageSet
from sslkit.evaluation.robustness.adversarial import Logits, fgsm, pgd
from sslkit.evaluation.robustness.fourier_sensitivity import add_wave, half_of, high_passed, low_passed
from sslkit.evaluation.robustness.robustness_result import (
    Key,
    RobustnessPlan,
    RobustnessResult,
    against,
    make_robustness_row,
)

_BATCH = 64
LEFT_OUT = "FGSM and PGD are left out on a CPU; --attacks computes them"
Change = Callable[[Tensor, Tensor], Tensor]
"""(images float [B, 3, H, W] in [0, 1], index int64 [B]) → changed images, the same for all sources."""
Attack = Callable[[Logits, Tensor, Tensor, Tensor], Tensor]
"""(classifier, images, labels, index) → images changed against this classifier."""


@dataclass(frozen=True)
class Labelled:
    """Images in memory. What is random is keyed by `index`, an image's position in its whole set."""

    pixels: Tensor  # uint8 [N, 3, H, W], on the CPU
    labels: Tensor  # int64 [N]
    index: Tensor  # int64 [N]

    def batches(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(images float in [0, 1], labels, index) on the device."""
        for first in range(0, len(self.labels), _BATCH):
            part = slice(first, first + _BATCH)
            batch = {"image": self.pixels[part], "labels": self.labels[part], "index": self.index[part]}
            moved = to_device(batch, device)
            yield moved["image"], moved["labels"], moved["index"]


def spread_over_classes(labels: Sequence[int], limit: int) -> list[int]:
    """Positions of at most `limit` images, every class in its proportion, always the same ones; ascending."""
    by_class = sorted(range(len(labels)), key=lambda position: (labels[position], position))
    count = min(limit, len(labels))
    return sorted(by_class[(2 * k + 1) * len(labels) // (2 * count)] for k in range(count))


def resize_labelled(images: Tensor, side: int) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] with `side` pixels a side, bicubic; as they are where they have them."""
    if images.shape[2:] == (side, side):
        return images
    return F.interpolate(images, (side, side), mode="bicubic", antialias=True).clamp(0, 1)


def read_labelled(
    images: ImageSet, size: int, limit: int = 500, workers: int = 0, console: Console = SILENT
) -> Labelled:
    """The central crops, `size` pixels a side, of `limit` images spread over the classes.

    Raises:
        UserError: not one of them could be read.
        ValueError: the set has no labels.
    """
    if images.labels is None:
        raise ValueError(f"read_labelled: labelled images expected, {images.name} has no labels")
    chosen = torch.tensor(spread_over_classes(images.labels, limit))
    views, positions = [], []
    with console.bar("images", len(chosen)) as bar:
        for batch, _, place in evaluation_loader(
            images.subset(chosen.tolist()), CenterCrop(size), _BATCH, workers
        ):
            views.append(batch)
            positions.append(chosen[place])
            bar.advance(len(place))
    if not views:
        raise UserError(f"{images.name}: none of {len(chosen)} images can be read")
    index = torch.cat(positions)
    return Labelled(torch.cat(views), torch.tensor(images.labels)[index], index)


def robustness(
    sources: Sequence[tuple[str, Logits]],
    data: Labelled,
    plan: RobustnessPlan,
    *,
    device: torch.device,
    precision: Precision = "float32",
    baselines: Mapping[str, str] = MappingProxyType({}),
    console: Console = SILENT,
) -> RobustnessResult:
    """Accuracy of every source on clean images and on changed ones.

    Args:
        sources: (name, function), names all different, on `device` and in evaluation mode. All get the
            same images; a function whose model wants another size resizes them.
        plan: from `make_plan`.
        precision: of the classifiers. Attacks are always computed in float32: a gradient that is rounded
            to nothing would look like robustness.
        baselines: source → the source that its corruption errors are relative to.

    Raises:
        ValueError: no source, two of one name, an unknown baseline, fewer than two images.
    """
    names = [name for name, _ in sources]
    if not names or len(set(names)) < len(names) or len(data.labels) < 2:
        raise ValueError(
            f"sources are {names}, images {len(data.labels)}; different names, two images expected"
        )
    if not set(baselines.values()) <= set(names):
        raise ValueError(f"baselines are {dict(baselines)}, expected of {names}")
    changes = _changes(plan)
    passes = len(changes) + len(plan.epsilons) * (4 + 2 * plan.steps)  # a gradient counts as two
    with console.bar("robustness", len(names) * passes * len(data.labels)) as bar:
        judge = _Judge(sources, data, device, precision, bar)
        right = {key: judge.changed(change) for key, change in changes.items()}
        for epsilon in plan.epsilons:
            right["fgsm", epsilon] = judge.attacked(partial(_fgsm, epsilon=epsilon), 3)
            climb = partial(pgd, epsilon=epsilon, steps=plan.steps, seed=plan.seed)
            right["pgd", epsilon] = judge.attacked(climb, 1 + 2 * plan.steps)
    rows = {
        name: make_robustness_row(name, {key: hits[number] for key, hits in right.items()}, plan)
        for number, name in enumerate(names)
    }
    pairs = {**baselines, **{name: name for name in baselines.values()}}
    related = tuple(against(row, rows[pairs[name]]) if name in pairs else row for name, row in rows.items())
    return RobustnessResult(related, plan, len(data.labels), min(data.pixels.shape[2:]))


def _changes(plan: RobustnessPlan) -> dict[Key, Change]:
    """All changes of the images that do not depend on the classifier."""
    seed, norm = plan.seed, plan.wave_norm
    changes: dict[Key, Change] = {("clean", 0): lambda images, index: images}
    for name in CORRUPTIONS:
        for severity in plan.severities:
            changes[name, severity] = partial(common_corruption, name=name, severity=severity, seed=seed)
    for radius in plan.radii:
        changes["low", radius] = partial(_filtered, keep=low_passed, radius=radius)
        changes["high", radius] = partial(_filtered, keep=high_passed, radius=radius)
    for frequency in half_of(plan.frequencies):
        changes["wave", frequency] = partial(add_wave, frequency=frequency, norm=norm, seed=seed)
    return changes


def _filtered(
    images: Tensor, index: Tensor, *, keep: Callable[[Tensor, float], Tensor], radius: float
) -> Tensor:
    return keep(images, radius)


def _fgsm(logits: Logits, images: Tensor, labels: Tensor, index: Tensor, *, epsilon: float) -> Tensor:
    return fgsm(logits, images, labels, epsilon)


class _Judge:
    """Which images each source gets right: bool [S, N], on the CPU."""

    def __init__(
        self,
        sources: Sequence[tuple[str, Logits]],
        data: Labelled,
        device: torch.device,
        precision: Precision,
        bar: Bar,
    ) -> None:
        self.classifiers = [logits for _, logits in sources]
        self.data, self.device, self.precision, self.bar = data, device, precision, bar

    @torch.no_grad()
    def changed(self, change: Change) -> Tensor:
        """On images changed in the same way for all sources."""
        found = []
        for images, labels, index in self.data.batches(self.device):
            seen = change(images, index)
            with autocast(self.device, self.precision):
                found.append(torch.stack([logits(seen).argmax(1) == labels for logits in self.classifiers]))
            self.bar.advance(len(index) * len(self.classifiers))
        return torch.cat(found, 1).cpu()

    @torch.no_grad()
    def attacked(self, attack: Attack, passes: int) -> Tensor:
        """On images changed against each source."""
        found = []
        for images, labels, index in self.data.batches(self.device):
            hits = []
            for logits in self.classifiers:
                hits.append(logits(attack(logits, images, labels, index)).argmax(1) == labels)
                self.bar.advance(len(index) * passes)
            found.append(torch.stack(hits))
        return torch.cat(found, 1).cpu()
