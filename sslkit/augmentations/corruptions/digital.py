"""Digital: contrast, elastic deformation, pixelation, JPEG."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sslkit.augmentations.corruptions.blur import gaussian_matrix
from sslkit.augmentations.corruptions.draws import Draws


def contrast(images: Tensor, draws: Draws, kept: float) -> Tensor:
    """Each channel towards its mean."""
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * kept + mean


def elastic_transform(
    images: Tensor, draws: Draws, strength: float, smoothness: float, jitter: float
) -> Tensor:
    """A random affine map, then displacements of up to `strength` pixels before they are smoothed."""
    moved = _jittered(images, draws, jitter)
    if strength == 0:
        return moved
    height, width = images.shape[2:]
    rows, columns = (gaussian_matrix(n, smoothness, 3, "symmetric").to(images) for n in (height, width))
    field = 2 * draws.uniform("displacement", 2, height, width) - 1
    right, down = (strength * (rows @ field @ columns.T)).unbind(1)  # [B, H, W]
    x, y = torch.arange(width).to(images), torch.arange(height).to(images)[:, None]
    places = torch.stack([(2 * (x + right) + 1) / width - 1, (2 * (y + down) + 1) / height - 1], -1)
    return F.grid_sample(moved, places, padding_mode="reflection", align_corners=False)


def _jittered(images: Tensor, draws: Draws, jitter: float) -> Tensor:
    """The affine map that moves three points around the centre by up to `jitter` pixels each."""
    height, width = images.shape[2:]
    middle, arm = torch.tensor([height // 2, width // 2]), min(height, width) // 3
    corners = (middle + arm * torch.tensor([[1, 1], [1, -1], [-1, -1]])).to(images)  # (x, y), as published
    moved = corners + jitter * (2 * draws.uniform("affine", 3, 2) - 1)  # [B, 3, 2]
    ones = torch.ones_like(moved[:, :, :1])
    # Where each pixel of the result comes from: the map from the moved points back.
    back = torch.linalg.solve(torch.cat([moved, ones], 2), corners.expand_as(moved))  # [B, 3, 2]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([x, y, torch.ones_like(x)], -1).to(images)  # [H, W, 3]
    source = torch.einsum("hwk,bkc->bhwc", pixels, back)
    places = 2 * source / (images.new_tensor([width, height]) - 1) - 1
    return F.grid_sample(images, places, padding_mode="reflection", align_corners=True)


def pixelate(images: Tensor, draws: Draws, share: float) -> Tensor:
    """Down to `share` of the sides and up again, both by boxes."""

    def shrink(image: Image.Image) -> Image.Image:
        size = (int(image.width * share), int(image.height * share))
        return image.resize(size, Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)

    return _by_pillow(images, shrink)


def jpeg_compression(images: Tensor, draws: Draws, quality: float) -> Tensor:
    """Through a JPEG file of this quality."""

    def compress(image: Image.Image) -> Image.Image:
        file = BytesIO()
        image.save(file, "JPEG", quality=int(quality))
        return Image.open(file)

    return _by_pillow(images, compress)


def _by_pillow(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    """Every image through Pillow, rounded to eight bits: the published data were made by it."""
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    changed = np.stack([np.asarray(change(Image.fromarray(image))) for image in pixels])
    return torch.from_numpy(changed).to(images.device).permute(0, 3, 1, 2).float() / 255
