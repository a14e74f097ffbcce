"""What happens to a batch between a method's colours and its forward pass: augmentations, a curriculum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from sslkit.augmentations import batch as augmentations
from sslkit.augmentations import curricula
from sslkit.augmentations.batch.augment import BatchAugment
from sslkit.augmentations.curricula.curriculum import Curriculum, Plan, plan
from sslkit.augmentations.curricula.shrink import fitted_side, shrunk
from sslkit.core.config.build import PretrainConfig
from sslkit.core.device import Precision, autocast, to_device
from sslkit.core.distributed import processes
from sslkit.core.errors import UserError
from sslkit.data.sources.image_set import ImageSet
from sslkit.methods import short_name
from sslkit.methods.base import Batch, Clock, Method
from sslkit.models.memories import Memory
from sslkit.training.loop.sample import sample


@dataclass(frozen=True)
class AroundMethod:
    """Colours, then each augmentation on the whole batch, then the size of the curriculum's stage.

    On the whole batch, before it is divided into micro-batches: what is one for the batch stays one, however
    memory divides it.

    Args:
        stages: of the run's steps; None without a curriculum.
        stride: of the backbone, pixels.
    """

    augments: Sequence[BatchAugment]
    stages: Plan | None
    stride: int

    def __call__(
        self, method: Any, batch: Batch, clock: Clock, device: torch.device, precision: Precision
    ) -> Batch:
        stage = None if self.stages is None else self.stages.stage(clock.step)
        with torch.no_grad():
            with autocast(device, precision):
                batch = method.coloured(batch, clock, 1.0 if stage is None else stage.strength)
            for augment in self.augments:
                batch = augment(batch, batch["index"], clock)
            return batch if stage is None else shrunk(batch, stage.size, self.stride)

    def at_full_size(self) -> AroundMethod:
        """The same without its curriculum."""
        return replace(self, stages=None)

    @property
    def cost(self) -> float:
        """Of the run, relative to one at full size."""
        return 1.0 if self.stages is None else self.stages.full_steps / self.stages.steps


def around_method(config: PretrainConfig, method: Method, steps: int) -> AroundMethod | None:
    """What `run.augment` and `run.curriculum` ask for; None if that is nothing."""
    run = config.run
    augments = [augmentations.load(name)(config.around[name]) for name in run.augment]
    stages = None
    if run.curriculum:
        curriculum: Curriculum = curricula.load(run.curriculum)(config.around[run.curriculum])
        stages = plan(curriculum, steps)
    if not augments and stages is None:
        return None
    return AroundMethod(augments, stages, method.encoder.stride)


def refuse_sizes(
    around: AroundMethod, method: Method, images: ImageSet, config: PretrainConfig, device: torch.device
) -> None:
    """One forward pass at each size of the curriculum; what it changes is put back.

    Raises:
        UserError: the backbone, or the method on it, can't change its size.
    """
    if around.stages is None:
        return
    batch = to_device(sample(images, method.transform(), max(2, method.minimum_batch)), device)
    state = {name: tensor.detach().clone() for name, tensor in method.state_dict().items()}
    training, clock = method.training, Clock(0, 1, 1, config.run.seed)
    try:
        for size in sorted({stage.size for stage in around.stages.stages}):
            with torch.no_grad(), torch.random.fork_rng(devices=[]), autocast(device, config.run.precision):
                method.train()(shrunk(batch, size, around.stride), clock)
    except Exception as problem:
        if processes.memory_ran_out(problem):  # which tells nothing of the size that a network takes
            raise
        side = fitted_side(config.data.size, size, around.stride)
        name = short_name(config.method_name)
        reason = f"{name} on {method.encoder.name} takes no images of {side} px beside {config.data.size}"
        raise UserError(
            f"--curriculum {config.run.curriculum}: {reason} ({type(problem).__name__})",
            "leave --curriculum out, or take a ViT",
        ) from None
    finally:
        for module in method.modules():
            if isinstance(module, Memory):
                module.forget()
        method.load_state_dict(state)
        method.train(training)
