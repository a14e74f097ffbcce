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
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.augmentations.crops import RandomResizedCrop, Views
from sslkit.augmentations.photometric import Photometry, View, photographed
from sslkit.core.config.setting import AUTO, setting
from sslkit.core.distributed import collectives
from sslkit.core.errors import UserError
from sslkit.data.sources.image_set import ImageSet
from sslkit.methods.base import Batch, Clock, Info, Method, Transform
from sslkit.models.blocks import mlp, momentum_copy, momentum_update_, rising_momentum
from sslkit.models.encoder import Encoder
from sslkit.models.factory import has_one_size
from sslkit.models.init import fill_last_norms_
from sslkit.models.input_size import takes


class DINO(Method):
    """DINO (ICCV 2021): agree with a slow average of oneself, from small crops to large ones."""

    family = "self-distillation"
    paper = "Emerging Properties in Self-Supervised Vision Transformers"
    year = 2021
    link = "https://arxiv.org/abs/2104.14294"
    backbones = ("vit", "cnn", "swin", "transformer")
    status = "tested"

    @dataclass(frozen=True)
    class Config:
        outputs: int = setting(
            AUTO, "K; auto: 65536 (official), or 4096 for up to 50,000 images", low=2, auto=True
        )
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
        centre_momentum: float = setting(
            0.9, "of the centre of the teacher's answers (official: 0.9)", low=0, high=1
        )
        momentum: float = setting(
            0.996,
            "of the teacher at the start, then it rises to 1 (official: 0.996; 0.9995 for long runs at batch "
            "256; small data: 0.99)",
            low=0,
            high=1,
        )
        local_crops: int = setting(
            AUTO, "small crops beside two large ones; auto: 8 (official), 0 if too small", low=0, auto=True
        )
        local_size: int = setting(
            AUTO, "their side, pixels, rounded to whole patches; auto: 3/7 of the size", low=1, auto=True
        )
        global_scale: tuple[float, float] = setting(
            AUTO,
            "area of large crops, share of the image; auto: 0.4–1; CNN or no local crops: 0.14–1 (official)",
            above=0,
            high=1,
            auto=True,
            ordered=True,
        )
        local_scale: tuple[float, float] = setting(
            AUTO,
            "area of small crops; auto: 0.05–0.4; CNN: 0.05–0.14 (official)",
            above=0,
            high=1,
            auto=True,
            ordered=True,
        )
        flip: float = setting(0.5, "probability of a horizontal flip (official: 0.5)", low=0, high=1)
        strength: float = setting(
            1.0, "of the colour jitter, times (0.4, 0.4, 0.2, hue 0.1) (official: 1)", low=0, high=5
        )
        blur: tuple[float, float, float] = setting(
            AUTO,
            "probability in first, second, small crops; auto: 1, 0.1, 0.5 (official), or 0 up to 64 px",
            low=0,
            high=1,
            auto=True,
        )
        solarize: float = setting(0.2, "probability in the second crop (official: 0.2)", low=0, high=1)

    defaults: ClassVar[Mapping[str, Any]] = {
        "optim.reference_batch": 256,
        "optim.clip": 3.0,
        "optim.clip_by": "tensor",
        "schedule.warmup_lr": 0.0,
        "schedule.min_lr": 1e-6,
        "schedule.cosine_after_warmup": True,
    }

    rests = True  # the last layer, in the first epochs

    centre: Tensor
    answered: Tensor
    answers: Tensor

    def __init__(self, config: Config, encoder: Encoder, info: Info) -> None:
        super().__init__(config, encoder, info)
        self.local_size = _local_size(config, encoder) if config.local_crops else 0
        fill_last_norms_(encoder)
        if getattr(encoder.model, "cls_token", None) is not None:  # official; timm's own deviation is 1e-6
            nn.init.trunc_normal_(encoder.model.cls_token, std=0.02)
        self.student, self.student_head = copy.deepcopy(encoder), Head(encoder.width, config)
        encoder.requires_grad_(False)  # the teacher, with the head beside it
        self.teacher_head = momentum_copy(self.student_head)
        self.register_buffer("centre", torch.zeros(1, config.outputs))
        # The sum of the teacher's answers since the last step and their number, over all processes.
        self.register_buffer("answered", torch.zeros(1, config.outputs))
        self.register_buffer("answers", torch.zeros(1))
        strength = config.strength
        colour = Photometry(0.4 * strength, 0.4 * strength, 0.2 * strength, 0.1 * strength)
        first, second, local = (replace(colour, blur=share) for share in config.blur)
        second = replace(second, solarize=config.solarize)
        self.photometry = {"first": first, "second": second, "local": local}

    @staticmethod
    def resolve(config: Config, family: str, info: Info) -> dict[str, tuple[Any, str]]:
        """Values for the settings left at auto, each with its reason."""
        cnn, small = family == "cnn", info.size <= 64
        step = 32 if cnn else 16
        side = -(-3 * info.size // (7 * step)) * step
        crops = (8, "the paper's")
        name = info.backbone
        if family == "swin" or (name and has_one_size(name)):
            crops = (0, f"{name or 'a swin'} takes images of one size")
        elif cnn and name and not takes(name, side):
            crops = (0, f"{name} takes no images of {side} px")
        elif cnn and side < 2 * step:
            crops = (0, f"{side} px are one cell of a CNN's map")
        local = crops[0] if config.local_crops == AUTO else config.local_crops
        paper = f"the paper's for a {family}"
        return {
            "outputs": (65536 if info.count > 50_000 else 4096, f"{info.count:,} images; ImageNet: 65536"),
            "local_crops": crops,
            "local_size": (side, f"3/7 of {info.size} px, as 96 of 224, in steps of {step}"),
            "global_scale": (
                (0.14 if cnn or not local else 0.4, 1.0),
                paper if local else "the paper's without local crops",
            ),
            "local_scale": ((0.05, 0.14 if cnn else 0.4), paper),
            "blur": (
                (0.0, 0.0, 0.0) if small else (1.0, 0.1, 0.5),
                f"images have {info.size} px" if small else "the paper's",
            ),
            "optim.name": ("sgd" if cnn else "adamw", paper),
            "optim.lr": (0.03 if cnn else 5e-4, paper),
            "optim.weight_decay": (1e-4 if cnn else 0.04, paper),
            "optim.weight_decay_end": (1e-4 if cnn else 0.4, paper),
        }

    @property
    def views(self) -> dict[str, str]:
        """Each crop's name and kind, the two large ones first."""
        small = {f"local{number}": "local" for number in range(1, self.config.local_crops + 1)}
        return {"first": "first", "second": "second", **small}

    def transform(self) -> Transform:
        config = self.config
        large = RandomResizedCrop(self.info.size, config.global_scale, flip=config.flip)
        small = RandomResizedCrop(self.local_size, config.local_scale, flip=config.flip)
        return Views(**{name: small if kind == "local" else large for name, kind in self.views.items()})

    def prepare(self, images: ImageSet) -> None:
        """The encoder may have started from given weights: the student starts there too."""
        self.student.load_state_dict(self.encoder.state_dict())

    def temperature(self, epoch: int) -> float:
        """The teacher's in an epoch: linear, reached in the warm-up's last one."""
        start, end = self.config.warmup_teacher_temperature, self.config.teacher_temperature
        warmup = self.config.warmup_teacher_epochs
        return float(end if epoch >= warmup else start + (end - start) * epoch / max(1, warmup - 1))

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        crops = [View(self.photometry[kind], batch[n], f"dino.{n}") for n, kind in self.views.items()]
        views = photographed(crops, batch["index"], clock.seed, clock.epoch)
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
        loss = cross_entropy(log_guess.unflatten(0, (len(views), -1)), target.unflatten(0, (2, -1)))
        entropy = -torch.xlogy(target, target).sum(1).mean()  # `entr` is compiled when a GPU first meets it
        return {
            "loss": loss,
            "chance": loss.detach() / math.log(self.config.outputs),
            "teacher_entropy": entropy,
            "kl": loss.detach() - entropy,
            "embedding": vectors,
        }

    def after_step(self, clock: Clock) -> None:
        momentum = rising_momentum(self.config.momentum, clock.step, clock.steps)
        momentum_update_(self.encoder, self.student, momentum)
        momentum_update_(self.teacher_head, self.student_head, momentum)
        # Here, not in forward: the centre moves once in a step, in however many parts its batch came.
        self.centre.lerp_(self.answered / self.answers.clamp_min(1), 1 - self.config.centre_momentum)
        self.answered.zero_()
        self.answers.zero_()

    def panels(self, batch: Batch) -> dict[str, Tensor]:
        """The image and what happens to the colours of each kind of crop; crops are the workers' business."""
        image, index = batch["image"], batch["index"]
        kinds = dict.fromkeys(self.views.values())
        return {"image": image, **{k: self.photometry[k](image, index, 0, 0, f"dino.{k}") for k in kinds}}


class Head(nn.Module):
    """Vectors [N, D] → logits [N, K]: an MLP to the unit sphere, then products with K rows.

    A row is its direction times its length, as in weight normalisation: with length 1, logits are cosines.
    """

    def __init__(self, width: int, config: DINO.Config) -> None:
        super().__init__()
        widths = [width, config.hidden, config.hidden, config.bottleneck]
        self.mlp = mlp(widths, batch_norm=config.batch_norm, activation=nn.GELU)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        # Of torch's Linear, like the official code: the longer a direction, the slower it turns.
        bound = config.bottleneck**-0.5
        self.direction = nn.Parameter(torch.empty(config.outputs, config.bottleneck).uniform_(-bound, bound))
        self.length = nn.Parameter(torch.ones(config.outputs, 1), requires_grad=not config.norm_last_layer)

    def rows(self) -> Tensor:
        """The last layer's weight [K, bottleneck]."""
        return F.normalize(self.direction, dim=1) * self.length

    def forward(self, vectors: Tensor, rest: bool = False) -> Tensor:
        """float32 [N, K]; with `rest` the rows get no gradient at all, and optimizers pass over them."""
        points = self.mlp(vectors)
        with torch.autocast(points.device.type, enabled=False):
            rows = self.rows().detach() if rest else self.rows()
            return F.linear(F.normalize(points.float(), dim=1), rows)


def cross_entropy(log_student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over images and the 2 V - 2 pairs of a large crop and another crop of -Σ p log q (equation 3).

    log_student: log q [V, B, K], the two large crops first. teacher: p [2, B, K] of those.
    """
    others = log_student.sum(0) - log_student[:2]
    return -(teacher * others).sum(2).mean() / (len(log_student) - 1)


def _local_size(config: DINO.Config, encoder: Encoder) -> int:
    """The side of local crops, pixels: whole patches, or cells of a CNN's map.

    Raises:
        UserError: not 2 × 2 of them, more than the image, or a backbone that takes images of one size only.
    """
    cure = "-s method.local_crops=0 goes without them"
    if has_one_size(encoder.name):
        raise UserError(f"{encoder.name} takes images of one size, and local crops are smaller", cure)
    least, most = 2 * encoder.stride, encoder.size
    size = round(config.local_size / encoder.stride) * encoder.stride
    if not least <= size <= most:
        problem = f"method.local_size: {config.local_size} is not in {least} … {most} for {encoder.name}"
        raise UserError(problem, cure)
    if encoder.family != "vit" and not takes(encoder.name, size, stem=encoder.stem):
        raise UserError(f"{encoder.name} takes no local crops of {size} px", cure)
    return size
