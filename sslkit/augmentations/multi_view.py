"""Several views of an image: crops in a worker, colours on the device, pictures of both.

Made of the settings that methods share (`augmentations.settings`), by their names in a method's Config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sslkit.augmentations.crops import RandomResizedCrop, Views
from sslkit.augmentations.photometric import Photometry, View, photographed
from sslkit.core.errors import UserError
from sslkit.models.encoder import Encoder
from sslkit.models.factory import has_one_size
from sslkit.models.input_size import takes

SMALL = 64
"""Pixels a side up to which a blur leaves too little: nobody has it on CIFAR-10."""


@dataclass(frozen=True)
class MultiView:
    """Views by name; those that differ by a number only (local1, local2) are of one kind.

    Args:
        stream: the method's name; draws under different names are independent.
        crops: how a worker cuts each view, in their order.
        photometry: what happens to the colours of each on the device.
    """

    stream: str
    crops: Mapping[str, RandomResizedCrop]
    photometry: Mapping[str, Photometry]

    def transform(self) -> Views:
        """The worker's side."""
        return Views(**self.crops)

    def of(self, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """The views of a batch in their order."""
        return [batch[name] for name in self.crops]

    def coloured(
        self, batch: Mapping[str, Tensor], seed: int, epoch: int, strength: float = 1.0
    ) -> dict[str, Tensor]:
        """All views by name, float32 [B, 3, H, W] in [0, 1], with other colours.

        Args:
            strength: of the colour jitter, share of the usual one.
        """
        crops = [
            View(colours.weaker(strength), batch[name], f"{self.stream}.{name}")
            for name, colours in self._named()
        ]
        return dict(zip(self.crops, photographed(crops, batch["index"], seed, epoch), strict=True))

    def panels(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The image and what may happen to the colours of each kind of view; workers crop."""
        image, index = batch["image"], batch["index"]
        kinds = {name.rstrip("0123456789"): colours for name, colours in self._named()}
        drawn = {
            kind: colours(image, index, 0, 0, f"{self.stream}.{kind}") for kind, colours in kinds.items()
        }
        return {"image": image, **drawn}

    def _named(self) -> list[tuple[str, Photometry]]:
        return [(name, self.photometry[name]) for name in self.crops]


def two_views(
    stream: str, crop: RandomResizedCrop, first: Photometry, second: Photometry | None = None
) -> MultiView:
    """ "first" and "second", independent draws of one crop; without `second` colours of one kind too."""
    return MultiView(stream, {"first": crop, "second": crop}, {"first": first, "second": second or first})


def multi_crop(large: MultiView, count: int, small: RandomResizedCrop, colours: Photometry) -> MultiView:
    """Two large views, and `count` small ones beside them: "local1", "local2" … (SwAV, DINO)."""
    names = [f"local{number}" for number in range(1, count + 1)]
    crops, photometry = dict.fromkeys(names, small), dict.fromkeys(names, colours)
    return MultiView(large.stream, {**large.crops, **crops}, {**large.photometry, **photometry})


def local_size(config: Any, encoder: Encoder) -> int:
    """The side of small crops by the settings `local_size` and `local_crops`, pixels; 0 without them.

    Whole patches, or cells of a CNN's map.

    Raises:
        UserError: not 2 × 2 of them, more than the image, or a backbone that takes images of one size only.
    """
    if not config.local_crops:
        return 0
    cure = "-s method.local_crops=0 goes without them"
    if has_one_size(encoder.name):
        raise UserError(f"{encoder.name} takes images of one size, and local crops are smaller", cure)
    least, most = 2 * encoder.stride, encoder.size
    size: int = round(config.local_size / encoder.stride) * encoder.stride
    if not least <= size <= most:
        problem = f"method.local_size: {config.local_size} is not in {least} … {most} for {encoder.name}"
        raise UserError(problem, cure)
    if encoder.family != "vit" and not takes(encoder.name, size, stem=encoder.stem):
        raise UserError(f"{encoder.name} takes no local crops of {size} px", cure)
    return size


def one_crop(config: Any, size: int) -> RandomResizedCrop:
    """The random crop of the settings `crop_scale` and `flip`, where a method has these."""
    usual = RandomResizedCrop(size)
    scale, flip = getattr(config, "crop_scale", usual.scale), getattr(config, "flip", usual.flip)
    return RandomResizedCrop(size, scale, flip=flip)


def photometry(config: Any, view: int = 0) -> Photometry:
    """Of the settings jitter, hue, jitter_share, grayscale, blur, solarize; a pair has one for each view."""

    def of(name: str) -> float:
        value = getattr(config, name, 0.0)
        return float(value[view] if isinstance(value, tuple) else value)

    brightness, contrast, saturation = config.jitter
    return Photometry(
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=config.hue,
        jitter=config.jitter_share,
        grayscale=config.grayscale,
        blur=of("blur"),
        solarize=of("solarize"),
    )


def blur_of(size: int, usual: Any) -> tuple[Any, str]:
    """The paper's probability of blur, or one for each view, and none for small images; with the reason."""
    none = (0.0,) * len(usual) if isinstance(usual, tuple) else 0.0
    return (none, f"images have {size} px") if size <= SMALL else (usual, "the paper's")
