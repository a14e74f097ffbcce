"""An encoder with a head, fine-tuned as a whole: how the weights get in, and what is learned."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sslkit.augmentations.crops import CenterCrop
from sslkit.core.device import Precision, autocast, to_device
from sslkit.core.errors import UserError
from sslkit.data.loading.loader import evaluation_loader
from sslkit.data.sources.image_set import ImageSet
from sslkit.finetuning.augmentation import Mixing
from sslkit.finetuning.config import FinetuneConfig
from sslkit.methods.base import Batch, Clock
from sslkit.models.encoder import Encoder
from sslkit.models.factory import create_model, pooling_arguments, without_drop_path_
from sslkit.models.init import initialize_vit_
from sslkit.models.weights import Loaded, load_into, tensors_for
from sslkit.training.loop.batch_norm_check import cure_of_one, fewest_at_once, refuse_one_value
from sslkit.training.loop.optim import CosineSchedule, layer_scales, optimizer_and_schedule, parameter_groups

EVALUATION_BATCH = 128

HEAD_SCALE = 0.001
"""Of the new head's first weights, as in the official code: the first gradients reach the encoder gently."""


class Classifier(nn.Module):
    """A timm classifier with its training loss, in the shape the training loop wants.

    Args:
        model: with `num_classes` outputs, on normalised images.
        encoder: whose mean and std normalise them.
        labels: int64 [N], by the images' positions in the training set; they stay on the device.
        frozen: only the head learns; the rest stays in evaluation mode (batch norms, drop path).
        balance: balanced softmax (Ren et al., NeurIPS 2020; the logit adjustment of Menon et al., ICLR 2021,
            with τ = 1): training adds the log of each class's share to its logit, so the logits alone are
            those for classes of equal size. Drawing rare classes more often would show the same few images
            again and again, and change the order that resuming relies on.
        keep_best: hold a second copy of the model, for `note_best_`; checkpoints then have both.
    """

    def __init__(
        self,
        model: nn.Module,
        encoder: Encoder,
        labels: Tensor,
        mixing: Mixing,
        *,
        frozen: bool = False,
        balance: bool = False,
        keep_best: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.mixing, self.frozen = model, mixing, frozen
        self.multiple = 2 if mixing.enabled else 1  # images are mixed in pairs, those of a micro-batch too
        self.best = copy.deepcopy(model).requires_grad_(False) if keep_best else None
        if frozen:
            freeze_(model, encoder.family)
        self.register_buffer("labels", labels, persistent=False)
        share = torch.bincount(labels, minlength=mixing.classes).double() / len(labels)
        # A class without images would be -inf; none has that, but for a head with more classes.
        prior = share.clamp_min(1e-12).log().float() if balance else torch.zeros(mixing.classes)
        self.register_buffer("prior", prior, persistent=False)
        # Smoothing towards equal shares would work against the prior and favour rare classes.
        tilt = mixing.smoothing * (share - 1 / mixing.classes) if balance else torch.zeros(mixing.classes)
        self.register_buffer("tilt", tilt.float(), persistent=False)
        self.register_buffer("mean", encoder.mean.clone(), persistent=False)
        self.register_buffer("std", encoder.std.clone(), persistent=False)

    labels: Tensor
    prior: Tensor  # [C], added to the logits
    tilt: Tensor  # [C], added to the smoothed targets
    mean: Tensor
    std: Tensor

    def train(self, mode: bool = True) -> Classifier:
        """Training mode for what learns."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
        if self.best is not None:
            self.best.eval()
        return self

    def note_best_(self) -> None:
        """The present weights are the best so far."""
        if self.best is not None:
            self.best.load_state_dict(self.model.state_dict())

    def logits(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in [0, 1] → [B, C]."""
        logits: Tensor = self.model((images - self.mean) / self.std)
        return logits

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """Cross-entropy with the smoothed, mixed targets."""
        labels = self.labels[batch["index"]]
        images, targets = self.mixing(batch["image"], labels, clock.seed, clock.step)
        logits = self.logits(images).float() + self.prior
        return {"loss": -((targets + self.tilt) * logits.log_softmax(dim=1)).sum(dim=1).mean()}

    def after_step(self, clock: Clock) -> None:
        """Nothing: there are no weights but the optimizer's."""


def build_model(
    encoder: Encoder, classes: int, size: int, *, scratch: bool, drop_path: float = 0.0, seed: int = 0
) -> tuple[nn.Module, Loaded, tuple[str, ...]]:
    """The encoder's architecture with a new head, and the encoder's weights in it.

    A ViT is pooled by the mean of its patch tokens, followed by a norm (`fc_norm`): a new one, unless the
    source was such a classifier too. A pre-trained final norm is not taken over, as in the official code,
    because it was applied to tokens and not to their mean.

    Args:
        drop_path: stochastic depth of the last block; 0: none, whatever timm's entry wants.
        scratch: keep timm's own random weights. They learn faster in short runs than the official
            fine-tuning initialisation, and a baseline has to be a strong one.

    Returns:
        the model, what was loaded, and the names of its tensors that are new.

    Raises:
        UserError: the encoder lacks a tensor of the model, or has one that the model doesn't know.
    """
    torch.manual_seed(seed)
    rate = {"drop_path_rate": drop_path} if drop_path else {}
    model: nn.Module = create_model(
        encoder.name, encoder.stem, num_classes=classes, **classifier_arguments(encoder, size), **rate
    )
    if not drop_path:  # which timm's own default need not be
        without_drop_path_(model)
    if scratch:
        return model, Loaded(0, (), ()), tuple(model.state_dict())
    if encoder.family == "vit":
        initialize_vit_(model, bound=2.0)
    with torch.no_grad():
        for parameter in model.get_submodule(classifier_name(model)).parameters():
            parameter.mul_(HEAD_SCALE)
    given = tensors_for(encoder, model)
    found = load_into(model, given, but=head_names(model, encoder.family))
    if found.missing or found.unused:
        names = ", ".join((found.missing + found.unused)[:3])
        raise UserError(
            f"{encoder.name}: {len(found.missing)} weights missing, {len(found.unused)} unknown: {names} …",
            "fine-tune at the size of pre-training",
        )
    return model, found, tuple(name for name in model.state_dict() if name not in given)


def classifier_arguments(encoder: Encoder, size: int) -> dict[str, Any]:
    """What plain timm needs, beside name and classes, to build the classifier."""
    arguments = dict(encoder.arguments)
    if encoder.family == "vit":
        arguments |= pooling_arguments(encoder.name, fc_norm=True)
    if "img_size" in arguments:
        arguments["img_size"] = size
    return arguments


def classifier_name(model: Any) -> str:
    """Where timm keeps the last layer: `head`, `fc`, `head.fc` …

    Raises:
        UserError: it has several, as models made for distillation do.
    """
    layer = model.get_classifier()
    if not isinstance(layer, nn.Module):
        problem = f"timm's {type(model).__name__} has several last layers, and fine-tuning trains one"
        raise UserError(problem, "probe measures its features as they are; or take another backbone")
    return str(next(name for name, module in model.named_modules() if module is layer))


def head_names(model: nn.Module, family: str) -> tuple[str, ...]:
    """How the names of tensors begin that no source gives: the last layer, of a ViT its norm too."""
    own = (f"{classifier_name(model)}.",)
    return ("fc_norm.", "norm.", "attn_pool.", *own) if family == "vit" else own


def freeze_(model: nn.Module, family: str) -> None:
    """No gradients but for the head."""
    head = head_names(model, family)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(head))


def finetune_groups(model: Any, weight_decay: float, layer_decay: float) -> list[dict[str, object]]:
    """Parameter groups with each layer's learning-rate factor `layer_decay^(layers after it)`.

    No weight decay for vectors and for what the architecture itself exempts, such as the position embedding.
    """
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    scales = layer_scales(model, layer_decay) if layer_decay < 1 else {}
    overrides = {name: {"lr_scale": scale} for name, scale in scales.items()}
    for name in exempt:
        overrides[name] = {**overrides.get(name, {}), "weight_decay": 0.0}
    return parameter_groups(model, weight_decay, overrides)


def optimisation(
    model: nn.Module, config: FinetuneConfig, clock: Clock
) -> tuple[torch.optim.Optimizer, CosineSchedule]:
    """The optimizer with layer decay, and the schedule as the official code counts it."""
    groups = finetune_groups(model, config.optim.weight_decay, config.optim.layer_decay)
    return optimizer_and_schedule(
        groups,
        config.optim,
        config.schedule,
        config.run.batch_size,
        clock,
        min_lr_by_layer=config.schedule.min_lr_by_layer,
    )


def refuse_one_at_once(
    model: nn.Module, encoder: Encoder, config: FinetuneConfig, classes: int, device: torch.device
) -> None:
    """A UserError where one image at once is too few for the network's batch norms."""
    run, size = config.run, config.data.size
    if fewest_at_once(run.batch_size, run.micro_batch, run.devices) > 1:
        return
    mixing = Mixing(replace(config.augment, mix_probability=0.0), classes)
    labels = torch.zeros(1, dtype=torch.int64)
    classifier = Classifier(model, encoder, labels, mixing, frozen=config.model.freeze).to(device)
    one = {"image": torch.rand(1, 3, size, size, device=device), "index": labels.to(device)}
    clock = Clock(0, 1, 1, run.seed)
    refuse_one_value(
        classifier,
        one,
        clock,
        device,
        run.precision,
        cure_of_one(run.batch_size, run.devices),
    )


def predicted(
    classifier: Classifier,
    images: ImageSet,
    size: int,
    device: torch.device,
    precision: Precision,
    workers: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(probabilities float32 [B, C], positions int64 [B]) of the readable images, on the CPU, in order."""
    for views, _, index in evaluation_loader(images, CenterCrop(size), EVALUATION_BATCH, workers):
        with torch.inference_mode(), autocast(device, precision):
            logits = classifier.logits(to_device({"image": views}, device)["image"])
        yield logits.float().softmax(dim=1).cpu(), index


def evaluation_seconds(
    classifier: Classifier, images: ImageSet, config: FinetuneConfig, device: torch.device
) -> float:
    """What an image takes in `predicted`, from one batch."""
    few = images.subset(range(min(EVALUATION_BATCH, len(images))))
    classifier.eval()
    began = time.perf_counter()
    for _ in predicted(classifier, few, config.data.size, device, config.run.precision, workers=0):
        pass
    classifier.train()
    return (time.perf_counter() - began) / len(few)
