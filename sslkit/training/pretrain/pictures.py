"""Pictures of a run on its way: the method's panels for the same few images, as plain grids."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from sslkit.augmentations.crops import CenterCrop
from sslkit.core.config.build import PretrainConfig
from sslkit.core.device import autocast, to_device
from sslkit.data.images.decode import UnreadableImage
from sslkit.data.sources.image_set import ImageSet
from sslkit.methods.base import Batch, Clock, Method

PICTURED = 8
"""Images of the set that every picture of a run shows."""


def due(clock: Clock, wanted: int) -> bool:
    """True `wanted` times, evenly over the run, the last time on the last step."""
    return (clock.step + 1) * wanted // clock.steps > clock.step * wanted // clock.steps


def write_panels(
    method: Method, images: ImageSet, config: PretrainConfig, device: torch.device, file: Path
) -> None:
    """One row per image, one column per panel, as a PNG; nothing where the method has no panels."""
    batch = pictured_batch(images, config.data.size, device)
    method.eval()
    with torch.no_grad(), autocast(device, config.run.precision):
        panels = method.panels(batch)
    method.train()
    columns = [panel.float().cpu() for panel in panels.values()]
    if columns:
        grid = torch.cat([torch.cat(list(column), dim=1) for column in columns], dim=2)
        pixels = (grid.permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(pixels).save(file)


def pictured_batch(images: ImageSet, size: int, device: torch.device) -> Batch:
    """The first readable images of the set as evaluation views, on the device."""
    view, views = CenterCrop(size), {}
    for index in range(len(images)):
        try:
            views[index] = view(images.read(index))
        except UnreadableImage:
            continue
        if len(views) == PICTURED:
            break
    return to_device({"image": torch.stack(list(views.values())), "index": torch.tensor(list(views))}, device)
