"""One entrance to the fifteen corruptions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sslkit.augmentations.corruptions import blur, digital, noise, weather
from sslkit.augmentations.corruptions.draws import Draws
from sslkit.augmentations.corruptions.severity import GROUPS, parameters
from sslkit.frequency.devices import full_precision

_FILES = {"noise": noise, "blur": blur, "weather": weather, "digital": digital}
_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    name: getattr(_FILES[group], name) for group, names in GROUPS.items() for name in names
}


@torch.no_grad()
def common_corruption(images: Tensor, index: Tensor, name: str, severity: int, seed: int = 0) -> Tensor:
    """One of the fifteen corruptions of Hendrycks and Dietterich (ICLR 2019, arXiv 1903.12261).

    The published parameters, for 224 and for 32 pixels (`severity.parameters` says what happens at other
    sizes), and the published definitions, but: frost is generated, and what is handed on stays in floating
    point, where the published files were rounded to eight bits (CIFAR-10-C) or saved as JPEG of quality 85
    (ImageNet-C). Accuracies are therefore near, not equal to, those on the published files.

    Args:
        images: [B, 3, H, W], uint8, or floating point in [0, 1]; at least 8 pixels a side.
        index: int64 [B], the images' positions in the data set. What happens to an image depends on its
            own, on name, severity and seed, and on no other image.
        name: one of `CORRUPTIONS`.
        severity: 1 … 5.

    Returns:
        float32 [B, 3, H, W] in [0, 1], on the device of `images`.
    """
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < 8:
        raise ValueError(
            f"images have shape {tuple(images.shape)}, expected [B, 3, H, W] of 8 pixels or more"
        )
    if index.shape != images.shape[:1] or index.dtype != torch.int64:
        raise ValueError(f"index is {index.dtype} {tuple(index.shape)}, expected int64 [{len(images)}]")
    exact = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    values = parameters(name, severity, min(images.shape[2:]))
    if len(images) == 0:
        return exact
    draws = Draws(seed, index.to(images.device), f"corruption.{name}.{severity}")
    with full_precision(images.device):
        return _FUNCTIONS[name](exact, draws, *values).clamp(0, 1)
