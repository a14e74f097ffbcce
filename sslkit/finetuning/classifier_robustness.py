"""How robust fine-tuned classifiers are: all on the same changed validation images, averaged over the seeds.

OUT/robustness.json    what was found; a run that was stopped before it is resumed there
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sslkit.core.config import build as configuration
from sslkit.core.console import Console, command, nearby
from sslkit.core.device import pick_device, pick_precision
from sslkit.core.errors import UserError
from sslkit.core.files import write_json
from sslkit.core.value_range import as_set
from sslkit.data.sources.labels import open_labelled
from sslkit.evaluation.metrics.significance import against_random
from sslkit.evaluation.probe.table import robust_lines
from sslkit.evaluation.robustness.measure import LEFT_OUT, read_labelled, robustness
from sslkit.evaluation.robustness.robustness_result import (
    EPSILONS,
    RobustnessResult,
    against,
    make_robustness_plan,
    mean_row,
    show_robustness,
)
from sslkit.finetuning.classifier_files import OpenedClassifier
from sslkit.finetuning.comparison import SCRATCH, Comparison
from sslkit.finetuning.config import FinetuneConfig, from_values
from sslkit.finetuning.result import FinetuneResult

FILE = "robustness.json"


def with_robustness(found: FinetuneResult | Comparison, console: Console) -> FinetuneResult | Comparison:
    """The result with what its config.toml asks for: measured once, then read from its file."""
    if not _settings(found.folder).robustness.measure:
        return found
    result: RobustnessResult = _stored(found.folder / FILE) or _measured(found, console)
    show_robustness(result, console)
    if isinstance(found, Comparison):
        with (found.folder / "table.md").open("a", encoding="utf-8") as table:
            table.write("\n".join(["", "## Robustness", "", *robust_lines(result), ""]))
    for row in result.rows:
        if row.difference is not None:
            console.say(against_random("top-1 on corrupted images", row.difference))
    return replace(found, robustness=result)


def _measured(found: FinetuneResult | Comparison, console: Console) -> RobustnessResult:
    """Measured, and written to its file."""
    name = nearby(found.source)
    folders = {name: [one.folder for one in found.runs]}
    if isinstance(found, Comparison) and found.baseline:
        folders = {name: [one.folder for one in found.pretrained]}
        folders[SCRATCH] = [one.folder for one in found.baseline]
    try:
        result = measure_classifiers(folders, _settings(found.runs[0].folder), console)
    except KeyboardInterrupt:
        cure = command("sslkit", "finetune", "--resume", found.folder)
        console.say(f"stopped; the classifiers are complete, their robustness is measured by: {cure}")
        raise
    write_json(found.folder / FILE, result.to_document())
    return result


def lacks_robustness(folder: Path) -> bool:
    """Whether a run that is complete was stopped before its robustness was."""
    return _settings(folder).robustness.measure and not (folder / FILE).is_file()


def measure_classifiers(
    folders: Mapping[str, Sequence[Path]], wanted: FinetuneConfig, console: Console
) -> RobustnessResult:
    """Every name's classifiers, one a seed, on the same images; a row of means for each name.

    Args:
        folders: of as many classifiers for each name. Errors are relative to those of `SCRATCH`.
        wanted: a run's settings, without auto.
    """
    settings, run = wanted.robustness, wanted.run
    device = pick_device(run.device)
    _, validation = open_labelled(wanted.data.source, wanted.data.split_seed)
    validation = replace(validation, range=as_set(wanted.data))
    classifiers = {
        f"{name}, {place}": OpenedClassifier(folder).to(device)
        for name, own in folders.items()
        for place, folder in enumerate(own)
    }
    side = next(iter(classifiers.values())).size
    images = read_labelled(validation, side, settings.limit, wanted.data.workers, console)
    if not settings.attacks:
        console.say(LEFT_OUT)
    plan = make_robustness_plan(side, epsilons=EPSILONS if settings.attacks else ())
    precision = pick_precision(run.precision, device)
    found = robustness(
        list(classifiers.items()), images, plan, device=device, precision=precision, console=console
    )
    singles = iter(found.rows)
    rows = {name: mean_row(name, [next(singles) for _ in own]) for name, own in folders.items()}
    if SCRATCH in rows:
        rows = {name: against(row, rows[SCRATCH]) for name, row in rows.items()}
    return replace(
        found,
        rows=tuple(rows.values()),
        seeds=len(next(iter(folders.values()))),
    )


def _settings(folder: Path) -> FinetuneConfig:
    return from_values(configuration.read(str(folder / "config.toml")))


def _stored(file: Path) -> RobustnessResult | None:
    """What an earlier call has measured. Raises UserError for a damaged file."""
    try:
        return RobustnessResult.of_document(json.loads(file.read_text(encoding="utf-8-sig")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise UserError(f"{file} can't be read: {problem!r}", "delete it, and resume again") from None
