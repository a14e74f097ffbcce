"""Samples of labelled images, class by class, and what is refused or said of their classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from sslkit.core import rng
from sslkit.core.console import counted
from sslkit.core.errors import UserError
from sslkit.data.sources.image_set import ImageSet


def sample_per_class(
    images: ImageSet, wanted: Callable[[int], int], seed: int, stream: str
) -> tuple[ImageSet, ImageSet]:
    """(drawn, the rest): of each class `wanted(its images)`, in an order that `seed` and `stream` give."""
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(images.labels or ()):
        by_class.setdefault(label, []).append(index)
    chosen: set[int] = set()
    for label, members in by_class.items():
        order = rng.generator(seed, 0, label, stream).permutation(len(members))
        chosen.update(members[i] for i in order[: wanted(len(members))])
    rest = [index for index in range(len(images)) if index not in chosen]
    return images.subset(sorted(chosen)), images.subset(rest)


def count_per_class(images: ImageSet) -> list[int]:
    """Images of each class, in the order of the classes."""
    found = Counter(images.labels)
    return [found[label] for label in range(len(images.classes))]


def warn_singletons(source: str, training: ImageSet, validation: ImageSet) -> str:
    """A note about classes of a single image, which can't be validated.

    Raises:
        UserError: the data has a validation part, and that lacks a class; a split of our own never does.
    """
    lacking = [
        (name, count)
        for name, count, held in zip(
            training.classes, count_per_class(training), count_per_class(validation), strict=True
        )
        if not held
    ]
    for name, count in lacking:
        if count > 1:
            raise UserError(
                f"{source}: class {name!r} is in training but not in the validation part",
                "both parts need the same classes",
            )
    if not lacking:
        return ""
    have = counted(len(lacking), "class has", "classes have")
    return f"{have} one image, such as {lacking[0][0]!r}: trained on, not validated"
