"""Boxes against torchvision's, crops against Pillow step by step, and against a slow loop."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional

from sslkit.augmentations.crops import (
    CenterCrop,
    RandomResizedCrop,
    Views,
    random_resized_crop_box,
    to_tensor_uint8,
)
from sslkit.data.images.picture import Cut, Picture

SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def boxes(width: int, height: int, count: int) -> Iterator[tuple[int, int, int, int]]:
    random = np.random.default_rng(0)
    for _ in range(count):
        yield random_resized_crop_box(width, height, SCALE, RATIO, random)


@pytest.mark.parametrize(("width", "height"), [(224, 224), (320, 200), (61, 97)])
def test_boxes_have_the_distribution_of_torchvision(width: int, height: int) -> None:
    """Mean and spread of all four numbers, within five standard errors of the difference."""
    count = 3000
    image = torch.empty(3, height, width)
    torch.manual_seed(0)
    drawn = (transforms.RandomResizedCrop.get_params(image, list(SCALE), list(RATIO)) for _ in range(count))
    theirs = np.array([(left, top, w, h) for top, left, h, w in drawn], dtype=float)
    ours = np.array(list(boxes(width, height, count)), dtype=float)
    error = np.sqrt((ours.var(0) + theirs.var(0)) / count)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 5 * error).all()
    assert np.allclose(ours.std(0), theirs.std(0), rtol=0.08)


def test_boxes_lie_inside_and_keep_the_bounds() -> None:
    for left, top, width, height in boxes(320, 200, 500):
        assert left >= 0
        assert top >= 0
        assert left + width <= 320
        assert top + height <= 200
        assert 0.19 < width * height / (320 * 200) <= 1  # rounding to pixels
        assert 0.72 < width / height < 1.38


def test_aspect_ratios_are_log_uniform() -> None:
    """Wide and high boxes are equally likely: log(w / h) has mean 0 and the variance of its range."""
    random = np.random.default_rng(0)
    drawn = (random_resized_crop_box(1000, 1000, (0.1, 0.3), RATIO, random) for _ in range(4000))
    logs = np.array([np.log(w / h) for _, _, w, h in drawn])
    assert abs(logs.mean()) < 4 * logs.std() / 4000**0.5
    assert logs.var() == pytest.approx(np.log(16 / 9) ** 2 / 12, rel=0.08)


@pytest.mark.parametrize(("width", "height"), [(8, 20_000), (20_000, 8), (9, 1000)])
def test_extreme_images_fall_back_to_torchvisions_central_box(width: int, height: int) -> None:
    # These can't hold a box of a fifth of the area at 3:4 … 4:3, so that all ten draws fail in both.
    top, left, h, w = transforms.RandomResizedCrop.get_params(
        torch.empty(3, height, width), list(SCALE), list(RATIO)
    )
    assert next(boxes(width, height, 1)) == (left, top, w, h)


def test_to_tensor_uint8_keeps_every_pixel_in_its_place() -> None:
    image = picture(5, 3)
    tensor = to_tensor_uint8(image)
    assert tensor.dtype == torch.uint8
    assert tensor.is_contiguous()
    for x in range(5):
        for y in range(3):
            assert tuple(tensor[:, y, x].tolist()) == image.getpixel((x, y))


def test_random_resized_crop_is_its_box_resized_and_sometimes_mirrored() -> None:
    image, transform = picture(50, 40), RandomResizedCrop(16)
    mirrored = 0
    for seed in range(40):
        view = transform(Picture(image), np.random.default_rng(seed))
        box = random_resized_crop_box(50, 40, SCALE, RATIO, np.random.default_rng(seed))
        (plain,) = Picture(image).crops([Cut(box, 16)])
        assert torch.equal(view, plain) or torch.equal(view, plain.flip(-1))
        mirrored += not torch.equal(view, plain)
    assert 10 <= mirrored <= 30  # 20 expected, standard deviation 3.2


def test_flip_zero_and_one() -> None:
    image = picture(16, 16)
    plain, mirrored = (
        RandomResizedCrop(16, scale=(1, 1), ratio=(1, 1), flip=flip)(Picture(image), np.random.default_rng(0))
        for flip in (0.0, 1.0)
    )
    assert torch.equal(plain, functional.pil_to_tensor(image))
    assert torch.equal(mirrored, plain.flip(-1))


@pytest.mark.parametrize(("width", "height"), [(128, 128), (64, 64), (128, 192), (256, 128)])
def test_center_crop_is_torchvisions_resize_and_crop(width: int, height: int) -> None:
    """Exact where the resized long side is a whole number of pixels, as here: 64 for the short one."""
    image = picture(width, height)
    chain = transforms.Compose(
        [transforms.Resize(64, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(56)]
    )
    assert torch.equal(CenterCrop(56)(image), functional.pil_to_tensor(chain(image)))


def test_center_crop_is_close_to_torchvision_where_sides_are_rounded() -> None:
    """Here 95.05 pixels become 95 in torchvision, and the crop starts at 20 instead of 19.5."""
    ramp = np.broadcast_to(np.linspace(20, 230, 300), (3, 202, 300)).transpose(1, 2, 0)
    image = Image.fromarray(ramp.round().astype(np.uint8))
    chain = transforms.Compose(
        [transforms.Resize(64, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(56)]
    )
    difference = CenterCrop(56)(image).float() - functional.pil_to_tensor(chain(image)).float()
    assert difference.abs().max() <= 3  # a pixel of the view is 2.2 grey levels wide


@pytest.mark.parametrize(("width", "height"), [(91, 50), (50, 91), (33, 33)])
def test_center_crop_of_a_symmetric_image_is_symmetric(width: int, height: int) -> None:
    half = np.asarray(picture(width, height)).astype(int)
    image = Image.fromarray(((half + half[:, ::-1] + half[::-1] + half[::-1, ::-1]) // 4).astype(np.uint8))
    view = CenterCrop(17)(image).int()
    assert (view - view.flip(-1)).abs().max() <= 1
    assert (view - view.flip(-2)).abs().max() <= 1


def test_center_crop_of_a_very_long_image_takes_its_middle() -> None:
    pixels = np.zeros((8, 20_000, 3), dtype=np.uint8)
    pixels[:, 9_990:10_010] = 255
    assert CenterCrop(14, resize=16)(Image.fromarray(pixels)).min() == 255


def test_resize_defaults_to_seven_eighths() -> None:
    image = picture(300, 300)
    assert torch.equal(CenterCrop(224)(image), CenterCrop(224, resize=256)(image))
    assert not torch.equal(CenterCrop(224)(image), CenterCrop(224, resize=224)(image))


def test_transforms_can_be_pickled() -> None:
    for transform in (RandomResizedCrop(16, (0.5, 1.0)), CenterCrop(16, 18)):
        assert pickle.loads(pickle.dumps(transform)) == transform


def test_views_are_named_and_drawn_one_after_the_other() -> None:
    """A view that is no crop draws in its turn, from the whole image."""
    image, crop = Picture(picture(40, 40)), RandomResizedCrop(8)
    transform = pickle.loads(pickle.dumps(Views(first=crop, whole=noisy, second=crop)))
    views, random = transform(image, np.random.default_rng(0)), np.random.default_rng(0)
    assert list(views) == ["first", "whole", "second"]
    for name, view in (("first", crop), ("whole", noisy), ("second", crop)):
        assert torch.equal(views[name], view(image, random))


def noisy(image: Picture, random: np.random.Generator) -> torch.Tensor:
    whole = to_tensor_uint8(image.rgb())
    return whole ^ torch.from_numpy(random.integers(0, 2, tuple(whole.shape), dtype=np.uint8))


def test_boxes_of_views_are_shares_of_the_image() -> None:
    crop = RandomResizedCrop(8, box=True)
    place = Views(image=crop)(Picture(picture(50, 40)), np.random.default_rng(3))["image_box"]
    cut = crop.draw(50, 40, np.random.default_rng(3))
    assert (place[:4] * torch.tensor([50, 40, 50, 40])).round().tolist() == list(cut.box)
    assert bool(place[4]) == cut.mirrored
