"""What a method is: one file, one class, a few verbs. The engine calls them in this order and in no other:

    __init__ → (resume ? load state : prepare) → dataset
             → loop[forward → backward → step → after_step] → encoder exported

The base knows nothing of precision, processes, logging or files, and it is meant to stay that small.
All state of a method is parameters and buffers; then checkpoints and resuming need no code in any method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

# A method file needs one import: what stands twice in a line here is there for it.
from sslkit.augmentations.crops import RandomResizedCrop as RandomResizedCrop
from sslkit.augmentations.crops import Views as Views
from sslkit.core.config.setting import AUTO as AUTO
from sslkit.core.config.setting import setting as setting
from sslkit.data.images.picture import Picture
from sslkit.data.sources.image_set import ImageSet
from sslkit.models.encoder import Encoder as Encoder
from sslkit.models.factory import token_width

Batch = dict[str, Tensor]
"""One batch on the device: "index" int64 [B], the images' stable positions in the data set, and what
`transform` made, as float [B, C, H, W] in [0, 1] where it was uint8."""

Transform = Callable[[Picture, np.random.Generator], Mapping[str, Tensor]]
"""`augmentations.crops.Views`, or any function of a picture, not decoded yet, and a generator of its own."""


@dataclass(frozen=True)
class Info:
    """What a method may know about its data and its backbone before the first batch."""

    count: int  # images in the set
    size: int  # side of a view, pixels
    native: int  # median short side of the stored images, pixels
    backbone: str = ""  # timm's name of it

    @property
    def width(self) -> int:
        """Of a ViT's tokens; 0 without a backbone. Building one block tells it: ask only where it counts."""
        return token_width(self.backbone) if self.backbone else 0


@dataclass(frozen=True)
class Clock:
    """Where training stands. `step` counts optimizer steps from 0."""

    step: int
    steps: int
    steps_per_epoch: int
    seed: int = 0

    @property
    def epoch(self) -> int:
        return self.step // self.steps_per_epoch

    def at(self, step: int) -> Clock:
        return replace(self, step=step)

    def rest(self) -> Iterator[Clock]:
        """This step and all after it."""
        return (self.at(step) for step in range(self.step, self.steps))

    def every(self, count: int) -> bool:
        """True once in `count` steps, and on the last step."""
        return (self.step + 1) % count == 0 or self.step + 1 == self.steps


class Method(nn.Module):
    """Base of all methods; a subclass's docstring is its help text: paper, idea, link."""

    Config: ClassVar[type]
    """Frozen dataclass: the paper's knobs in the paper's words."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """What this paper wants from the shared sections, e.g. {"optim.betas": (0.9, 0.95)}."""
    overrides: ClassVar[Mapping[str, Mapping[str, float]]] = {}
    """Parameter-name pattern → optimizer options, e.g. {"*.pos_embed": {"weight_decay": 0.0}}."""
    needs: ClassVar[frozenset[str]] = frozenset({"image"})
    minimum_batch: ClassVar[int] = 1
    """Images that the loss takes at least; contrasting one image with itself teaches nothing."""
    couples_images: ClassVar[bool] = False
    """True where an image's loss depends on the others in memory: accumulation then changes the method."""

    rests: ClassVar[bool] = False
    """True where some steps leave a parameter without gradient; processes that train together must know."""

    encoder: Encoder
    """The product: what is probed and exported."""

    def __init__(self, config: Any, encoder: Encoder, info: Info) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.info = info

    @staticmethod
    def resolve(config: Any, family: str, info: Info) -> dict[str, tuple[Any, str]]:
        """Values for settings left at auto, each with its reason in a few words.

        Keys are the method's own settings, or shared ones with their section: "optim.name".
        """
        return {}

    def transform(self) -> Transform:
        """Worker side: a picture and its generator → named uint8 views; must be picklable.

        `picture.width` and `picture.height` cost nothing, `picture.crops(cuts)` decodes as far as the crops
        need, `picture.rgb()` is the whole image as Pillow's.
        """
        raise NotImplementedError

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """{"loss": scalar, "embedding": detached [B, D] for the health figures, name: detached scalar, …}"""
        raise NotImplementedError

    def prepare(self, images: ImageSet) -> None:
        """Once, before step 0: a pass over the data, for methods that need one."""

    def dataset(self, images: ImageSet) -> ImageSet:
        """What one item is; by default the views of one image."""
        return images

    def after_step(self, clock: Clock) -> None:
        """After each real optimizer step, without gradient: momentum networks, prototypes, re-centring."""

    def panels(self, batch: Batch) -> dict[str, Tensor]:
        """Named pictures [B, 3, H, W] in [0, 1] of what the method does with a batch."""
        return {}
