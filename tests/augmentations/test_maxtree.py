"""Max-tree filters: against the tree's definition, threshold by threshold; what makes them morphological."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from around import At, made
from PIL import Image
from torch import Tensor

from sslkit.augmentations.batch import maxtree
from sslkit.augmentations.batch.maxtree import open_by_reconstruction, reconstructed

PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "clothing224.tar.xz"


def blotches(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth noise of a few grey values, so that there are plateaus."""
    random = torch.Generator().manual_seed(seed)
    noise = torch.nn.functional.avg_pool2d(
        torch.rand(count, 3, height + 4, width + 4, generator=random), 5, 1
    )
    return ((noise - 0.3) * 25).round().clamp(0, 10) / 10


def components(there: Tensor) -> list[set[tuple[int, int]]]:
    """Of a bool [H, W]; neighbours are above, below, left and right. By a flood, pixel after pixel."""
    rest = {(int(y), int(x)) for y, x in there.nonzero()}
    found = []
    while rest:
        front, inside = [rest.pop()], set()
        while front:
            y, x = front.pop()
            inside.add((y, x))
            beside = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & rest
            rest -= beside
            front += beside
        found.append(inside)
    return found


def by_definition(channel: Tensor, side: int) -> Tensor:
    """Each pixel's value: the highest t at which its component of {x >= t} holds a square, or the minimum."""
    result = torch.full_like(channel, float(channel.min()))
    for level in channel.unique():
        for node in components(channel >= level):
            square = [(dy, dx) for dy in range(side) for dx in range(side)]
            if any(all((y + dy, x + dx) in node for dy, dx in square) for y, x in node):
                for place in node:
                    result[place] = level
    return result


@pytest.mark.parametrize("side", [2, 3])
def test_nodes_without_room_for_a_square_go(side: int) -> None:
    images = blotches(2, 14, 18)
    filtered = open_by_reconstruction(images, side)
    for image, got in zip(images.flatten(0, 1), filtered.flatten(0, 1), strict=True):
        assert torch.equal(got, by_definition(image, side))
    assert not torch.equal(filtered, images)


def spiral(side: int) -> Tensor:
    """A corridor one pixel wide that winds inwards; walls are 0."""
    maze, (y, x), (down, right) = torch.zeros(side, side), (0, 0), (0, 1)
    length = 0
    while True:
        maze[y, x], length = 1, length + 1
        for _ in range(2):
            ahead, beyond = (y + down, x + right), (y + 2 * down, x + 2 * right)
            free = all(0 <= place < side for place in ahead) and maze[ahead] == 0
            apart = not all(0 <= place < side for place in beyond) or maze[beyond] == 0
            if free and apart:
                break
            down, right = right, -down
        else:
            return maze
        y, x = ahead


def test_a_reconstruction_follows_a_spiral_to_its_end() -> None:
    maze = spiral(15)
    assert maze.sum() > 90
    seed = torch.zeros(15, 15)
    seed[0, 0] = 1
    assert torch.equal(reconstructed(seed, maze), maze)


def test_a_sweep_by_doubling_is_one_row_after_row() -> None:
    """What a device does, here."""
    ceiling = torch.rand(2, 3, 23, 17)
    seed = ceiling * torch.rand(2, 3, 23, 17)
    expected = seed.clone()
    for y in range(1, 23):
        for x in range(17):
            expected[:, :, y, x] = torch.minimum(
                ceiling[:, :, y, x], torch.maximum(expected[:, :, y, x], expected[:, :, y - 1, x])
            )
    assert torch.equal(maxtree._swept(seed, ceiling), expected)


def photos(side: int) -> Tensor:
    """Three photographs if they are here."""
    if not PHOTOS.exists():
        pytest.skip(f"no photographs at {PHOTOS}")
    found = []
    with tarfile.open(PHOTOS) as packed:
        for member in packed:
            if member.name.endswith(".jpg"):
                file = packed.extractfile(member)
                assert file is not None
                image = Image.open(io.BytesIO(file.read())).convert("RGB").resize((side, side))
                found.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
            if len(found) == 3:
                break
    return torch.stack(found).float() / 255


@pytest.mark.parametrize("real", [False, True])
def test_filters_are_idempotent_and_blind_to_contrast(real: bool) -> None:
    images = photos(96) if real else blotches(3, 30, 40)
    filtered = open_by_reconstruction(images, 4)
    assert torch.equal(open_by_reconstruction(filtered, 4), filtered)
    assert (filtered <= images).all()
    assert (filtered - images).abs().max() > 0.05
    for contrast in (torch.sqrt, torch.square, lambda x: (x * 2 - 1).tanh() / 2 + 0.5):
        assert torch.equal(open_by_reconstruction(contrast(images), 4), contrast(filtered))
    larger = open_by_reconstruction(images, 7)
    assert (larger <= filtered).all()  # a square of 7 holds one of 4
    assert torch.equal(open_by_reconstruction(larger, 4), larger)


def test_a_device_comes_close_on_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With as many sweeps as nobody asks about, less than a pixel in ten thousand differs by a grey level."""
    images = photos(96)
    expected = open_by_reconstruction(images, 5)
    monkeypatch.setattr(maxtree, "host_may_ask", lambda images: False)
    assert ((open_by_reconstruction(images, 5) - expected).abs() > 1 / 255).float().mean() < 1e-4


def test_edges_stay_and_details_go() -> None:
    images = torch.full((1, 3, 20, 20), 0.2)
    images[:, :, 4:12, 4:12] = 0.8  # a square with a thread that hangs on it, and a dot
    images[:, :, 8, 12:18] = 0.8
    images[:, :, 15:17, 2:4] = 0.9
    filtered = open_by_reconstruction(images, 3)
    assert torch.equal(filtered[:, :, :14], images[:, :, :14])
    assert (filtered[:, :, 14:] == 0.2).all()
    assert (open_by_reconstruction(images, 9) == 0.2).all()
    assert (open_by_reconstruction(images, 40) == 0.2).all()  # no room at all


def test_bright_details_of_some_images_dark_ones_of_others() -> None:
    images = torch.full((60, 3, 32, 32), 0.5)
    images[:, :, 4:6, 4:6], images[:, :, 20:22, 20:22] = 0.9, 0.1
    for bright, lost in ((1, 0.9), (0, 0.1)):
        after = made("maxtree", bright=bright, share=1, side=[0.1, 0.1])(
            {"a": images}, torch.arange(60), At()
        )["a"]
        expected = images.where(images != lost, torch.tensor(0.5))
        assert (after - expected).abs().max() < 1e-6
    after = made("maxtree", share=0.5, side=[0.1, 0.1])({"a": images}, torch.arange(60), At())["a"]
    kinds = torch.stack([(after[:, 0, 4, 4] - 0.9).abs() > 0.1, (after[:, 0, 20, 20] - 0.1).abs() > 0.1])
    assert not (kinds[0] & kinds[1]).any()
    assert 5 < kinds[0].sum() < 25
    assert 5 < kinds[1].sum() < 25
    assert torch.equal(after[~kinds.any(0)], images[~kinds.any(0)])
