"""Results kept beside the run that they judge, and its page made anew.

Nothing here raises: the work is done by then, and what can't be written is a warning.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sslkit.core.console import Console
from sslkit.core.errors import UserError
from sslkit.core.files import write_json
from sslkit.core.paths import claim_folder, writable
from sslkit.evaluation.probe.result import ProbeResult
from sslkit.models.weights import is_finetuning
from sslkit.visualization.figures.probe_charts import write_result
from sslkit.visualization.report.report import write_report


def is_run(path: Path) -> bool:
    """Whether results belong there: a pre-training's folder has a report, a fine-tuning's has none."""
    return all((path / name).is_file() for name in ("run.json", "config.toml")) and not is_finetuning(path)


def write_page(run: Path, console: Console) -> None:
    """RUN/report.html."""
    try:
        write_report(run)
    except (UserError, OSError) as problem:
        console.warn(f"{run / 'report.html'} was not written: {problem}")


def keep_probe(result: ProbeResult, run: Path, console: Console) -> None:
    """A probe in its run's folder; where that can't be written, in a new one below the working folder."""
    pictures = run / "pictures"
    if writable(pictures if pictures.is_dir() else run) and writable(run):
        try:
            write_result(result, run, pictures)
            write_page(run, console)
        except UserError as problem:
            console.warn(problem.message)
        return
    try:
        instead = claim_folder(Path(), f"probe-{run.resolve().name}")
        write_result(result, instead)
        console.say(f"{run} can't be written: the result lies in {instead}")
    except UserError as problem:
        message = f"{run} can't be written, nor can the working folder: {problem.message}"
        console.warn(message, "--out names another place")


def add_to_report(run: Path, name: str, document: Mapping[str, Any], console: Console) -> None:
    """Keep the latest result of a verb as RUN/name.json, and make RUN/report.html anew."""
    if not is_run(run):
        return
    try:
        write_json(run / f"{name}.json", document)
    except OSError as problem:  # the result has a folder of its own
        reason = problem.strerror or problem
        console.warn(f"{run} can't be written ({reason}): its report says nothing of this {name}")
        return
    write_page(run, console)
