"""finetune: a classifier of labelled images that starts from a source's weights, scored once at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sslkit.core.config import build as configuration
from sslkit.core.config.setting import AUTO
from sslkit.core.console import SILENT, Console, command, nearby
from sslkit.core.device import pick_device, pick_precision
from sslkit.core.errors import UserError, nearest_path
from sslkit.core.paths import claim_folder, make_folder, next_folder, refuse_full
from sslkit.core.value_range import BYTES, Range
from sslkit.data.images.range_estimate import RangeEstimate
from sslkit.data.sources.image_set import ImageSet
from sslkit.data.sources.set_range import find_range
from sslkit.evaluation.probe.shots import MOST_SEEDS
from sslkit.finetuning.auto import USUAL_WARMUP, Facts, resolve
from sslkit.finetuning.classifier import build_model, refuse_one_at_once
from sslkit.finetuning.classifier_robustness import lacks_robustness, with_robustness
from sslkit.finetuning.comparison import COMPARISON_FILE, SCRATCH, Comparison, begin, compare_arms, read_arms
from sslkit.finetuning.config import FinetuneConfig, finetune_config, from_values
from sslkit.finetuning.result import FinetunePlan, FinetuneResult, announce_finetuning, write_beginning
from sslkit.finetuning.session import FinetuneSession
from sslkit.finetuning.splits import open_splits
from sslkit.models.encoder import Encoder
from sslkit.models.weights import load_encoder
from sslkit.training.pretrain.auto import interval
from sslkit.training.pretrain.intervals import refuse_longer_than_run
from sslkit.training.run import checkpoint
from sslkit.training.run.folder import ROOM, RUNS, RunFolder, begun, refuse_place
from sslkit.training.run.lock import locked


def finetune(
    source: str | None = None,
    data: str | None = None,
    *,
    config: str | Path | None = None,
    settings: Sequence[str] = (),
    baseline: str | None = None,
    seeds: Sequence[int] | None = None,
    resume: str | Path | None = None,
    console: Console = SILENT,
    **flags: Any,
) -> FinetuneResult | Comparison:
    """Train a classifier of `data`, starting from the weights of `source`.

    Args:
        source: a run, an exported folder, a .safetensors file, timm/NAME, or random/NAME (from scratch).
        data: class folders, `train/` and `val/` with class folders, a .csv with path,label, or fractal:N.
        config: a TOML file or a recipe's name.
        settings: "section.key=value" texts, as after --set.
        baseline: "scratch": the same budget from random weights as well, compared on the same images.
        seeds: repeat with each of these instead of one.
        resume: continue this run or comparison instead; nothing else is needed or allowed.
        flags: the words of finetune_config.FLAGS, e.g. `epochs=50, scratch=True`; None means not given.

    Returns:
        the result of the one run; with a baseline or several seeds the Comparison of all.

    Raises:
        UserError: what was asked for can't work; nothing was written.
        Interrupted: stopped by a signal, after saving.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    if resume is not None:
        if source or data or config or settings or baseline or seeds or given:
            raise UserError(
                "--resume goes alone: the run knows its own settings",
                command("sslkit", "finetune", "--resume", resume),
            )
        return _resumed(Path(resume), console)
    if not source or not data:
        raise UserError("finetune needs SOURCE and DATA", "sslkit finetune runs/mfm-…-1 labelled/")
    wanted = _anchored(
        finetune_config(source, data, None if config is None else str(config), settings, given)
    )
    refuse_place(wanted.run.out)
    if baseline or seeds:
        _refuse_comparison(wanted, baseline, seeds, "seed" in given)
        return _compared(wanted, bool(baseline), seeds or [wanted.run.seed], console)
    plan = make_finetune_plan(wanted, console)
    _refuse(plan, console)
    return _begun(plan, _new_folder(plan, wanted.run.out == AUTO), console)


def _refuse(plan: FinetunePlan, console: Console, runs: int = 1) -> None:
    """What a new run, or so many, can't do with these images and on this disk. Raises UserError."""
    refuse_longer_than_run(plan.config, len(plan.parts.training), USUAL_WARMUP, console)
    classes = len(plan.parts.training.classes)
    refuse_one_at_once(plan.model, plan.encoder, plan.config, classes, plan.device)
    # Checkpoints go when a run is complete; of several, the classifiers stay.
    weights = sum(tensor.nbytes for tensor in plan.model.state_dict().values())
    needed = checkpoint.bytes_needed(plan.model, plan.config.optim.name) + (runs - 1) * weights
    refuse_full(Path(plan.config.run.out), needed, "checkpoints and classifiers", ROOM)


def _new_folder(plan: FinetunePlan, chosen: bool) -> Path:
    """The folder that is made now; where its name was chosen here, the number may be another one by now."""
    path = Path(plan.config.run.out)
    return claim_folder(path.parent, path.name.rpartition("-")[0]) if chosen else make_folder(path)


def make_finetune_plan(wanted: FinetuneConfig, console: Console = SILENT) -> FinetunePlan:
    """Everything resolved, opened and built; nothing is written. Raises UserError."""
    device = pick_device(wanted.run.device)
    interval(wanted.run.save_every)
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
    given = Facts(len(parts.training), encoder.family, encoder.size, scratch, on_cpu, parameters, numbers)
    config, reasons = resolve(wanted, given)
    config = _placed(config, encoder, device)
    model, found, new = build_model(
        encoder,
        len(parts.training.classes),
        config.data.size,
        scratch=scratch,
        drop_path=config.model.drop_path,
        seed=config.run.seed,
    )
    return FinetunePlan(config, reasons, encoder, model, found, new, parts, device, scratch)


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
    return replace(
        config,
        run=replace(config.run, device=str(device), precision=precision, out=out),
        robustness=replace(config.robustness, attacks=attacks),
    )


def _anchored(config: FinetuneConfig) -> FinetuneConfig:
    """Source and data as absolute paths, so that the run can be resumed from anywhere."""

    def absolute(text: str) -> str:
        return str(Path(text).absolute()) if Path(text).exists() else text

    return replace(
        config,
        data=replace(config.data, source=absolute(config.data.source)),
        model=replace(config.model, source=absolute(config.model.source)),
    )


def _begun(plan: FinetunePlan, path: Path, console: Console, whole: Path | None = None) -> FinetuneResult:
    """A run from its first step, in its new folder."""
    run = RunFolder(path)
    plan = replace(plan, config=replace(plan.config, run=replace(plan.config.run, out=str(path))))
    with begun(run):
        write_beginning(plan, run)
    with _held(run.path, console, whole):
        session = FinetuneSession(plan, run, console, whole)
        announce_finetuning(plan, console)
        return with_robustness(session.go(), console)


def _resumed(path: Path, console: Console, whole: Path | None = None) -> FinetuneResult | Comparison:
    if (path / COMPARISON_FILE).is_file():
        return _continued(path, console)
    if not (path / "run.json").is_file() or not (path / "config.toml").is_file():
        cure = nearest_path(path, "give finetune's own folder")
        raise UserError(f"{path} is not a run: no run.json and config.toml there", cure)
    run = RunFolder(path)
    if run.facts.get("kind") != "finetune":
        raise UserError(f"{path} is not a fine-tuning", command("sslkit", "pretrain", "--resume", path))
    if run.facts.get("status") == "completed" and not lacks_robustness(path):
        raise UserError(
            f"{path} is already complete", "its figures are in run.json, its predictions in predictions.csv"
        )
    with _held(path, console, whole):
        if run.facts.get("status") == "completed":
            return with_robustness(FinetuneResult.of_document(run.facts["result"], path), console)
        values = configuration.read(str(path / "config.toml"))
        plan = make_finetune_plan(from_values({**values, "run.out": str(path)}), console)
        session = FinetuneSession(plan, run, console, whole)
        start = session.restore()
        run.update(status="running")
        console.say(f"resuming {path} at step {start} of {session.clock.steps}")
        return with_robustness(session.go(start), console)


@contextmanager
def _held(path: Path, console: Console, whole: Path | None = None) -> Iterator[None]:
    """The run's lock and log; what the disk refuses ends the run in one line."""
    try:
        with locked(path, console), console.copied_to(path / "log.txt"):
            yield
    except OSError as problem:
        cure = command("sslkit", "finetune", "--resume", whole or path)
        reason = problem.strerror or problem
        raise UserError(f"{problem.filename or path}: {reason}", f"make room, then: {cure}", code=1) from None


# ---------------------------------------------------------------------------------------- several runs


def _refuse_comparison(
    wanted: FinetuneConfig, baseline: str | None, seeds: Sequence[int] | None, seed_given: bool
) -> None:
    if baseline not in (None, "scratch"):
        raise UserError(
            f"--baseline {baseline}: scratch is the only one", "sslkit probe compares several sources"
        )
    if baseline and (wanted.model.scratch or wanted.model.source.startswith("random/")):
        raise UserError(
            "--baseline scratch compares with random weights, and so would the source be",
            "give a run or other weights as SOURCE, or leave out --baseline",
        )
    if seeds and seed_given:
        raise UserError("--seed and --seeds both say where randomness begins", "give one of them")
    if seeds and (len(set(seeds)) < len(seeds) or min(seeds) < 0 or len(seeds) > MOST_SEEDS):
        raise UserError(
            f"--seeds {','.join(map(str, seeds))}: different numbers of 0 or more expected",
            f"--seeds 0,1,2; at most {MOST_SEEDS}",
        )


def _compared(
    wanted: FinetuneConfig, baseline: bool, seeds: Sequence[int], console: Console
) -> FinetuneResult | Comparison:
    """All runs of a comparison, in one folder. The first is planned before anything is written."""
    first = make_finetune_plan(replace(wanted, run=replace(wanted.run, seed=seeds[0])), console)
    _refuse(first, console, len(seeds) * (2 if baseline else 1))
    path = _new_folder(first, wanted.run.out == AUTO)
    with begun(RunFolder(path)):
        begin(path, wanted, baseline, seeds)
    return _continued(path, console)


def _continued(path: Path, console: Console) -> Comparison:
    """Every run of a comparison that is not complete yet, then the comparison."""
    with _held(path, console):
        arms = read_arms(path)
        values = configuration.read(str(path / "config.toml"))
        for number, arm in enumerate(arms, 1):
            own = {"run.out": str(arm.folder), "run.seed": arm.seed, "model.scratch": arm.scratch}
            own |= {"robustness.measure": False}  # of all together, on the same images
            wanted = from_values({**values, **own})
            weights = SCRATCH if arm.scratch else nearby(wanted.model.source)
            console.say(f"{number} of {len(arms)}: {weights}, seed {arm.seed}")
            if arm.result() is not None:
                console.say(f"  complete in {arm.folder}")
            elif arm.begun():
                _resumed(arm.folder, console, path)
            else:
                _begun(make_finetune_plan(wanted, console), make_folder(arm.folder), console, path)
        return with_robustness(compare_arms(path, arms, console), console)
