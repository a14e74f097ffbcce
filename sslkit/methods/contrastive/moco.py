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

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.augmentations import settings
from sslkit.augmentations.masking import shuffled
from sslkit.augmentations.multi_view import blur_of, one_crop, photometry, two_views
from sslkit.core.config.setting import AUTO, setting
from sslkit.core.distributed import collectives
from sslkit.losses.contrastive import first_is_right, queue_logits
from sslkit.methods.base import NO_DECAY, Batch, Choices, Clock, Encoder, Info, Method, Outputs, optimizer
from sslkit.models.ema import momentum_copy, short_run_momentum
from sslkit.models.heads import mlp
from sslkit.models.init import fill_last_norms_


class MoCo(Method):
    """MoCo v2 (2020), and v1 by its settings: contrast a query with a queue of older keys."""

    minimum_batch = 2
    couples_images = True  # what is in memory first is already in the queue of what follows
    defaults = {
        "optim.reference_batch": 256,
        "optim.decay_norms": True,  # official: of all parameters, in v3 too
        "schedule.min_lr": 0.0,
        "schedule.cosine_after_warmup": True,  # v3's; v2 has no warm-up
    }
    overrides = NO_DECAY

    @dataclass(frozen=True)
    class Config:
        queue: int = setting(
            AUTO, "negatives; auto: a power of two up to half of the images (official: 65,536)", low=1
        )
        momentum: float = settings.share(
            0.999, "of the key encoder, per step (official: 0.999); at most 1 - 5 / steps (ours)"
        )
        temperature: float = setting(0.2, "of the softmax (official: 0.2; v1: 0.07)", above=0)
        head: Literal["mlp", "linear"] = setting("mlp", "on the encoder's vector (official: mlp; v1: linear)")
        projection: int = setting(128, "width of the vectors that are compared (official: 128)", low=1)
        symmetric: bool = setting(False, "each view is a query once and a key once (official: false)")
        jitter: tuple[float, float, float] = settings.jitter(0.4, 0.4, 0.4)
        hue: float = settings.hue(0.1, "; v1: 0.4")
        jitter_share: float = settings.jitter_share(0.8, "; v1: 1")
        grayscale: float = settings.share(0.2, "probability of grey views (official: 0.2)")
        blur: float = settings.share(
            AUTO, "probability of blur; auto: 0.5 (official), or 0 up to 64 px; v1: 0"
        )
        crop_scale: tuple[float, float] = settings.crop_scale(0.2)
        flip: float = settings.flip()

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
        self.views = two_views("moco", one_crop(config, info.size), photometry(config))

    @staticmethod
    def resolve(config: Config, family: str, info: Info) -> Choices:
        queue = min(65536, 1 << (max(1, info.count // 2).bit_length() - 1))
        room = f"at most half of {info.count:,} images; best with batches up to {max(1, queue // 16)}"
        choices: Choices = {"queue": (queue, room), "blur": blur_of(info.size, 0.5)}
        if family == "cnn":
            return choices | optimizer("the paper's for a CNN", name="sgd", lr=0.03, weight_decay=1e-4)
        reason = f"MoCo v3's for a ViT, ours for a {family}"
        return choices | optimizer(reason, name="adamw", weight_decay=0.1)

    def forward(self, batch: Batch, clock: Clock) -> Outputs:
        first, second = self.views.of(batch)
        pairs = [(first, second), (second, first)] if self.config.symmetric else [(first, second)]
        vectors = [self.encoder.vector(asked) for asked, _ in pairs]
        keys = [self.keys(answer, clock, f"moco.shuffle{number}") for number, (_, answer) in enumerate(pairs)]
        own = torch.cat([every.chunk(collectives.world_size())[collectives.rank()] for every in keys])
        # A copy: backward needs the queue as it was, and it is overwritten below.
        query, negatives = self.head(torch.cat(vectors)), self.queue.clone()
        found = first_is_right(queue_logits(query, own, negatives, self.config.temperature))
        self.enqueue_(torch.cat(keys))
        age, momentum = len(self.queue) / sum(map(len, keys)), self.momentum(clock)
        figures = {"queue_age": query.new_full((), age), "momentum": query.new_full((), momentum)}
        return {**found, **figures, "embedding": vectors[0].detach()}

    @torch.no_grad()
    def keys(self, images: Tensor, clock: Clock, stream: str) -> Tensor:
        """Unit keys [W B, d] of the images [B, 3, H, W] of all processes, in the order of ranks.

        With batch norm the processes exchange images first: if a key shared its statistics with its query,
        these would give it away.
        """
        world = collectives.world_size()
        if world == 1 or not self.shuffled:
            return collectives.gather(self.key(images))
        every, first = collectives.gather(images), torch.zeros(1, dtype=torch.int64, device=images.device)
        order = shuffled(clock.seed, clock.step, first, len(every), stream)[0]  # equal in all processes
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

    def followers(self) -> dict[nn.Module, nn.Module]:
        """After the step; the official code, before the next keys, and first when both are still equal."""
        return {self.key_encoder: self.encoder, self.key_head: self.head}

    def momentum(self, clock: Clock) -> float:
        """The setting; in a short run so much less that keys forget the start within a fifth of it."""
        return short_run_momentum(self.config.momentum, clock.steps)
