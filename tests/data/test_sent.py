"""What a method file of one's own brings reaches workers that are not forked; its sets stay what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import write_stripes
from torch import multiprocessing

from sslkit.core.console import SILENT
from sslkit.core.user_modules import load_module
from sslkit.data.loading.loader import pretraining_loader
from sslkit.data.sources.image_set import ImageSet
from sslkit.data.sources.labels import open_labelled
from sslkit.training.loop.cached_loader import cached_loader

OWN = '''
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from sslkit.augmentations.crops import CenterCrop
from sslkit.data.sources.image_set import ImageSet


@dataclass(frozen=True)
class Pairs(ImageSet):
    """An image and the one after it."""

    @contextmanager
    def opened(self, index):
        with super().opened(index) as one, super().opened((index + 1) % len(self)) as other:
            yield one, other, self.labels[index]


def pair(pictures, random):
    one, other, label = pictures
    crop = CenterCrop(16)
    return {"image": crop(one.rgb()), "other": crop(other.rgb()), "label": torch.tensor(label)}
'''


@pytest.fixture
def own(tmp_path: Path) -> Any:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    return load_module(file, "own_of_this_test")


@pytest.fixture
def pairs(own: Any, tmp_path: Path) -> Any:
    folder = write_stripes(tmp_path / "stripes", {"rows": 4, "columns": 5, "checks": 5})
    images, _ = open_labelled(str(folder), 0)
    return own.Pairs(images.paths, images.name, images.labels, images.classes)


def equal(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one if name != "bad")


def order(images: ImageSet) -> dict[str, int]:
    return {"batch_size": 4, "seed": 1, "start_step": 0, "steps": 6, "steps_per_epoch": len(images) // 4}


@pytest.mark.slow
def test_workers_that_are_not_forked_know_it(own: Any, pairs: ImageSet) -> None:
    here = list(pretraining_loader(pairs, own.pair, workers=0, **order(pairs)))
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    try:
        there = list(pretraining_loader(pairs, own.pair, workers=1, **order(pairs)))
    finally:
        multiprocessing.set_start_method(before, force=True)
    equal(there, here)


def test_a_set_of_its_own_stays_one_in_memory(own: Any, pairs: ImageSet) -> None:
    files = list(pretraining_loader(pairs, own.pair, workers=0, **order(pairs)))
    loader = cached_loader(
        "memory", torch.device("cpu"), pairs, own.pair, workers=0, console=SILENT, **order(pairs)
    )
    for path in pairs.paths:
        Path(path).unlink()
    equal(list(loader), files)
