"""What a fine-tuning begins with: settings without auto, its images, and its classifier with its weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sslkit.core.config.setting import AUTO
from sslkit.core.console import Console
from sslkit.core.device import pick_device, pick_precision
from sslkit.core.distributed import collectives
from sslkit.core.errors import UserError
from sslkit.core.paths import next_folder, refuse_full
from sslkit.core.value_range import BYTES, Range
from sslkit.data.images.range_estimate import RangeEstimate
from sslkit.data.sources.image_set import ImageSet
from sslkit.data.sources.set_range import find_range
from sslkit.finetuning.augmentation import Mixing, TrainingView
from sslkit.finetuning.auto import USUAL_WARMUP, Facts, resolve
from sslkit.finetuning.classifier import Classifier, build_model, optimisation, refuse_one_at_once
from sslkit.finetuning.config import FinetuneConfig
from sslkit.finetuning.splits import Splits, open_splits
from sslkit.models.encoder import Encoder
from sslkit.models.weights import Loaded, load_encoder
from sslkit.training.loop.acceleration import fitted, speed_up_
from sslkit.training.loop.intervals import refuse_longer_than_run, refuse_times
from sslkit.training.loop.job import Job, agreed, refuse_uneven
from sslkit.training.run import checkpoint
from sslkit.training.run.folder import ROOM, RUNS
from sslkit.training.run.loggers import require


@dataclass(frozen=True)
class FinetunePlan:
    """What will be done, and with what: everything that is known before the first step."""

    config: FinetuneConfig  # without auto
    reasons: dict[str, str]  # of what was auto
    encoder: Encoder
    classifier: Classifier  # with the encoder's weights, on the device
    found: Loaded
    new: tuple[str, ...]  # tensors that start afresh
    parts: Splits
    device: torch.device
    scratch: bool  # the source gave only its architecture


def prepare(wanted: FinetuneConfig, console: Console) -> FinetunePlan:
    """Everything resolved, opened and built; nothing is written. Raises UserError."""
    device = pick_device(wanted.run.device)
    refuse_times(wanted.run)
    require(wanted.run.loggers)
    parts = open_splits(wanted)
    if wanted.robustness.measure and len(parts.validation) < 2:
        raise UserError("--robust needs two validation images at least", "add images, or leave out --robust")
    size = None if wanted.data.size == AUTO else wanted.data.size
    encoder = load_encoder(wanted.model.source, size, wanted.run.seed, console=console)
    scratch = wanted.model.scratch or wanted.model.source.startswith("random/")
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    numbers = _range(wanted, encoder.range, parts.training)
    encoder.range, parts = numbers.range, parts.by(numbers.range)
    on_cpu = device.type == "cpu"
    wanted = replace(wanted, run=replace(wanted.run, devices=collectives.world_size()))
    given = Facts(len(parts.training), encoder.family, encoder.size, scratch, on_cpu, parameters, numbers)
    config, reasons = resolve(wanted, given)
    refuse_uneven(config.run)
    config = _placed(config, encoder, device)
    model, found, new = build_model(
        encoder,
        len(parts.training.classes),
        config.data.size,
        scratch=scratch,
        drop_path=config.model.drop_path,
        seed=config.run.seed,
    )
    classifier = Classifier(
        model,
        encoder,
        torch.tensor(parts.training.labels, dtype=torch.int64),
        Mixing(config.augment, len(parts.training.classes)),
        frozen=config.model.freeze,
        balance=config.data.balance,
        keep_best=config.run.keep == "best",
    ).to(device)
    speed_up_(model, encoder.family, config.run, device)
    plan = FinetunePlan(config, reasons, encoder, classifier, found, new, parts, device, scratch)
    if "run.micro_batch" not in reasons:
        return plan
    job = fitted(job_of(plan))
    return replace(plan, config=job.config, reasons=dict(job.reasons))


def job_of(plan: FinetunePlan) -> Job:
    """The training of the plan's classifier."""
    config, model = plan.config, plan.classifier.model
    return Job(
        config,
        plan.reasons,
        plan.classifier,
        plan.parts.training,
        TrainingView(config.data.size, config.augment),
        lambda clock: optimisation(model, config, clock),
        plan.device,
    )


def refuse(plan: FinetunePlan, console: Console, runs: int = 1) -> None:
    """What a new run, or so many, can't do with these images and on this disk. Raises UserError."""
    config, classes = plan.config, len(plan.parts.training.classes)
    refuse_longer_than_run(config, len(plan.parts.training), USUAL_WARMUP, console)
    refuse_one_at_once(plan.classifier.model, plan.encoder, config, classes, plan.device)
    # Checkpoints go when a run is complete; of several, the classifiers stay.
    needed = checkpoint.bytes_needed(plan.classifier, config.optim.name) + (runs - 1) * product_bytes(plan)
    refuse_full(Path(config.run.out), needed, "checkpoints and classifiers", ROOM)


def product_bytes(plan: FinetunePlan) -> int:
    """Of the classifier that a run leaves."""
    return sum(tensor.nbytes for tensor in plan.classifier.model.state_dict().values())


def _range(wanted: FinetuneConfig, known: Range, training: ImageSet) -> RangeEstimate:
    """The range of the images: as set, that of the source, or their own where it knows none."""
    data = wanted.data
    if data.range == AUTO and known != BYTES:
        nodata = known.nodata if data.nodata == AUTO else data.nodata
        return RangeEstimate(Range(known.limits, nodata), "the source's", "the source's")
    return find_range(training, data.range, data.nodata)


def _placed(config: FinetuneConfig, encoder: Encoder, device: torch.device) -> FinetuneConfig:
    """The machine's choices: device, precision, attacks, and a folder that does not exist yet."""
    out = config.run.out
    if out == AUTO:
        out = str(next_folder(RUNS, f"finetune-{encoder.name.split('.')[0]}"))
    precision = pick_precision(config.run.precision, device)
    attacks = device.type != "cpu" if config.robustness.attacks == AUTO else config.robustness.attacks
    run = agreed(replace(config.run, device=str(device), precision=precision, out=out))
    return replace(config, run=run, robustness=replace(config.robustness, attacks=attacks))
