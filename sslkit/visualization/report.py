"""report.html: one self-contained page about a run that a person would send to a colleague.

Pictures are inside the page, nothing is loaded from anywhere, and all that comes from a file is escaped.
A section is a function from `Page` to HTML; it returns "" where it has nothing to say.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import sslkit
from sslkit.config import PretrainConfig, flat
from sslkit.console import SILENT, Console
from sslkit.errors import UserError
from sslkit.methods import card, short_name
from sslkit.training.run import RunFolder, read_configuration
from sslkit.visualization.subject import Subject
from sslkit.visualization.visualize import KINDS, refusal

DPI = 110  # of pictures inside the page: sharp at its width, half the bytes of the files' 150

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What a browser may load: nothing from outside, even if something slipped through escaping."""
STYLE = Path(__file__).with_name("report.css")


@dataclass(frozen=True)
class Page:
    """What the sections draw on."""

    run: Path
    facts: dict[str, Any]  # run.json
    config: PretrainConfig
    results: dict[str, Any]  # "probe", "finetune": documents
    subject: Subject


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
    results = {**_stored(folder.path), **(extra or {})}
    page = Page(folder.path, folder.facts, config, results, Subject(str(folder.path), console=console))
    path, unfinished = folder.path / "report.html", folder.path / f".report.html.{os.getpid()}"
    unfinished.write_text(render(page), encoding="utf-8", errors="backslashreplace")
    return unfinished.replace(path)


def render(page: Page) -> str:
    """The whole page."""
    title = f"{short_name(page.config.method_name)} on {page.config.model.backbone}: {page.run.name}"
    body = "\n".join(section(page) for section in SECTIONS)
    began = escape(str(page.facts.get("started", "unknown date")))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title>
<style>
{STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
{body}
<footer>sslkit {escape(sslkit.__version__)} · run of {began}</footer>
</body>
</html>
"""


def summary(page: Page) -> str:
    """What was trained on what."""
    config, data = page.config, page.facts["data"]
    about = card(config.method_name)
    paper = about.facts
    rows = {
        "Status": page.facts.get("status", "unknown"),
        "Method": f"{short_name(config.method_name)}: {about.summary}",
        "Paper": f"{paper.get('paper', '')} ({paper.get('year', '')}), {paper.get('link', '')}",
        "Backbone": f"{config.model.backbone}, {config.data.size} px",
        "Images": f"{data['count']:,} from {data['name']}, short side {data['native']} px",
        "Schedule": f"{config.schedule.epochs} epochs, batch {config.run.batch_size}, seed {config.run.seed}",
        "Device": f"{page.facts.get('device', '')}, {config.run.precision}",
        "Versions": ", ".join(
            f"{name} {version}" for name, version in page.facts.get("versions", {}).items()
        ),
    }
    settings = {name: str(value) for name, value in flat(config).items()}
    name = escape(short_name(config.method_name))
    return (
        f"<h1>{escape(page.run.name)}</h1>"
        f'<p class="about">An encoder pre-trained without labels by {name}.</p>'
        f"{_facts(rows)}<details><summary>All settings</summary>{_facts(settings)}</details>"
    )


def probe(page: Page) -> str:
    """Accuracy of frozen features beside the baselines, and the verdict."""
    document = page.results.get("probe")
    if not document:
        return ""
    counts = document.get("counts", {})
    sentences = [verdict["sentence"] for verdict in document.get("verdicts", [])]
    rows = [
        [
            row["name"],
            _with_margin(row["knn"], row.get("knn_interval")),
            _with_margin(row["linear"], row.get("linear_interval")),
        ]
        for row in document.get("rows", [])
    ]
    measured = (
        f"{document.get('data', '')}: {counts.get('train', '?')} training images, "
        f"{counts.get('validation', '?')} validation images, {counts.get('classes', '?')} classes. "
        "Top-1 in percent with 95 % intervals."
    )
    verdicts = "".join(f'<p class="verdict">{escape(sentence)}</p>' for sentence in sentences)
    table = _table(["Features", f"kNN, k = {document.get('k', 20)}", "Linear"], rows)
    return _section(
        "Did it help? Frozen features", f'{verdicts}{table}<p class="about">{escape(measured)}</p>'
    )


def finetune(page: Page) -> str:
    """The single figures of a fine-tuning; its tables and lists stay in its own folder."""
    document = page.results.get("finetune") or {}
    rows = {
        name: f"{value:.4g}" if isinstance(value, float) else str(value)
        for name, value in document.items()
        if isinstance(value, str | int | float)
    }
    return _section("Fine-tuned", _facts(rows)) if rows else ""


FREQUENCIES = {
    "recon": "What it predicts",
    "spectrum": "What it is given, in space and in frequency",
    "masks": "Masks",
}


def pictures(page: Page) -> str:
    """Every kind of picture that suits the method, but the views; one that can't be drawn says why."""
    own = FREQUENCIES if page.subject.masks_frequencies else {"panels": "What it does to images"}
    titles = {"curves": "Training", **own}
    return "".join(_section(title, _picture(page.subject, kind)) for kind, title in titles.items())


def commands(page: Page) -> str:
    """How to do it again, and what to do next."""
    run = shlex.quote(str(page.run))
    began = page.facts.get("command", "")
    config = shlex.quote(str(page.run / "config.toml"))
    lines = [
        *([f"# how this run was started\n{began}\n"] if began else []),
        f"# the same again, with every setting as it was resolved\nsslkit pretrain -c {config}\n",
        f"# frozen features, beside random weights and raw pixels\nsslkit probe {run} LABELLED_IMAGES\n",
        f"# a classifier, starting from this encoder\nsslkit finetune {run} LABELLED_IMAGES\n",
        f"# a folder that timm opens\nsslkit export {run}\n",
        f"# these pictures, as files, of your own images\nsslkit visualize {run} IMAGES",
    ]
    return _section("Commands", f"<pre>{escape(chr(10).join(lines))}</pre>")


SECTIONS = (summary, probe, finetune, pictures, commands)


def _stored(run: Path) -> dict[str, Any]:
    """Results that lie in the run folder."""
    found = {}
    for file in (run / f"{name}.json" for name in ("probe", "finetune")):
        try:
            found[file.stem] = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as problem:
            raise UserError(f"{file} can't be read: {problem}", "delete it, or probe again") from None
    return found


def _picture(subject: Subject, kind: str) -> str:
    facts = KINDS[kind]
    try:
        if problem := refusal(kind, subject):
            raise problem
        figure = facts.draw(subject)
    except UserError as problem:
        return f'<p class="about">Not drawn: {escape(problem.message)}</p>'
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, format="png")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    text = escape(facts.text)
    source = f"data:image/png;base64,{data}"
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _facts(rows: Mapping[str, Any]) -> str:
    cells = "".join(f"<tr><th>{escape(str(k))}</th><td>{escape(str(v))}</td></tr>" for k, v in rows.items())
    return f'<table class="facts">{cells}</table>'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table class="figures"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _with_margin(value: float, margin: float | None) -> str:
    return f"{value:.1f}" if margin is None else f"{value:.1f} ± {margin:.1f}"
