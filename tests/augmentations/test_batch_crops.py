"""The batched resampler gives the pixels of torch's own uint8 interpolation, image by image."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sslkit.augmentations.batch_crops import crop_resize_batch, cubic, most_taps, weights


def one_by_one(images: Tensor, boxes: Tensor, flips: Tensor, size: int) -> Tensor:
    """What a worker does: crop, interpolate a channels-last view, mirror."""
    views = []
    for image, (left, top, width, height), flip in zip(images, boxes.tolist(), flips.tolist(), strict=True):
        pixels = image.permute(1, 2, 0).contiguous()[top : top + height, left : left + width]
        view = F.interpolate(
            pixels.permute(2, 0, 1)[None], size=(size, size), mode="bicubic", antialias=True
        )[0]
        views.append(view.flip(-1) if flip else view)
    return torch.stack(views)


def random_case(
    count: int, height: int, width: int, seed: int, hard: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Noise (black and white alone when `hard`: every overshoot is clamped), boxes of any size, flips."""
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=random)
    if hard:
        images = (images > 127).to(torch.uint8) * 255
    shares = torch.rand(count, 4, generator=random)
    widths, heights = (shares[:, 0] * width).long() + 1, (shares[:, 1] * height).long() + 1
    left, top = (shares[:, 2] * (width - widths + 1)).long(), (shares[:, 3] * (height - heights + 1)).long()
    flips = torch.rand(count, generator=random) < 0.5
    return images, torch.stack([left, top, widths, heights], 1), flips


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(8, 128),
    width=st.integers(8, 128),
    size=st.integers(8, 128),
    seed=st.integers(0, 2**32),
    hard=st.booleans(),
)
def test_every_pixel_is_the_workers(height: int, width: int, size: int, seed: int, hard: bool) -> None:
    images, boxes, flips = random_case(8, height, width, seed, hard)
    assert torch.equal(crop_resize_batch(images, boxes, flips, size), one_by_one(images, boxes, flips, size))


@pytest.mark.parametrize("size", [8, 13, 32, 128, 224])
def test_whole_images_and_single_pixels(size: int) -> None:
    """The largest box, up to sixteen times smaller and twenty-eight times larger, and the smallest one."""
    images = random_case(2, 128, 96, seed=size)[0]
    boxes = torch.tensor([[0, 0, 96, 128], [95, 127, 1, 1]])
    flips = torch.tensor([True, False])
    assert torch.equal(crop_resize_batch(images, boxes, flips, size), one_by_one(images, boxes, flips, size))


def test_pixels_outside_the_box_take_no_part() -> None:
    images, boxes, flips = random_case(4, 24, 20, seed=1)
    inside = torch.zeros(4, 24, 20, dtype=torch.bool)
    for mask, (left, top, width, height) in zip(inside, boxes.tolist(), strict=True):
        mask[top : top + height, left : left + width] = True
    other = images.where(inside[:, None], 255 - images)
    assert torch.equal(
        crop_resize_batch(images, boxes, flips, 16), crop_resize_batch(other, boxes, flips, 16)
    )


def test_an_autocast_around_changes_nothing() -> None:
    images, boxes, flips = random_case(4, 32, 32, seed=2)
    alone = crop_resize_batch(images, boxes, flips, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(crop_resize_batch(images, boxes, flips, 32), alone)


def test_weights_are_integers_of_sixteen_bits_that_add_up() -> None:
    lengths = torch.arange(1, 257)
    first, taps, bits = weights(lengths, 32, 256)
    assert torch.equal(taps, taps.round())
    assert taps.abs().max() < 2**15
    # Rounding moves each weight by half a unit at most.
    assert ((taps.sum(-1) - 2.0 ** bits[:, None]).abs() <= taps.shape[-1] / 2).all()
    # One bit more would not fit, unless there are as many as ever.
    assert ((taps.amax((1, 2)) * 2 + 1 >= 2**15) | (bits == 22)).all()
    assert (first >= 0).all()
    assert (first < lengths[:, None]).all()


@pytest.mark.parametrize("size", [7, 32, 224])
def test_no_crop_needs_more_pixels_than_the_longest(size: int) -> None:
    """The number of taps is known without a look at the boxes; of longer images it only adds zeros."""
    for longest in (1, 32, 97, 256):
        lengths = torch.arange(1, longest + 1)
        scale = lengths.double()[:, None] / size
        center, support = scale * (torch.arange(size) + 0.5), 2 * scale.clamp(min=1)
        first = (center - support + 0.5).long().clamp(min=0)
        last = torch.minimum((center + support + 0.5).long(), lengths[:, None])
        assert (last - first).max() <= most_taps(longest, size)
    several = [weights(lengths, size, most) for most in (256, 400)]
    assert torch.equal(several[0][0], several[1][0])
    assert torch.equal(several[0][1], several[1][1][..., : several[0][1].shape[-1]])
    assert several[1][1][..., several[0][1].shape[-1] :].count_nonzero() == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_gpu_gives_the_same_pixels_and_is_never_waited_for() -> None:
    images, boxes, flips = random_case(64, 96, 80, seed=4)
    expected = crop_resize_batch(images, boxes, flips, 32)
    on_device = images.cuda(), boxes.cuda(), flips.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours = crop_resize_batch(*on_device, 32)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(ours.cpu(), expected)


def test_cubic_interpolates() -> None:
    """One at zero, zero at the other whole numbers, a sum of one everywhere, straight lines kept."""
    assert cubic(torch.tensor([0.0, 1.0, 2.0, 3.0])).tolist() == [1, 0, 0, 0]
    offsets = torch.linspace(0, 1, 11, dtype=torch.float64)[:, None] - torch.arange(-2, 4)
    torch.testing.assert_close(cubic(offsets).sum(1), torch.ones(11, dtype=torch.float64))
    line = (cubic(offsets) * torch.arange(-2, 4)).sum(1)
    torch.testing.assert_close(line, torch.linspace(0, 1, 11, dtype=torch.float64))


def test_refusals() -> None:
    images, boxes, flips = random_case(2, 16, 16, seed=3)
    with pytest.raises(TypeError, match=r"uint8 expected, got torch\.float32"):
        crop_resize_batch(images.float(), boxes, flips, 8)
    wide = torch.zeros(1, 3, 8, 2048, dtype=torch.uint8)
    with pytest.raises(ValueError, match="at most 128 times 8 pixels expected, got 2048"):
        crop_resize_batch(wide, torch.tensor([[0, 0, 2048, 8]]), torch.tensor([False]), 8)
