"""Several views of an image: crops of a worker, colours on the device, and the settings they are made of."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sslkit.augmentations import settings
from sslkit.augmentations.crops import RandomResizedCrop
from sslkit.augmentations.multi_view import blur_of, local_size, multi_crop, one_crop, photometry, two_views
from sslkit.augmentations.photometric import Photometry
from sslkit.core.config.build import build
from sslkit.core.errors import UserError
from sslkit.data.images.picture import Picture
from sslkit.models.encoder import Encoder

PLAIN = Photometry(0, 0, 0, 0, jitter=0, grayscale=0, blur=0)
INVERTED = Photometry(0, 0, 0, 0, jitter=0, grayscale=0, blur=0, solarize=1)


def images(count: int, size: int, seed: int) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def batch() -> dict[str, Tensor]:
    names = ("first", "second", "local1", "local2")
    crops = {name: images(3, 16 if "local" in name else 32, seed) for seed, name in enumerate(names)}
    return {**crops, "index": torch.tensor([4, 7, 1])}


def test_each_view_has_its_crop_and_its_colours_under_its_own_stream() -> None:
    crop, small, colours = RandomResizedCrop(32), RandomResizedCrop(16, (0.05, 0.2)), Photometry(blur=1)
    views = multi_crop(two_views("mine", crop, PLAIN, INVERTED), 2, small, colours)
    given = batch()
    first, second, *local = views.of(views.coloured(given, seed=3, epoch=5))
    assert torch.equal(first, given["first"])
    assert torch.equal(second, torch.where(given["second"] < 0.5, given["second"], 1 - given["second"]))
    for name, view in zip(("local1", "local2"), local, strict=True):
        assert torch.equal(view, colours(given[name], given["index"], 3, 5, f"mine.{name}"))
    cut = views.transform()(Picture(Image.new("RGB", (40, 36))), np.random.default_rng(0))
    assert {name: tuple(view.shape) for name, view in cut.items()} == {
        "first": (3, 32, 32), "second": (3, 32, 32), "local1": (3, 16, 16), "local2": (3, 16, 16),
    }  # fmt: skip


def test_panels_show_each_kind_of_view_once() -> None:
    image, index = images(2, 32, 0), torch.arange(2)
    colours = Photometry(blur=0)
    views = multi_crop(two_views("mine", RandomResizedCrop(32), colours), 3, RandomResizedCrop(16), INVERTED)
    panels = views.panels({"image": image, "index": index})
    assert list(panels) == ["image", "first", "second", "local"]
    assert torch.equal(panels["second"], colours(image, index, 0, 0, "mine.second"))
    assert not torch.equal(panels["first"], panels["second"])
    assert torch.equal(panels["local"], torch.where(image < 0.5, image, 1 - image))


@dataclass(frozen=True)
class Config:
    jitter: tuple[float, float, float] = settings.jitter(0.4, 0.3, 0.2)
    hue: float = settings.hue(0.1, "; v1: 0.4")
    jitter_share: float = settings.jitter_share(0.8, "; v1: 1")
    grayscale: float = settings.share(0.2, "of grey views")
    blur: tuple[float, float] = settings.share((1.0, 0.1), "of blur")
    solarize: float = settings.share(0.3, "of solarisation", above=0)
    crop_scale: tuple[float, float] = settings.crop_scale(0.08)
    local_scale: tuple[float, float] = settings.area((0.05, 0.4), "of small crops")
    flip: float = settings.flip()
    local_crops: int = 2
    local_size: int = 18


def test_settings_by_their_names_make_crops_and_colours() -> None:
    config = Config()
    first, second = photometry(config), photometry(config, view=1)
    assert first == Photometry(0.4, 0.3, 0.2, 0.1, 0.8, 0.2, blur=1.0, solarize=0.3)
    assert second == Photometry(0.4, 0.3, 0.2, 0.1, 0.8, 0.2, blur=0.1, solarize=0.3)
    assert one_crop(config, 64) == RandomResizedCrop(64, (0.08, 1.0), flip=0.5)
    assert one_crop(object(), 64) == RandomResizedCrop(64)  # a method without these settings


def test_shared_settings_have_one_sentence_and_a_range() -> None:
    told = {field.name: field.metadata for field in fields(Config) if field.metadata}
    assert told["hue"]["help"] == "jitter of the hue, turns (official: 0.1; v1: 0.4)"
    assert told["jitter_share"]["help"] == "probability of colour jitter (official: 0.8; v1: 1)"
    assert told["flip"]["help"] == "probability of a horizontal flip (official: 0.5)"
    assert told["crop_scale"]["default"] == (0.08, 1.0)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("hue", 0.6, "method.hue: 0.6 is not <= 0.5"),
        ("jitter", [0.1, -1, 0], "method.jitter: -1.0 is not >= 0"),
        ("flip", 1.5, "method.flip: 1.5 is not <= 1"),
        ("solarize", 0, "method.solarize: 0.0 is not > 0"),
        ("crop_scale", [0.9, 0.2], "method.crop_scale: 0.9 is not <= 0.2"),
        ("local_scale", [0, 0.2], "method.local_scale: 0.0 is not > 0"),
    ],
)
def test_shared_settings_refuse_what_is_out_of_range(key: str, value: Any, problem: str) -> None:
    with pytest.raises(UserError) as error:
        build(Config, "method", {f"method.{key}": value})
    assert error.value.message == problem


def test_settings_import_no_torch() -> None:
    program = "import sys; from sslkit.augmentations import settings; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.parametrize(("size", "blur"), [(32, 0.0), (64, 0.0), (65, 0.5), (224, 0.5)])
def test_small_images_are_not_blurred(size: int, blur: float) -> None:
    assert blur_of(size, 0.5)[0] == blur
    assert blur_of(size, (0.5, 0.5))[0] == (blur, blur)
    assert blur_of(size, 0.5)[1] == ("the paper's" if blur else f"images have {size} px")


def test_small_crops_are_whole_patches() -> None:
    encoder = Encoder("test_vit", 48, patch_size=8)
    assert local_size(Config(), encoder) == 16  # 18 by the nearest patch
    assert local_size(Config(local_crops=0), encoder) == 0
    assert local_size(Config(local_size=48), encoder) == 48
    for wrong in (8, 56):
        with pytest.raises(UserError, match=f"local_size: {wrong} is not in 16 … 48 for test_vit"):
            local_size(Config(local_size=wrong), encoder)
