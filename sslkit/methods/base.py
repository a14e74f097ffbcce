"""What a method is: one file, one class, a few verbs. The engine calls them in this order and in no other:

    __init__ → (resume ? load state : prepare) → dataset
             → epochs[each_epoch → order → steps[forward → backward → step → memories written → after_step]]
             → encoder exported

The base knows nothing of precision, processes, logging or files, and it is meant to stay that small.
All state of a method is parameters and buffers; then checkpoints and resuming need no code in any method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor, nn

# A method file needs one import: what stands twice in a line here is there for it.
from sslkit.augmentations import settings as settings
from sslkit.augmentations.crops import RandomResizedCrop as RandomResizedCrop
from sslkit.augmentations.crops import Views as Views
from sslkit.augmentations.multi_view import MultiView, one_crop
from sslkit.core.config.setting import AUTO as AUTO
from sslkit.core.config.setting import setting as setting
from sslkit.core.config.setting import source_setting as source_setting
from sslkit.data.images.picture import Picture
from sslkit.data.sources.image_set import ImageSet
from sslkit.models.ema import momentum_update_
from sslkit.models.encoder import Encoder as Encoder
from sslkit.models.factory import token_width


class Look(Protocol):
    """A pass over all items of a training; what an `ImageSet` has it has too. See training/loop/look.py."""

    @property
    def items(self) -> ImageSet: ...

    @property
    def seed(self) -> int: ...

    def each(self, read: Callable[[Tensor], Tensor], label: str = ...) -> Tensor:
        """float [B, 3, S, S] in [0, 1] → [B, D] of every image: float32 [N, D] on the CPU, in their order."""
        ...

    def __len__(self) -> int: ...


Batch = dict[str, Tensor]
"""One batch on the device: "index" int64 [B], the images' stable positions in the data set, and what
`transform` made, as float [B, C, H, W] in [0, 1] where it was uint8."""

Outputs = dict[str, Tensor]
"""What `forward` returns: "loss", a scalar; "embedding", detached [B, D]; "per_image", detached [B], such as
each image's loss or weight; other detached scalars to log."""

Choices = dict[str, tuple[Any, str]]
"""Setting → the value that is chosen for it, and the reason in a few words."""

Transform = Callable[[Picture, np.random.Generator], Mapping[str, Tensor]]
"""`augmentations.crops.Views`, or any function of a picture, not decoded yet, and a generator of its own."""

NO_DECAY = {"*.pos_embed": {"weight_decay": 0.0}, "*.cls_token": {"weight_decay": 0.0}}
"""`overrides` of most: positions and class tokens are no matrices, whatever their shape."""

AFTER_WARMUP = {"schedule.warmup_lr": 0.0, "schedule.min_lr": 0.0, "schedule.cosine_after_warmup": True}
"""Part of `defaults`: the rate rises from 0 and falls to 0 by a cosine that begins after the warm-up."""


def optimizer(reason: str, **values: Any) -> Choices:
    """`resolve`'s choice of shared settings "optim.KEY", all for one reason."""
    return {f"optim.{key}": (value, reason) for key, value in values.items()}


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
    """Base of all methods; a subclass's docstring is its help text: paper, idea, link.

    The card (`sslkit methods NAME`) reads `paper`, `year` and `link` from the first citation of the file's
    docstring, "*Title*, VENUE 2020, https://…", where the class doesn't state them.
    """

    Config: ClassVar[type]
    """Frozen dataclass: the paper's knobs in the paper's words."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """What this paper wants from the shared sections, e.g. {"optim.betas": (0.9, 0.95)}."""
    overrides: ClassVar[Mapping[str, Mapping[str, float]]] = {}
    """Parameter-name pattern → optimizer options, e.g. {"*.pos_embed": {"weight_decay": 0.0}}."""
    backbones: ClassVar[tuple[str, ...]] = ("vit", "cnn", "swin", "transformer")
    """Families that it trains; it refuses others in one line."""
    needs: ClassVar[frozenset[str]] = frozenset({"image"})
    minimum_batch: ClassVar[int] = 1
    """Images that the loss takes at least; contrasting one image with itself teaches nothing."""
    couples_images: ClassVar[bool] = False
    """True where an image's loss depends on the others in memory: accumulation then changes the method."""

    rests: ClassVar[bool] = False
    """True where some steps leave a parameter without gradient; processes that train together must know."""

    views: Any = None
    """A `MultiView`: several views of an image. Else a worker cuts one crop, "image"."""
    encoder: Encoder
    """The product: what is probed and exported."""

    def __init__(self, config: Any, encoder: Encoder, info: Info) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.info = info

    @staticmethod
    def resolve(config: Any, family: str, info: Info) -> Choices:
        """Values for settings left at auto, each with its reason in a few words.

        Keys are the method's own settings, or shared ones with their section: "optim.name" depends on the
        family (LARS or SGD for a CNN, AdamW for a ViT), which no constant knows if the backbone is auto.
        """
        return {}

    def transform(self) -> Transform:
        """Worker side: a picture and its generator → named uint8 views; must be picklable.

        `picture.width` and `picture.height` cost nothing, `picture.crops(cuts)` decodes as far as the crops
        need, `picture.rgb()` is the whole image as Pillow's. By default those of `views`, or one crop,
        "image", by the settings `crop_scale` and `flip`.
        """
        if isinstance(self.views, MultiView):
            return self.views.transform()
        return Views(image=one_crop(self.config, self.info.size))

    def coloured(self, batch: Batch, clock: Clock, strength: float = 1.0) -> Batch:
        """The batch with other colours, asked for before `forward`; by default those of `views`.

        Args:
            strength: of the colour jitter, as a curriculum has it.
        """
        if not isinstance(self.views, MultiView):
            return batch
        return {**batch, **self.views.coloured(batch, clock.seed, clock.epoch, strength)}

    def forward(self, batch: Batch, clock: Clock) -> Outputs:
        """{"loss": scalar, "embedding": detached [B, D] for the health figures, name: detached scalar, …}"""
        raise NotImplementedError

    def followers(self) -> dict[nn.Module, nn.Module]:
        """Follower → leader: networks that move towards another one after each step, by `momentum`."""
        return {}

    def momentum(self, clock: Clock) -> float:
        """Of the followers in this step: what is kept of them."""
        raise NotImplementedError

    def prepare(self, look: Look) -> None:
        """Once, before step 0: a look at all items, for methods that need one.

        By default followers begin where their leaders do: the encoder may have got given weights by now.
        """
        for follower, leader in self.followers().items():
            follower.load_state_dict(leader.state_dict())

    def dataset(self, images: ImageSet) -> ImageSet:
        """What one item is; by default the views of one image. Batch and epochs are chosen by their number.

        After `prepare`, and at a resume when the state is back.
        """
        return images

    def each_epoch(self, look: Look, clock: Clock) -> None:
        """Before an epoch's first step: a look at all items, for methods that need one in every epoch."""

    def order(self, clock: Clock) -> Tensor | None:
        """Which items this epoch shows, in their order: int64 [n]; None: all of them, drawn by the seed.

        Asked after `each_epoch`, and kept in the checkpoint, so that a resume in the epoch goes on in the
        same order. Workers read no further than the epoch. At least as many as the epoch's steps need.
        """
        return None

    @classmethod
    def plans_epochs(cls) -> bool:
        """Whether something of its own happens between two epochs."""
        return cls.order is not Method.order or cls.each_epoch is not Method.each_epoch

    def after_step(self, clock: Clock) -> None:
        """After each real optimizer step, without gradient: prototypes, re-centring; by default followers."""
        for follower, leader in self.followers().items():
            momentum_update_(follower, leader, self.momentum(clock))

    def parts(self) -> Mapping[str, nn.Module]:
        """What a run leaves beside its encoder, by name: a text tower, a projection. Written to RUN/parts."""
        return {}

    def artefacts(self) -> Mapping[str, Tensor]:
        """Tensors of a finished run that a next one names: pairs, clusters. Written to RUN/artefacts."""
        return {}

    def panels(self, batch: Batch) -> dict[str, Tensor]:
        """Named pictures [B, 3, H, W] in [0, 1] of what the method does with a batch; by default `views`."""
        return self.views.panels(batch) if isinstance(self.views, MultiView) else {}
