"""report.html: one self-contained page about a run that a person would send to a colleague.

Pictures are inside the page, nothing is loaded from anywhere, and all that comes from a file is escaped.
A section is a function from `Page` to HTML; it returns "" where it has nothing to say, and is absent then.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from sslkit.core.config.build import PretrainConfig
from sslkit.core.console import SILENT, Console, counted
from sslkit.core.errors import UserError
from sslkit.core.files import replacing
from sslkit.methods import short_name
from sslkit.training.run.folder import RunFolder, read_configuration
from sslkit.version import __version__
from sslkit.visualization.figures.curves import curves, read_metrics
from sslkit.visualization.figures.reconstruction import HALVES
from sslkit.visualization.inputs import Inputs
from sslkit.visualization.report import results_section, run_section
from sslkit.visualization.report.html import anchor, drawn, paragraph, section, shown, stored
from sslkit.visualization.report.stored import FIGURES, read_result
from sslkit.visualization.visualize import KINDS, refusal

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What a browser may load: nothing from outside, even if something slipped through escaping."""
STYLE = Path(__file__).with_name("report.css")
MOST_PICTURES = 12
"""Pictures that the user made, shown; a folder may hold hundreds."""


@dataclass(frozen=True)
class Page:
    """What the sections are made from."""

    run: Path
    facts: dict[str, Any]  # run.json
    config: PretrainConfig
    results: dict[str, Any]  # "probe", "finetune": documents
    subject: Inputs

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        return read_metrics(self.run / "metrics.jsonl")

    @cached_property
    def width(self) -> int:
        """Of the features; 0 until the encoder is written."""
        try:
            return int(json.loads((self.run / "config.json").read_text(encoding="utf-8-sig"))["num_features"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0


def write_report(run: Path, extra: Mapping[str, Any] | None = None, console: Console = SILENT) -> Path:
    """Write RUN/report.html and return its path; an older one is replaced, by one rename.

    Unlike a picture, the page is a view of the run folder: what it showed is still there to be shown.

    Args:
        extra: results by name, "probe" and "finetune", as the documents of these verbs; what is not given is
            read from RUN/probe.json and RUN/finetune.json if they exist.

    Raises:
        UserError: not a run.
    """
    folder = RunFolder.open(Path(run))
    config = read_configuration(folder.path / "config.toml")
    known = {name: read_result(folder.path, name) for name in ("probe", "finetune")}
    results = {**known, **(extra or {})}
    page = Page(folder.path, folder.facts, config, results, Inputs(str(folder.path), console=console))
    path = folder.path / "report.html"
    with replacing(path) as unfinished:
        unfinished.write_text(_render(page), encoding="utf-8", errors="backslashreplace")
    return path


def _render(page: Page) -> str:
    """The whole page."""
    method = short_name(page.config.method_name)
    data = page.facts["data"]
    trained = f"{counted(data['count'], 'image')} of {data.get('name', '?')}"
    title = f"{method} on {page.config.model.backbone}, {trained}: {page.run.name}"
    parts = {name: section(name, write(page)) for name, write in SECTIONS.items()}
    links = "".join(f'<li><a href="#{anchor(n)}">{shown(n)}</a></li>' for n, part in parts.items() if part)
    about = f"An encoder, pre-trained without labels by {method} on {trained}."
    written = time.strftime("%Y-%m-%d %H:%M")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{shown(title)}</title>
<style>
{STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
<header>
<h1>{shown(page.run.name)}</h1>
{paragraph(about, "about")}
{_judged(page, "probe", results_section.headlines)}
{run_section.summary(page.run, page.facts, page.config)}
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main>
{"".join(parts.values())}
</main>
<footer>sslkit {shown(__version__)} · run of {shown(page.facts.get("started", "unknown date"))} ·
page of {written}</footer>
</body>
</html>
"""


def training(page: Page) -> str:
    """The curves, and what they say."""
    last = page.metrics[-1] if page.metrics else {}
    share = float(last.get("epoch") or 0) / page.config.schedule.epochs
    batch = page.config.run.batch_size // page.config.run.devices
    health = run_section.health(page.metrics, page.width, min(share, 1.0), batch)
    return health + (drawn(curves(page.metrics), KINDS["curves"].text) if share else "")


def on_the_way(page: Page) -> str:
    steps = [line for line in page.metrics if line.get("epoch")]
    per_epoch = steps[-1]["step"] / steps[-1]["epoch"] if steps else 0.0
    return run_section.over_time(page.run, page.config.data.size, _columns(page), per_epoch, _tasks(page))


def own_pictures(page: Page) -> str:
    """What `sslkit visualize` has drawn of this run, but for the kinds that the page draws itself."""
    here = {"curves", "spectrum", "masks", "recon" if page.subject.masks_frequencies else "panels"}
    files = [
        file
        for file in sorted((page.run / "pictures").glob("*.png"))
        if not file.stem.startswith(("step-", *results_section.RESULT_PICTURES, *FIGURES))
        and file.stem not in here
    ]
    texts = {
        file: KINDS[name].text if (name := file.stem.partition("-")[0]) in KINDS else file.stem
        for file in files[:MOST_PICTURES]
    }
    left = len(files) - MOST_PICTURES
    more = paragraph(f"{left} more in {page.run / 'pictures'}", "about") if left > 0 else ""
    return "".join(stored(file, f"{file.name}: {text}") for file, text in texts.items()) + more


SECTIONS: dict[str, Callable[[Page], str]] = {
    "Did it help? Frozen features": lambda page: _judged(
        page, "probe", partial(results_section.probe_section, run=page.run)
    ),
    "Fine-tuned": lambda page: _judged(
        page, "finetune", partial(results_section.finetune_section, run=page.run)
    ),
    "Robustness": lambda page: _judged(
        page, "probe", lambda document: results_section.robustness_section(document.get("robustness"))
    ),
    "Training": training,
    "What it predicts": lambda page: _picture(page, "recon"),
    "What it does to images": lambda page: _picture(page, "panels", masking=False),
    "On the way": on_the_way,
    "What it is given, in space and in frequency": lambda page: _picture(page, "spectrum"),
    "Masks": lambda page: _picture(page, "masks"),
    "More pictures": own_pictures,
    "Speed": lambda page: run_section.speed(page.metrics, page.facts, page.config.run.batch_size),
    "Settings": lambda page: run_section.settings_section(page.config),
    "Commands": lambda page: run_section.commands(page.run, page.facts),
    "Files and versions": lambda page: run_section.files(page.run, page.facts),
}


def _judged(page: Page, name: str, write: Callable[[Mapping[str, Any]], str]) -> str:
    """A result's part of the page; a document of another form is named instead."""
    document = page.results.get(name)
    if not document:
        return ""
    try:
        return write(document)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return paragraph(f"{name}.json is not as this version of sslkit writes it, and not shown.", "about")


def _picture(page: Page, kind: str, masking: bool = True) -> str:
    """One of `KINDS`, for methods that mask frequencies or for others; where it can't be drawn, why not."""
    if page.subject.masks_frequencies != masking:
        return ""
    facts = KINDS[kind]
    try:
        if problem := refusal(kind, page.subject):
            raise problem
        return drawn(facts.draw(page.subject), facts.text)
    except UserError as problem:
        return paragraph(f"Not drawn: {problem.message}", "about")


def _tasks(page: Page) -> dict[int, str]:
    """Half of a picture made on the way → MFM's task that it shows, of those that the run was trained for."""
    method = page.config.method
    if not page.subject.masks_frequencies or getattr(method, "corruption", "frequency") != "frequency":
        return {}
    untrained = {0.0: 0, 1.0: 1}.get(getattr(method, "low_share", 0.5))
    return {half: task for half, task in enumerate(HALVES) if half != untrained}


def _columns(page: Page) -> list[str]:
    """Names of the pictures in a row of those made on the way; none where the method can't be asked."""
    try:
        return list(page.subject.panels(page.subject.pictures[:1]))
    except UserError:
        return []
