"""MoCo: a query finds its key among thousands of older keys, which a slowly moving copy of the encoder made.

He, Fan, Wu, Xie and Girshick, *Momentum Contrast for Unsupervised Visual Representation Learning*, CVPR 2020,
https://arxiv.org/abs/1911.05722 (v1); Chen, Fan, Girshick and He, *Improved Baselines with Momentum
Contrastive Learning*, 2020, https://arxiv.org/abs/2003.04297 (v2, the default here)

The negatives wait in a queue, so a small batch has as many as a large one. Version 1 is `method.head=linear`,
`temperature=0.07`, `jitter_share=1`, `hue=0.4`, `blur=0`; its rate fell in steps, here it is a cosine.

Differs from the official default: the queue is at most half of the images, or it would hold old keys of the
very image that is asked for; it is written round its end, so any batch will do; the momentum is lower in runs
of fewer than 5,000 steps; no blur up to 64 px, as usual on CIFAR-10; a ViT, which MoCo v3 showed to work,
gets AdamW, with a trained patch embedding (v3 freezes it) and no decay of positions and class token. In one
process nothing can be shuffled, and batch norm uses the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.augmentations.crops import RandomResizedCrop, Views
from sslkit.augmentations.photometric import Photometry, View, photographed
from sslkit.core.config.setting import AUTO, setting
from sslkit.core.distributed import collectives
from sslkit.core.rng import uniform
from sslkit.data.sources.image_set import ImageSet
from sslkit.methods.base import Batch, Clock, Info, Method, Transform
from sslkit.models.blocks import mlp, momentum_copy, momentum_update_
from sslkit.models.encoder import Encoder
from sslkit.models.init import fill_last_norms_


class MoCo(Method):
    """MoCo v2 (2020), and v1 by its settings: contrast a query with a queue of older keys."""

    family = "contrastive"
    paper = "Momentum Contrast for Unsupervised Visual Representation Learning"
    year = 2020
    link = "https://arxiv.org/abs/1911.05722"
    backbones = ("vit", "cnn", "swin", "transformer")
    status = "tested"
    minimum_batch = 2
    couples_images = True  # what is in memory first is already in the queue of what follows

    @dataclass(frozen=True)
    class Config:
        queue: int = setting(
            AUTO,
            "keys that wait as negatives; auto: a power of two up to half of the images (official: 65,536)",
            low=1,
            auto=True,
        )
        momentum: float = setting(
            0.999,
            "of the key encoder, per step (official: 0.999); at most 1 - 5 / steps, for short runs (ours)",
            low=0,
            high=1,
        )
        temperature: float = setting(
            0.2, "of the softmax over similarities (official: 0.2; v1: 0.07)", above=0
        )
        head: Literal["mlp", "linear"] = setting("mlp", "on the encoder's vector (official: mlp; v1: linear)")
        projection: int = setting(128, "width of the vectors that are compared (official: 128)", low=1)
        symmetric: bool = setting(False, "each view is a query once and a key once (official: false)")
        jitter: tuple[float, float, float] = setting(
            (0.4, 0.4, 0.4), "of brightness, contrast and saturation (official)", low=0
        )
        hue: float = setting(0.1, "jitter of the hue, turns (official: 0.1; v1: 0.4)", low=0, high=0.5)
        jitter_share: float = setting(
            0.8, "probability of colour jitter (official: 0.8; v1: 1)", low=0, high=1
        )
        grayscale: float = setting(0.2, "probability of grey views (official: 0.2)", low=0, high=1)
        blur: float = setting(
            AUTO,
            "probability of blur; auto: 0.5 (official), or 0 up to 64 px; v1: 0",
            low=0,
            high=1,
            auto=True,
        )
        crop_scale: tuple[float, float] = setting(
            (0.2, 1.0),
            "area of the random crops, share of the image (official)",
            above=0,
            high=1,
            ordered=True,
        )
        flip: float = setting(0.5, "probability of a horizontal flip (official: 0.5)", low=0, high=1)

    defaults: ClassVar[Mapping[str, Any]] = {
        "optim.reference_batch": 256,
        "optim.decay_norms": True,  # official: of all parameters, in v3 too
        "schedule.min_lr": 0.0,
        "schedule.cosine_after_warmup": True,  # v3's; v2 has no warm-up
    }
    overrides: ClassVar[Mapping[str, Mapping[str, float]]] = {
        "*.pos_embed": {"weight_decay": 0.0},
        "*.cls_token": {"weight_decay": 0.0},
    }

    queue: Tensor  # [K, d], unit rows
    pointer: Tensor  # int64 [1], the row that is written next

    def __init__(self, config: Config, encoder: Encoder, info: Info) -> None:
        super().__init__(config, encoder, info)
        fill_last_norms_(encoder)
        hidden = [encoder.width] if config.head == "mlp" else []
        self.head = mlp([encoder.width, *hidden, config.projection], batch_norm=False)
        self.key_encoder, self.key_head = momentum_copy(encoder), momentum_copy(self.head)
        self.register_buffer("queue", F.normalize(torch.randn(config.queue, config.projection), dim=1))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.int64))
        self.shuffled = any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules())
        brightness, contrast, saturation = config.jitter
        self.photometry = Photometry(
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            hue=config.hue,
            jitter=config.jitter_share,
            grayscale=config.grayscale,
            blur=config.blur,
        )

    @staticmethod
    def resolve(config: Config, family: str, info: Info) -> dict[str, tuple[Any, str]]:
        """Values for the settings left at auto, each with its reason."""
        queue = min(65536, 1 << (max(1, info.count // 2).bit_length() - 1))
        room = f"at most half of {info.count:,} images; best with batches up to {max(1, queue // 16)}"
        blur = (0.0, f"images have {info.size} px") if info.size <= 64 else (0.5, "the paper's")
        choices = {"queue": (queue, room), "blur": blur}
        if family != "cnn":
            adamw = f"MoCo v3's for a ViT, ours for a {family}"
            return {**choices, "optim.name": ("adamw", adamw), "optim.weight_decay": (0.1, adamw)}
        paper = "the paper's for a CNN"
        return {
            **choices,
            "optim.name": ("sgd", paper),
            "optim.lr": (0.03, paper),
            "optim.weight_decay": (1e-4, paper),
        }

    def transform(self) -> Transform:
        crop = RandomResizedCrop(self.info.size, self.config.crop_scale, flip=self.config.flip)
        return Views(first=crop, second=crop)

    def prepare(self, images: ImageSet) -> None:
        """The encoder may have started from given weights: its follower starts there too."""
        self.key_encoder.load_state_dict(self.encoder.state_dict())

    def momentum(self, clock: Clock) -> float:
        """The setting; in a short run so much less that keys forget the start within a fifth of it."""
        return min(float(self.config.momentum), max(0.0, 1 - 5 / clock.steps))

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        crops = [View(self.photometry, batch[name], f"moco.{name}") for name in ("first", "second")]
        first, second = photographed(crops, batch["index"], clock.seed, clock.epoch)
        pairs = [(first, second), (second, first)] if self.config.symmetric else [(first, second)]
        vectors = [self.encoder.vector(asked) for asked, _ in pairs]
        keys = [self.keys(answer, clock, f"moco.shuffle{number}") for number, (_, answer) in enumerate(pairs)]
        own = [every.chunk(collectives.world_size())[collectives.rank()] for every in keys]
        # A copy: backward needs the queue as it was, and it is overwritten below.
        query, negatives = self.head(torch.cat(vectors)), self.queue.clone()
        logits = similarities(query, torch.cat(own), negatives, self.config.temperature)
        loss = F.cross_entropy(logits, torch.zeros_like(logits[:, 0], dtype=torch.int64))
        self.enqueue_(torch.cat(keys))
        place = (logits[:, 1:] >= logits[:, :1]).sum(1)  # negatives no worse than the key: 0 is found
        return {
            "loss": loss,
            "chance": loss.detach() / math.log(logits.shape[1]),
            "accuracy": (place < 1).float().mean(),
            "accuracy_5": (place < 5).float().mean(),
            "queue_age": loss.new_full((), len(self.queue) / sum(map(len, keys))),
            "momentum": loss.new_full((), self.momentum(clock)),
            "embedding": vectors[0].detach(),
        }

    @torch.no_grad()
    def keys(self, images: Tensor, clock: Clock, stream: str) -> Tensor:
        """Unit keys [W B, d] of the images [B, 3, H, W] of all processes, in the order of ranks.

        With batch norm the processes exchange images first: if a key shared its statistics with its query,
        these would give it away.
        """
        world = collectives.world_size()
        if world == 1 or not self.shuffled:
            return collectives.gather(self.key(images))
        every = collectives.gather(images)
        order = shuffle(len(every), clock, stream, images.device)
        mine = order.chunk(world)[collectives.rank()]
        return collectives.gather(self.key(every[mine]))[order.argsort()]

    def key(self, images: Tensor) -> Tensor:
        """Unit keys [B, d] of images [B, 3, H, W]."""
        return F.normalize(self.key_head(self.key_encoder.vector(images)).float(), dim=1)

    @torch.no_grad()
    def enqueue_(self, keys: Tensor) -> None:
        """Write keys [N, d] over the oldest ones, round the end of the queue; of too many, the last."""
        size, count = len(self.queue), len(keys)
        rows = (self.pointer + torch.arange(count, device=keys.device)) % size
        self.queue.index_copy_(0, rows[-size:], keys[-size:])
        self.pointer.add_(count).remainder_(size)

    def after_step(self, clock: Clock) -> None:
        """The official code does this before the next keys, and first when both encoders are still equal."""
        momentum = self.momentum(clock)
        momentum_update_(self.key_encoder, self.encoder, momentum)
        momentum_update_(self.key_head, self.head, momentum)

    def panels(self, batch: Batch) -> dict[str, Tensor]:
        """The image and two draws of what happens to its colours; crops are the workers' business."""
        image, index = batch["image"], batch["index"]
        drawn = {name: self.photometry(image, index, 0, 0, f"moco.{name}") for name in ("first", "second")}
        return {"image": image, **drawn}


def similarities(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Logits float32 [B, 1 + K]: in column 0 each query's own key, then the queue.

    query: [B, d], normalised here. key: [B, d] and queue: [K, d], unit rows.
    """
    with torch.autocast(query.device.type, enabled=False):
        unit = F.normalize(query.float(), dim=1)
        positive = (unit * key).sum(1, keepdim=True)
        return torch.cat([positive, unit @ queue.T], dim=1) / temperature


def shuffle(count: int, clock: Clock, stream: str, device: torch.device) -> Tensor:
    """A permutation int64 [count], another one in every step, the same in all processes."""
    draw = uniform(clock.seed, clock.step, torch.arange(count, device=device), stream)
    return draw.argsort(stable=True)
