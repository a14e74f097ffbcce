"""Validation images that are exact or near duplicates of training images: scores on them say little."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sslkit.data.audit.audit import groups, shared
from sslkit.data.audit.likeness import Looks
from sslkit.evaluation.probe.features import Features


@dataclass(frozen=True)
class Leaks:
    """Positions in the validation set."""

    copies: tuple[int, ...]  # pixel for pixel
    near: tuple[int, ...]  # resized, compressed, brightened (see sslkit.data.audit.likeness)
    excluded: bool = False

    @property
    def count(self) -> int:
        return len(self.copies) + len(self.near)

    def without(self, features: Features) -> Features:
        """A validation set's features, less the leaks where they are to be excluded."""
        if not self.excluded:
            return features
        return features.take(~torch.isin(features.kept, torch.tensor(self.copies + self.near)))


def find_leaks(train: Features, validation: Features, exclude: bool) -> Leaks:
    """As `sslkit check` finds them. Both features must have been extracted with `looks`."""
    if train.looks is None or validation.looks is None:
        raise ValueError("find_leaks: features with looks expected")
    copies, near = _leaked(validation.looks, train.looks)
    return Leaks(_positions(validation.kept, copies), _positions(validation.kept, near), exclude)


def _leaked(own: Looks, other: Looks) -> tuple[list[int], list[int]]:
    copy_of, near_of = groups(np.concatenate([own, other]))
    copies = [i for i, _ in shared(copy_of, len(own))]
    known = set(copies)
    return copies, [i for i, _ in shared(near_of, len(own)) if i not in known]


def _positions(kept: Tensor, rows: list[int]) -> tuple[int, ...]:
    return tuple(kept[rows].tolist()) if rows else ()
