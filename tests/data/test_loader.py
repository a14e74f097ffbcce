"""The loader's promises: any worker count, any starting step, any damaged file."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sslkit.augmentations.crops import CenterCrop, RandomResizedCrop, to_tensor_uint8
from sslkit.core.errors import UserError
from sslkit.data.loading.loader import ViewDataset, data_loader, evaluation_loader, pretraining_loader
from sslkit.data.sources.image_set import ImageSet, open_images
from sslkit.data.sources.labels import open_labelled


@dataclass(frozen=True)
class OneView:
    crop: RandomResizedCrop

    def __call__(self, image: Image.Image, random: np.random.Generator) -> Mapping[str, Tensor]:
        return {"image": self.crop(image, random)}


TRANSFORM = OneView(RandomResizedCrop(16))


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    """22 images whose grey level is ten times their index."""
    for i in range(22):
        Image.new("L", (20, 18), 10 * i).save(tmp_path / f"{i:02}.png")
    return open_images([str(tmp_path)])


def damage(images: ImageSet, *indices: int) -> None:
    for index in indices:
        Path(images.paths[index]).write_bytes(b"damaged")


def batches(images: ImageSet, start: int = 0, steps: int = 12, workers: int = 0, seed: int = 0) -> list[Any]:
    return list(
        pretraining_loader(
            images,
            TRANSFORM,
            batch_size=4,
            seed=seed,
            start_step=start,
            steps=steps,
            steps_per_epoch=5,
            workers=workers,
        )
    )


def assert_equal(first: list[Any], second: list[Any]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a["index"], b["index"])
        assert torch.equal(a["image"], b["image"])
        assert a["bad"] == b["bad"]


def test_batches_hold_the_images_they_name(images: ImageSet) -> None:
    for batch in batches(images):
        assert batch["image"].shape == (4, 3, 16, 16)
        assert batch["image"].dtype == torch.uint8
        assert batch["index"].dtype == torch.int64
        assert torch.equal(batch["image"][:, 0, 8, 8], 10 * batch["index"].to(torch.uint8))
        assert batch["bad"] == []


def test_an_epoch_shows_no_image_twice_and_each_epoch_has_its_own_order(images: ImageSet) -> None:
    order = [tuple(batch["index"].tolist()) for batch in batches(images, steps=15)]
    epochs = [sum(order[i : i + 5], ()) for i in (0, 5, 10)]
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    assert len(set(epochs)) == 3
    # 2 of 22 are dropped in an epoch, not the same ones for ever.
    assert len({index for epoch in epochs for index in epoch}) == 22


def test_crops_differ_between_epochs_and_seeds() -> None:
    images = open_images(["fractal:4"])
    views = [ViewDataset(images, TRANSFORM, seed)[(epoch, 2)]["image"] for seed in (0, 1) for epoch in (0, 1)]
    assert len({view.numpy().tobytes() for view in views}) == 4
    assert torch.equal(ViewDataset(images, TRANSFORM, 0)[(0, 2)]["image"], views[0])


def test_step_s_shows_the_views_of_its_epoch() -> None:
    images = open_images(["fractal:22"])
    views = ViewDataset(images, TRANSFORM, 0)
    for step, batch in enumerate(batches(images, start=4, steps=8), start=4):
        expected = [views[(step // 5, index)]["image"] for index in batch["index"].tolist()]
        assert torch.equal(batch["image"], torch.stack(expected))


def test_worker_count_changes_nothing(images: ImageSet) -> None:
    damage(images, 3, 7)
    assert_equal(batches(images), batches(images, workers=2))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_goes_on_in_the_middle_of_an_epoch(images: ImageSet, workers: int) -> None:
    damage(images, 3)
    assert_equal(batches(images)[7:], batches(images, start=7, workers=workers))


def test_the_global_random_state_is_left_alone(images: ImageSet) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    batches(images, workers=2)
    list(evaluation_loader(images, CenterCrop(16), 4, 0))
    assert torch.equal(torch.get_rng_state(), before)


def test_unreadable_images_are_replaced_and_reported(images: ImageSet) -> None:
    damage(images, 3, 7)
    whole = batches(images, steps=5)
    shown = torch.cat([batch["index"] for batch in whole]).tolist()
    assert not {3, 7} & set(shown)
    assert len(shown) == 20
    for batch in whole:  # "index" is the image that is really there
        assert torch.equal(batch["image"][:, 0, 8, 8], 10 * batch["index"].to(torch.uint8))
    bad = {path for batch in whole for path, _ in batch["bad"]}
    assert bad <= {images.paths[3], images.paths[7]}
    reasons = {reason for batch in whole for _, reason in batch["bad"]}
    assert all(reason.startswith("not an image") for reason in reasons)
    everything = {path for batch in batches(images, steps=30) for path, _ in batch["bad"]}
    assert everything == {images.paths[3], images.paths[7]}


def test_the_replacement_gets_the_view_it_has_itself(images: ImageSet) -> None:
    damage(images, 3)
    views = ViewDataset(images, TRANSFORM, 0)
    item = views[(4, 3)]
    assert item["bad"][0][0] == images.paths[3]
    assert torch.equal(item["image"], views[(4, item["index"])]["image"])


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_but_damage_ends_with_a_clear_error(images: ImageSet, workers: int) -> None:
    damage(images, *range(22))
    with pytest.raises(UserError, match="21 images in a row can't be read") as caught:
        batches(images, workers=workers)
    assert caught.value.code == 1


def test_an_epoch_longer_than_the_data_is_refused(images: ImageSet) -> None:
    with pytest.raises(ValueError, match="5 x 5 exceeds 22 images"):
        pretraining_loader(
            images, TRANSFORM, batch_size=5, seed=0, start_step=0, steps=5, steps_per_epoch=5, workers=0
        )


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_reads_in_order_and_leaves_out_what_is_damaged(images: ImageSet, workers: int) -> None:
    damage(images, 1, 8, 9, 10, 11)
    parts = list(evaluation_loader(images, CenterCrop(8), 4, workers))
    assert [index.tolist() for _, _, index in parts] == [
        [0, 2, 3], [4, 5, 6, 7], [12, 13, 14, 15], [16, 17, 18, 19], [20, 21],
    ]  # fmt: skip
    for views, labels, index in parts:
        assert views.dtype == torch.uint8
        assert labels is None
        assert torch.equal(views[:, 2, 4, 4], 10 * index.to(torch.uint8))


def test_evaluation_carries_labels() -> None:
    _, validation = open_labelled("fractal:100")
    found: list[tuple[int, int]] = []
    for _, labels, index in evaluation_loader(validation, to_tensor_uint8, 8, 0):
        assert labels is not None
        found += zip(index.tolist(), labels.tolist(), strict=True)
    assert found == list(enumerate(validation.labels or ()))


SCRIPT = """
import os, signal, sys, time
sys.path.insert(0, os.path.dirname({test_file!r}))
from sslkit.data.loading.loader import pretraining_loader
from sslkit.data.sources.image_set import open_images
from test_loader import TRANSFORM

signal.signal(signal.SIGTERM, lambda *_: None)  # as a training run that wants to save first
loader = pretraining_loader(open_images(["fractal:64"]), TRANSFORM, batch_size=4, seed=0, start_step=0,
                            steps=1000, steps_per_epoch=16, workers=2)
first = next(loader)
try:
    os.killpg(os.getpid(), signal.SIGINT)
    time.sleep(1)
except KeyboardInterrupt:
    print("interrupted", flush=True)
rest = [next(loader) for _ in range(20)]
print("read", len(rest), flush=True)
"""


@pytest.mark.slow
def test_workers_outlive_ctrl_c_and_do_not_hang_at_exit() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(test_file=__file__)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        raise
    assert (output, errors, process.returncode) == ("interrupted\nread 20\n", "", 0)


@pytest.mark.slow
def test_more_workers_than_cores_are_not_torch_s_affair() -> None:
    """Warnings are errors in this suite: 64 workers are made without torch's sentence."""
    data_loader([0], [[0]], list, 64)
