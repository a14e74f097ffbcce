"""finetune: a classifier of labelled images that starts from a source's weights, scored once at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from sslkit.core.config import build as configuration
from sslkit.core.config.setting import AUTO
from sslkit.core.console import SILENT, Console, command, nearby
from sslkit.core.device import pick_device
from sslkit.core.distributed import collectives, environment, processes
from sslkit.core.errors import UserError, nearest_path
from sslkit.core.paths import claim_folder, make_folder
from sslkit.evaluation.probe.shots import MOST_SEEDS
from sslkit.finetuning.classifier import evaluation_seconds
from sslkit.finetuning.classifier_robustness import lacks_robustness, with_robustness
from sslkit.finetuning.comparison import (
    COMPARISON_FILE,
    SCRATCH,
    Arm,
    Comparison,
    begin,
    compare_arms,
    read_arms,
)
from sslkit.finetuning.config import FinetuneConfig, finetune_config, from_values
from sslkit.finetuning.prepare import FinetunePlan, job_of, prepare, product_bytes, refuse
from sslkit.finetuning.result import FinetuneResult, announce_finetuning, image_facts, write_beginning
from sslkit.finetuning.session import FinetuneSession
from sslkit.training.loop.launch import launch
from sslkit.training.loop.rates import DryRun
from sslkit.training.loop.throughput import refuse_devices, time_run
from sslkit.training.run.folder import RunFolder, begun, refuse_place
from sslkit.training.run.lock import held
from sslkit.training.run.resume_check import newest_state, settings_of


class Request(NamedTuple):
    """What was asked for: one run, or a comparison of several."""

    config: FinetuneConfig
    baseline: bool = False
    seeds: tuple[int, ...] = ()  # of a comparison

    @property
    def runs(self) -> int:
        return max(1, len(self.seeds)) * (2 if self.baseline else 1)


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
        resume: continue this run or comparison instead; nothing else is needed, only `devices` is allowed.
        flags: the words of finetune_config.FLAGS, e.g. `epochs=50, scratch=True`; None means not given.

    Returns:
        the result of the one run; with a baseline or several seeds the Comparison of all.

    Raises:
        UserError: what was asked for can't work; nothing was written.
        Interrupted: stopped by a signal, after saving.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    if resume is not None:
        devices = given.pop("devices", None)
        if source or data or config or settings or baseline or seeds or given:
            raise UserError(
                "--resume goes alone: the run knows its own settings",
                command("sslkit", "finetune", "--resume", resume),
            )
        return _robust(_resume(Path(resume), console, devices), console)
    asked = _request(source, data, config, settings, baseline, seeds, given)
    if asked.config.run.devices > 1 and not environment.placed():
        sent = (settings_of(asked.config), asked.baseline, asked.seeds, console.choice)
        return _robust(launch(_begin_here, sent, asked.config.run.devices, "finetune"), console)
    return _robust(_begin(asked, console), console)


def dry_run(
    source: str | None = None,
    data: str | None = None,
    *,
    config: str | Path | None = None,
    settings: Sequence[str] = (),
    baseline: str | None = None,
    seeds: Sequence[int] | None = None,
    console: Console = SILENT,
    **flags: Any,
) -> DryRun:
    """What `finetune` with the same words would take, from a few timed steps; writes nothing."""
    given = {name: value for name, value in flags.items() if value is not None}
    asked = _request(source, data, config, settings, baseline, seeds, given)
    refuse_devices(asked.config.run)
    refuse_place(asked.config.run.out)
    plan = prepare(_arm_config(asked), console)
    refuse(plan, console, asked.runs)
    announce_finetuning(plan, console)
    epochs, parts = plan.config.schedule.epochs, plan.parts
    looks = len(parts.validation) + epochs * len(parts.held_out or ())
    seconds = looks * evaluation_seconds(plan.classifier, parts.validation, plan.config, plan.device)
    return time_run(job_of(plan), console, product_bytes(plan), asked.runs, seconds)


def _request(
    source: str | None,
    data: str | None,
    config: str | Path | None,
    settings: Sequence[str],
    baseline: str | None,
    seeds: Sequence[int] | None,
    given: dict[str, Any],
) -> Request:
    """The words of `finetune`, checked."""
    if not source or not data:
        raise UserError("finetune needs SOURCE and DATA", "sslkit finetune runs/mfm-…-1 labelled/")
    name = None if config is None else str(config)
    wanted = _anchored(finetune_config(source, data, name, settings, given))
    if not (baseline or seeds):
        return Request(wanted)
    _refuse_comparison(wanted, baseline, seeds, "seed" in given)
    return Request(wanted, bool(baseline), tuple(seeds or [wanted.run.seed]))


def _arm_config(asked: Request) -> FinetuneConfig:
    """The configuration of the one run, or of a comparison's first."""
    run = asked.config.run
    return replace(asked.config, run=replace(run, seed=asked.seeds[0] if asked.seeds else run.seed))


# --------------------------------------------------------------------------------------------- one run


def _begin(asked: Request, console: Console) -> FinetuneResult | Comparison:
    """From nothing to the scores, in this process or as one of several."""
    with _joined(asked.config):
        processes.run_on_first(lambda: refuse_place(asked.config.run.out))
        plan = prepare(_arm_config(asked), console)
        processes.run_on_first(lambda: refuse(plan, console, asked.runs))
        path = processes.run_on_first(lambda: _new_folder(plan, asked))
        return _continued(path, console) if asked.seeds else _begun(plan, path, console)


def _begin_here(
    values: dict[str, Any], baseline: bool, seeds: tuple[int, ...], choice: tuple[bool, bool]
) -> FinetuneResult | Comparison:
    """`_begin` in a process of its own, with what can be sent there."""
    return _begin(Request(from_values(values), baseline, seeds), Console(*choice))


def _new_folder(plan: FinetunePlan, asked: Request) -> Path:
    """The folder that is made now; where its name was chosen here, the number may be another one by now."""
    path, chosen = Path(plan.config.run.out), asked.config.run.out == AUTO
    path = claim_folder(path.parent, path.name.rpartition("-")[0]) if chosen else make_folder(path)
    if asked.seeds:
        with begun(RunFolder(path)):
            begin(path, asked.config, asked.baseline, asked.seeds)
    return path


def _begun(plan: FinetunePlan, path: Path, console: Console, whole: Path | None = None) -> FinetuneResult:
    """A run from its first step, in its new folder."""
    run = RunFolder(path, writes=collectives.rank() == 0)
    plan = replace(plan, config=replace(plan.config, run=replace(plan.config.run, out=str(path))))

    def write() -> None:
        with begun(run):
            write_beginning(plan, run)

    processes.run_on_first(write)
    with _held(path, console, whole):
        session = FinetuneSession(plan, run, console, whole)
        announce_finetuning(plan, console)
        return session.train(0)


def _resume(path: Path, console: Console, devices: int | None) -> FinetuneResult | Comparison:
    """What of a run or a comparison is missing, in this process or in several."""
    several = (path / COMPARISON_FILE).is_file()
    if not several:
        facts = _open(path).facts
        if facts.get("status") == "completed":
            return FinetuneResult.of_document(facts["result"], path)
    config = from_values(configuration.read(str(path / "config.toml")))
    count = devices or config.run.devices
    if count > 1 and not environment.placed():
        found: FinetuneResult | Comparison = launch(
            _resume_here, (str(path), console.choice), count, "finetune"
        )
        return found
    with _joined(config):
        return _continued(path, console) if several else _resumed(path, console)


def _resume_here(path: str, choice: tuple[bool, bool]) -> FinetuneResult | Comparison:
    """`_resume` in a process of its own, with what can be sent there."""
    return _resume(Path(path), Console(*choice), None)


def _open(path: Path) -> RunFolder:
    """A fine-tuning of which something is missing. Raises UserError: it is none, or complete."""
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
    return run


def _resumed(path: Path, console: Console, whole: Path | None = None) -> FinetuneResult:
    """A run from its newest checkpoint on."""
    run = RunFolder(path, writes=collectives.rank() == 0)
    with _held(path, console, whole):
        before = from_values(configuration.read(str(path / "config.toml")))
        plan = prepare(replace(before, run=replace(before.run, out=str(path))), console)
        then = run.facts.get("data", {}).get("fingerprint"), run.facts.get("validation")
        if then != (plan.parts.training.fingerprint, image_facts(plan.parts.validation)):
            raise UserError(f"the images have changed since {path} began", "restore them, or begin anew")
        session = FinetuneSession(plan, run, console, whole)
        start = session.restore(*newest_state(run, before, console))
        if start > session.clock.steps:
            problem = f"{path} is at step {start} of now only {session.clock.steps}"
            raise UserError(problem, "more schedule.epochs")
        run.forget_after(start)
        run.update(status="running")
        console.say(f"resuming {path} at step {start} of {session.clock.steps}")
        return session.train(start)


def _robust(found: FinetuneResult | Comparison, console: Console) -> FinetuneResult | Comparison:
    """The result with its robustness, if that was asked for: work of one process, the others have ended."""
    if environment.number() > 0:
        return found
    with _held(found.folder, console):
        return with_robustness(found, console)


@contextmanager
def _joined(config: FinetuneConfig) -> Iterator[None]:
    """Together with the other processes inside, if this one was started as one of several."""
    device = pick_device(config.run.device)
    with processes.joined(device, config.run.patience), processes.watched(lambda: 0):
        yield


@contextmanager
def _held(path: Path, console: Console, whole: Path | None = None) -> Iterator[None]:
    """The run's lock and log, for the process that writes."""
    if environment.number() > 0:
        yield
        return
    with held(path, console, f"make room, then: {command('sslkit', 'finetune', '--resume', whole or path)}"):
        yield


def _anchored(config: FinetuneConfig) -> FinetuneConfig:
    """Source and data as absolute paths, so that the run can be resumed from anywhere."""

    def absolute(text: str) -> str:
        return str(Path(text).absolute()) if Path(text).exists() else text

    return replace(
        config,
        data=replace(config.data, source=absolute(config.data.source)),
        model=replace(config.model, source=absolute(config.model.source)),
    )


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
            _complete(arm, wanted, path, console)
        return processes.run_on_first(lambda: compare_arms(path, arms, console))


def _complete(arm: Arm, wanted: FinetuneConfig, whole: Path, console: Console) -> None:
    """One run of a comparison, as far as it is missing."""
    complete, begun = processes.run_on_first(lambda: (arm.result() is not None, arm.begun()))
    if complete:
        console.say(f"  complete in {arm.folder}")
    elif begun:
        _resumed(arm.folder, console, whole)
    else:
        plan = prepare(wanted, console)
        _begun(plan, processes.run_on_first(lambda: make_folder(arm.folder)), console, whole)
