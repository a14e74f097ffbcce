"""One method on one tiny backbone with generated images: what every check begins with."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import traceback
from collections.abc import Iterable
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from sslkit.core.console import SILENT
from sslkit.core.device import Precision, to_device
from sslkit.core.distributed import collectives
from sslkit.core.errors import UserError
from sslkit.data.loading.loader import pretraining_loader
from sslkit.data.sources import fractal
from sslkit.data.sources.image_set import ImageSet, open_images
from sslkit.methods import card, configuration, load
from sslkit.methods.base import Batch, Clock, Method, Transform
from sslkit.training.loop.engine import Step, train
from sslkit.training.loop.optim import CosineSchedule
from sslkit.training.pretrain.auto import resolve
from sslkit.training.pretrain.prepare import look_at
from sslkit.training.run.folder import build_method

CPU = torch.device("cpu")
IMAGES, BATCH, SIZE = 16, 8, 32
BACKBONES = {"test_vit": "vit", "test_resnet": "cnn"}
"""timm's smallest models, 0.3 M weights each, and their families."""

FIRST = Clock(step=0, steps=2, steps_per_epoch=2)
"""Epoch 0."""
LATE = Clock(step=1000, steps=1012, steps_per_epoch=1000)
"""Epoch 1, where nothing is frozen any more; so near the end that momentum networks rest."""


class Broken(Exception):
    """A check does not hold; the text is the reason."""


def demand(condition: bool, reason: str) -> None:
    if not condition:
        raise Broken(reason)


class Case:
    """A method on a backbone, configured as `pretrain` would do it, on the CPU in float32.

    Raises:
        UserError: no such method, or its file holds none.
    """

    def __init__(self, name: str, backbone: str) -> None:
        known = card(name)
        values = {
            **known.facts["defaults"],
            "data.sources": [f"fractal:{IMAGES}"],
            "data.size": SIZE,
            "data.workers": 0,
            "model.backbone": backbone,
            "model.patch_size": 8 if BACKBONES[backbone] == "vit" else 0,
            "schedule.epochs": 4,
            "run.batch_size": BATCH,
            "run.device": "cpu",
            "run.precision": "float32",
            "run.out": "nowhere",
            **known.facts.get("contract", {}),
        }
        self.facts, self.kind = known.facts, load(name)
        self.accepted = BACKBONES[backbone] in known.facts.get("backbones", ())
        config = configuration(known.name, values)
        self.ready = resolve(config, IMAGES, fractal.SIDE, CPU)

    def build(self, seed: int = 0) -> Method:
        """The method with fresh weights, in training mode, prepared as `pretrain` does it before step 0."""
        config = self.ready.config
        seeded = dataclasses.replace(config, run=dataclasses.replace(config.run, seed=seed))
        method = build_method(seeded, self.ready.info).train()
        with collectives.single_process():  # all processes look at all images
            method.prepare(look_at(self.images, method, config, CPU, SILENT))
            if method.plans_epochs():
                items = method.dataset(self.images)
                method.each_epoch(look_at(items, method, config, CPU, SILENT), FIRST)
        return method.train()

    @cached_property
    def images(self) -> ImageSet:
        return open_images(self.ready.config.data.sources)

    @cached_property
    def batches(self) -> list[Batch]:
        """Two batches on the device: all images once."""
        return [to_device(batch, CPU) for batch in self.load(self.build().transform(), workers=0)]

    def load(self, transform: Transform, workers: int) -> list[dict[str, Any]]:
        """The same batches as they come from the loader."""
        items = self.build().dataset(self.images)
        batches = pretraining_loader(
            items, transform, batch_size=BATCH, seed=0, start_step=0, steps=IMAGES // BATCH,
            steps_per_epoch=IMAGES // BATCH, workers=workers,
        )  # fmt: skip
        return list(batches)

    @property
    def batch(self) -> Batch:
        """The first of them."""
        return self.batches[0]

    def train(
        self,
        method: Method,
        clock: Clock,
        batches: Iterable[Batch] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        precision: Precision = "float32",
        stop: int | None = None,
    ) -> list[Step]:
        """The steps of `clock`, at most `stop`, by the real engine: batches in turn, AdamW by default."""
        optimizer = optimizer or torch.optim.AdamW(trainable(method).values(), lr=1e-3)
        steady = CosineSchedule(optimizer, 10**9, warmup=0, warmup_lr=0.0, min_lr=0.0)
        turns: Iterable[Batch] = (
            self.batches[step % len(self.batches)] for step in range(clock.step, clock.steps)
        )
        steps = train(
            method, batches or turns, optimizer, steady, clock.rest(), device=CPU, precision=precision
        )
        return list(islice(steps, stop))

    def trained(self) -> Method:
        """A method after an epoch of two steps, so that weights which begin at zero have left it."""
        return copy.deepcopy(self._trained)

    @cached_property
    def _trained(self) -> Method:
        method = self.build()
        self.train(method, FIRST)
        return method

    def describe(self, problem: Exception) -> str:
        """An exception in one line, with the line of the method's file that it came through."""
        if isinstance(problem, Broken | UserError):
            return str(problem)
        file = inspect.getfile(self.kind)
        lines = [f.lineno for f in traceback.extract_tb(problem.__traceback__) if f.filename == file]
        text = (str(problem).splitlines() or [""])[0]
        return f"{type(problem).__name__}: {text}" + (f" (line {lines[-1]})" if lines else "")


def outputs(method: Method, batch: Batch, clock: Clock = LATE) -> dict[str, Tensor]:
    """One forward pass with the global generator as it was in every other one."""
    torch.manual_seed(0)
    found: dict[str, Tensor] = method(method.coloured(batch, clock), clock)
    return found


def trainable(method: Method) -> dict[str, Tensor]:
    """The parameters that the optimizer changes, by name."""
    return {name: weight for name, weight in method.named_parameters() if weight.requires_grad}


def cloned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that are not equal bit for bit."""
    return [name for name in first if not torch.equal(first[name], second[name])]
