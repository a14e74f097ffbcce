"""DINO: a student, from small and large crops of an image, answers as its slow average does to large ones.

Caron, Touvron, Misra, Jégou, Mairal, Bojanowski and Joulin, *Emerging Properties in Self-Supervised Vision
Transformers*, ICCV 2021, https://arxiv.org/abs/2104.14294

An answer is a distribution over K outputs that mean nothing beforehand. The teacher's is centred, so that no
output always wins, and sharpened, so that not all are equal; either alone collapses, to a teacher_entropy of
0 or to a loss of log K ("chance" 1). The teacher is what is exported.

Differs from the official code: the head reads the vector that is exported, for a ViT the mean of the patch
tokens, not the class token; small crops get antialiased positions; the last layer is float32; the blur's
kernel ends at a tenth of the side; the student has no stochastic depth (official: 0.1). Small sets get fewer
outputs, images up to 64 px no blur.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sslkit.augmentations import settings
from sslkit.augmentations.crops import RandomResizedCrop
from sslkit.augmentations.multi_view import blur_of, local_size, multi_crop, two_views
from sslkit.augmentations.photometric import Photometry
from sslkit.core.config.setting import AUTO, setting
from sslkit.core.distributed import collectives
from sslkit.losses.distillation import pairs_ce
from sslkit.methods.base import (
    AFTER_WARMUP,
    Batch,
    Choices,
    Clock,
    Encoder,
    Info,
    Look,
    Method,
    Outputs,
    optimizer,
)
from sslkit.models.ema import momentum_copy, rising_momentum
from sslkit.models.factory import has_one_size
from sslkit.models.heads import Prototypes
from sslkit.models.init import fill_last_norms_
from sslkit.models.input_size import takes


class DINO(Method):
    """DINO (ICCV 2021): agree with a slow average of oneself, from small crops to large ones."""

    rests = True  # the last layer, in the first epochs
    defaults = AFTER_WARMUP | {
        "optim.reference_batch": 256,
        "optim.clip": 3.0,
        "optim.clip_by": "tensor",
        "schedule.min_lr": 1e-6,
    }

    @dataclass(frozen=True)
    class Config:
        outputs: int = setting(AUTO, "K; auto: 65536 (official), or 4096 for up to 50,000 images", low=2)
        hidden: int = setting(2048, "width of the head's middle layers (official: 2048)", low=1)
        bottleneck: int = setting(256, "width before the last layer (official: 256)", low=1)
        batch_norm: bool = setting(False, "batch norm in the head (official: false)")
        norm_last_layer: bool = setting(True, "rows of the last layer keep length 1 (official: true)")
        freeze_last_layer: int = setting(1, "epochs in which the last layer rests (official: 1)", low=0)
        student_temperature: float = setting(0.1, "of the student's softmax (official: 0.1)", above=0)
        teacher_temperature: float = setting(
            0.04, "of the teacher's softmax (official: 0.04; above 0.07 is unstable)", above=0
        )
        warmup_teacher_temperature: float = setting(0.04, "where it starts (official: 0.04)", above=0)
        warmup_teacher_epochs: int = setting(0, "epochs of its linear warm-up (official: 0)", low=0)
        centre_momentum: float = settings.share(0.9, "of the centre of the teacher's answers (official: 0.9)")
        momentum: float = settings.share(
            0.996,
            "of the teacher at first, rising to 1 (official: 0.996; long runs: 0.9995, small data: 0.99)",
        )
        local_crops: int = setting(
            AUTO, "small crops beside two large ones; auto: 8 (official), 0 if too small", low=0
        )
        local_size: int = setting(AUTO, "their side, pixels, in whole patches; auto: 3/7 of size", low=1)
        global_scale: tuple[float, float] = settings.area(
            AUTO, "area of large crops; auto: 0.4–1; CNN or no local crops: 0.14–1 (official)"
        )
        local_scale: tuple[float, float] = settings.area(
            AUTO, "area of small crops; auto: 0.05–0.4; CNN: 0.05–0.14 (official)"
        )
        flip: float = settings.flip()
        strength: float = setting(
            1.0, "of the colour jitter, times (0.4, 0.4, 0.2, hue 0.1) (official: 1)", low=0, high=5
        )
        blur: tuple[float, float, float] = settings.share(
            AUTO, "probability in first, second, small crops; auto: 1, 0.1, 0.5 (official), or 0 up to 64 px"
        )
        solarize: float = settings.share(0.2, "probability in the second crop (official: 0.2)")

    centre: Tensor
    answered: Tensor  # the sum of the teacher's answers since the last step, over all processes
    answers: Tensor  # and their number

    def __init__(self, config: Config, encoder: Encoder, info: Info) -> None:
        super().__init__(config, encoder, info)
        self.local_size = local_size(config, encoder)
        fill_last_norms_(encoder)
        if getattr(encoder.model, "cls_token", None) is not None:  # official; timm's own deviation is 1e-6
            nn.init.trunc_normal_(encoder.model.cls_token, std=0.02)
        widths = [encoder.width, config.hidden, config.hidden, config.bottleneck]
        self.student = copy.deepcopy(encoder)
        self.student_head = Prototypes(
            widths, config.outputs, batch_norm=config.batch_norm, norm_last_layer=config.norm_last_layer
        )
        encoder.requires_grad_(False)  # the teacher, with the head beside it
        self.teacher_head = momentum_copy(self.student_head)
        self.register_buffer("centre", torch.zeros(1, config.outputs))
        self.register_buffer("answered", torch.zeros(1, config.outputs))
        self.register_buffer("answers", torch.zeros(1))
        large = RandomResizedCrop(info.size, config.global_scale, flip=config.flip)
        small = RandomResizedCrop(self.local_size, config.local_scale, flip=config.flip)
        strength = config.strength
        colour = Photometry(0.4 * strength, 0.4 * strength, 0.2 * strength, 0.1 * strength)
        first, second, local = (replace(colour, blur=share) for share in config.blur)
        pair = two_views("dino", large, first, replace(second, solarize=config.solarize))
        self.views = multi_crop(pair, config.local_crops, small, local)

    @staticmethod
    def resolve(config: Config, family: str, info: Info) -> Choices:
        cnn, name, paper = family == "cnn", info.backbone, f"the paper's for a {family}"
        step = 32 if cnn else 16
        side = -(-3 * info.size // (7 * step)) * step
        crops = (8, "the paper's")
        if family == "swin" or (name and has_one_size(name)):
            crops = (0, f"{name or 'a swin'} takes images of one size")
        elif cnn and name and not takes(name, side):
            crops = (0, f"{name} takes no images of {side} px")
        elif cnn and side < 2 * step:
            crops = (0, f"{side} px are one cell of a CNN's map")
        local = crops[0] if config.local_crops == AUTO else config.local_crops
        scale = (0.14 if cnn or not local else 0.4, 1.0)
        choices: Choices = {
            "outputs": (65536 if info.count > 50_000 else 4096, f"{info.count:,} images; ImageNet: 65536"),
            "local_crops": crops,
            "local_size": (side, f"3/7 of {info.size} px, as 96 of 224, in steps of {step}"),
            "global_scale": (scale, paper if local else "the paper's without local crops"),
            "local_scale": ((0.05, 0.14 if cnn else 0.4), paper),
            "blur": blur_of(info.size, (1.0, 0.1, 0.5)),
        }
        if cnn:
            return choices | optimizer(paper, name="sgd", lr=0.03, weight_decay=1e-4, weight_decay_end=1e-4)
        return choices | optimizer(paper, name="adamw", lr=5e-4, weight_decay=0.04, weight_decay_end=0.4)

    def followers(self) -> dict[nn.Module, nn.Module]:
        return {self.encoder: self.student, self.teacher_head: self.student_head}

    def momentum(self, clock: Clock) -> float:
        return rising_momentum(self.config.momentum, clock.step, clock.steps)

    def prepare(self, look: Look) -> None:
        """The encoder, here the follower, may have got given weights by now: the student starts there too."""
        self.student.load_state_dict(self.encoder.state_dict())

    def temperature(self, epoch: int) -> float:
        """The teacher's in an epoch: linear, reached in the warm-up's last one."""
        start, end = self.config.warmup_teacher_temperature, self.config.teacher_temperature
        warmup = self.config.warmup_teacher_epochs
        return float(end if epoch >= warmup else start + (end - start) * epoch / max(1, warmup - 1))

    def forward(self, batch: Batch, clock: Clock) -> Outputs:
        views = self.views.of(batch)
        with torch.no_grad():
            vectors = self.encoder.vector(torch.cat(views[:2]))  # [2 B, D]
            answer = self.teacher_head(vectors)  # [2 B, K]
            target = ((answer - self.centre) / self.temperature(clock.epoch)).softmax(1)
            self.answered.add_(collectives.all_reduce_sum(answer.sum(0)))
            self.answers.add_(len(answer) * collectives.world_size())
        # The backbone runs once for each size; a batch norm sees large and small crops apart.
        seen = torch.cat([self.student.vector(torch.cat(same)) for same in (views[:2], views[2:]) if same])
        guess = self.student_head(seen, rest=clock.epoch < self.config.freeze_last_layer)  # [V B, K]
        log_guess = (guess / self.config.student_temperature).log_softmax(1)
        loss = pairs_ce(log_guess.unflatten(0, (len(views), -1)), target.unflatten(0, (2, -1)))
        entropy = -torch.xlogy(target, target).sum(1).mean()  # `entr` is compiled when a GPU first meets it
        return {
            "loss": loss,
            "chance": loss.detach() / math.log(self.config.outputs),
            "teacher_entropy": entropy,
            "kl": loss.detach() - entropy,
            "embedding": vectors,
        }

    def after_step(self, clock: Clock) -> None:
        super().after_step(clock)
        # Here, not in forward: the centre moves once in a step, in however many parts its batch came.
        self.centre.lerp_(self.answered / self.answers.clamp_min(1), 1 - self.config.centre_momentum)
        self.answered.zero_()
        self.answers.zero_()
