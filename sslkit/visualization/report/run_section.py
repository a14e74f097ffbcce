"""Report sections about the run: data, method, settings, health, speed, commands, files."""

from __future__ import annotations

import json
import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from PIL import Image

from sslkit.core.config import build as configuration
from sslkit.core.config.build import PretrainConfig, flat
from sslkit.core.config.setting import AUTO
from sslkit.core.console import counted
from sslkit.core.files import text_of
from sslkit.methods import card, short_name, usual_settings
from sslkit.training.loop.health import ROWS as EMBEDDINGS
from sslkit.training.loop.health import advice
from sslkit.visualization.report.html import code, details, facts, paragraph, picture, table

Line = Mapping[str, Any]

_ROWS = 4  # images of a picture made while training that are shown
STEPS = 6  # such pictures that are shown
LOSSES = {
    "loss": "Loss",
    "loss_low": "Loss, low frequencies predicted",
    "loss_high": "Loss, high frequencies predicted",
}
_FILES = {
    "encoder.safetensors": "the encoder, in timm's names",
    "config.json": "with it, timm opens the folder",
    "config.toml": "every setting, with its meaning",
    "run.json": "what this run was",
    "metrics.jsonl": "the figures of the curves",
    "log.txt": "what was printed",
    "skipped.tsv": "images that could not be read",
    "nonfinite.jsonl": "steps whose loss or gradient was not finite",
    "probe.json": "the probe, for programs",
    "table.md": "the probe, as Markdown",
    "finetune.json": "the fine-tuning, for programs",
    "checkpoints": "to go on from",
    "pictures": "reconstructions, and what visualize drew",
    "tensorboard": "the figures, for TensorBoard",
    "wandb": "the figures, for Weights & Biases",
}


def summary(run: Path, about: Mapping[str, Any], config: PretrainConfig) -> str:
    """What was trained on what, and how it ended."""
    data, method = about["data"], card(config.method_name)
    paper = method.facts
    unread = len(text_of(run / "skipped.tsv").splitlines())
    schedule = counted(config.schedule.epochs, "epoch")
    if config.run.max_time:
        schedule = f"as many steps as fit into {config.run.max_time}"
    rows = {
        "Status": f"{about.get('status', 'unknown')}, {counted(about.get('step', 0), 'step')}",
        "Method": f"{short_name(config.method_name)}: {method.summary}",
        "Paper": f"{paper.get('paper', '')} ({paper.get('year', '')}), {paper.get('link', '')}",
        "Backbone": f"{config.model.backbone}, {config.data.size} px"
        + (f", started from {config.model.init}" if config.model.init else ", started from random weights"),
        "Images": f"{data['count']:,} from {data.get('name', '?')}, short side {data['native']} px"
        + (f", {unread} could not be read" if unread else ", all could be read"),
        "Schedule": f"{schedule}, batch {config.run.batch_size}, seed {config.run.seed}",
        "Device": f"{about.get('device', '')}, {config.run.precision}",
        "Time": _time(about),
    }
    if not paper.get("paper"):
        del rows["Paper"]
    return facts({name: value for name, value in rows.items() if value})


def health(metrics: Sequence[Line], width: int, share: float, batch: int) -> str:
    """What the curves say, in words.

    Args:
        width: of the features; 0: not known.
        share: of the training that is done.
        batch: images of a step.
    """
    losses = [_loss(metrics, name, title) for name, title in LOSSES.items()]
    rows = [*losses, *_features(metrics, width, share, batch), *_steps(metrics)]
    return table("What the curves say", ["", "Found", "Meaning"], [row for row in rows if row], "words")


def speed(metrics: Sequence[Line], about: Mapping[str, Any], batch: int) -> str:
    """Images per second, and what the rest of the time went into."""
    rows = {"Images seen": f"{about.get('step', 0) * batch:,}", "Time": _time(about)}
    if rates := _values(metrics, "images_per_s"):
        rows["Images per second"] = f"{statistics.median(rates):,.0f} (median of the log intervals)"
    for name, title in (("wait", "Waiting for images"), ("saving", "Saving")):
        if shares := _values(metrics, name):
            rows[title] = f"{100 * sum(shares) / len(shares):.1f} % of the time"
    if sum(_values(metrics, "wait")) > 0.2 * max(len(_values(metrics, "wait")), 1):
        rows["Waiting for images"] += ": more --workers, or sslkit pack --size, would make it faster"
    return facts({name: value for name, value in rows.items() if value}) if metrics else ""


def over_time(
    run: Path, size: int, columns: Sequence[str], per_epoch: float, tasks: Mapping[int, str] | None = None
) -> str:
    """The pictures made while training, from the first to the last.

    Args:
        columns: names of the pictures in a row, from left to right; none: not known.
        tasks: half of a picture's rows (0: the upper one) → what it shows, where the halves differ.
    """
    files = {file.stem.removeprefix("step-"): file for file in sorted(run.glob("pictures/step-*.png"))}
    steps = [step for step in files if step.isdecimal()]
    chosen = dict.fromkeys(steps[round(i * (len(steps) - 1) / (STEPS - 1))] for i in range(STEPS) if steps)
    made = ", ".join(columns).replace("_", " ")
    shown = []
    for step in chosen:
        try:
            with Image.open(files[step]) as image:
                part = _rows(image, size, tuple(tasks or ()))
                scale = max(1, 384 // part.width)
                part = part.resize((scale * part.width, scale * part.height), Image.Resampling.NEAREST)
        except (OSError, ValueError):
            continue
        epoch = f", epoch {int(step) / per_epoch:.1f}" if per_epoch else ""
        shown.append(picture(part, f"Step {int(step)}{epoch}" + (f": {made}" if made else "")))
    where = ("Every row: ",) if tasks and len(tasks) == 1 else ("Upper rows: ", "lower rows: ")
    text = "; ".join(place + task for place, task in zip(where, (tasks or {}).values(), strict=False))
    about = paragraph(f"{text}.", "about") if text else ""
    return f'{about}<div class="grid">{"".join(shown)}</div>' if shown else ""


def _rows(image: Image.Image, size: int, halves: Sequence[int]) -> Image.Image:
    """The first rows of a picture made while training, as many of each of these halves; none: of all rows."""
    rows = image.height // size
    each = max(1, min(_ROWS, rows) // max(1, len(halves)))
    starts = [top for half in halves if (top := half * ((rows + 1) // 2) * size) < image.height] or [0]
    part = Image.new("RGB", (image.width, len(starts) * each * size))
    for place, top in enumerate(starts):
        part.paste(image.crop((0, top, image.width, top + each * size)), (0, place * each * size))
    return part


def settings_section(config: PretrainConfig) -> str:
    """What differs from the defaults; and, folded, everything."""
    before, now = usual_settings(config), flat(config)
    different = [
        [key, _text(value), _text(before[key])]
        for key, value in now.items()
        if before.get(key) not in (AUTO, value) and key not in ("data.sources", "run.out")
    ]
    everything = [
        [key, _text(value), "auto" if before.get(key) == AUTO else "", meta["help"]]
        for name in ("method", *configuration.SECTIONS)
        for key, value, meta in configuration.settings(getattr(config, name), name)
    ]
    text = "Every setting is the default of the method, or was chosen for the images and the machine."
    first = table(
        "Settings that differ from the defaults", ["Setting", "Here", "Default"], different, "words"
    )
    header = ["Setting", "Here", "Default", "Meaning"]
    caption = "All settings; auto: chosen for the images and the machine, or given"
    return (first or paragraph(text)) + details("All settings", table(caption, header, everything, "words"))


def commands(run: Path, about: Mapping[str, Any]) -> str:
    """How to do it again, and what to do next."""
    here = shlex.quote(str(run))
    began = about.get("command", "")
    lines = [
        *(["# how this run was started", str(began), ""] if began else []),
        "# the same again, with every setting as it was resolved",
        f"sslkit pretrain -c {shlex.quote(str(run / 'config.toml'))}",
        "",
        "# frozen features, beside random weights and raw pixels",
        f"sslkit probe {here} LABELLED_IMAGES",
        "",
        "# a classifier, starting from this encoder",
        f"sslkit finetune {here} LABELLED_IMAGES",
        "",
        "# a folder that timm opens",
        f"sslkit export {here}",
        "",
        "# these pictures, as files, of your own images",
        f"sslkit visualize {here} IMAGES",
    ]
    if about.get("status") not in ("completed", None):
        lines += ["", "# go on where it stopped", f"sslkit pretrain --resume {here}"]
    return code(lines)


def files(run: Path, about: Mapping[str, Any]) -> str:
    """Where everything lies, and what made it."""
    rows = [[name, _size(run / name), meaning] for name, meaning in _FILES.items() if (run / name).exists()]
    versions = about.get("versions", {})
    made = ", ".join(f"{name} {version}" for name, version in versions.items())
    where = {"Folder": str(run.absolute()), **({"Versions": made} if made else {})}
    where |= {"Fingerprint of the images": str(about["data"]["fingerprint"])}
    return table("Files of the run", ["File", "Size", "What it is"], rows, "words") + facts(where)


def _loss(metrics: Sequence[Line], name: str, title: str) -> list[str]:
    values = _values(metrics, name)
    if len(values) < 2:
        return []
    part = max(1, len(values) // 10)
    first, last = statistics.mean(values[:part]), statistics.mean(values[-part:])
    verdict = "it fell" if last < first else "it did not fall: a smaller optim.lr, or more epochs, may help"
    return [title, f"{first:.4g} → {last:.4g}", f"{verdict} (first and last tenth of the lines)"]


def _features(metrics: Sequence[Line], width: int, share: float, batch: int) -> list[list[str]]:
    """Deviation and rank at the end; what is wrong with them if anything is."""
    last: dict[str, float] = {}
    for line in metrics:
        last |= {name: line[name] for name in ("std", "rank", "chance") if _is_number(line.get(name))}
    rows = []
    if "std" in last and width:
        alike = last["std"] < 0.5 * width**-0.5
        meaning = "images look more alike to it than they should" if alike else "images are distinguished"
        healthy = f"{last['std']:.3g}; {width**-0.5:.2g} if spread evenly, 0 if collapsed"
        rows.append(["Feature deviation", healthy, meaning])
    if "rank" in last:
        images = min(EMBEDDINGS, _interval(metrics) * batch)
        # A twentieth of what the rank can be at most: the width, or the images of the last log interval.
        few = last["rank"] < 0.05 * (min(width, images) if width else images)
        meaning = "few directions: weak as frozen features, fine-tuning may still gain" if few else "varied"
        among = f"among {counted(images, 'image')}" + (f" in {width} dimensions" if width else "")
        rows.append(["Effective rank", f"{last['rank']:.1f} {among}", meaning])
    problem = advice(last, width, share) if width else None
    rows.append(["Collapse", "yes" if problem else "no sign of it", problem or ""])
    return rows if last else []


def _interval(metrics: Sequence[Line]) -> int:
    """Steps that the last line with figures of features is about."""
    steps = [0, *(int(line["step"]) for line in metrics if _is_number(line.get("rank")))]
    return max(1, steps[-1] - steps[-2])


def _steps(metrics: Sequence[Line]) -> list[list[str]]:
    odd = max(_values(metrics, "nonfinite"), default=0)
    if not metrics:
        return []
    meaning = "their updates were left out; see nonfinite.jsonl" if odd else ""
    return [["Steps that were not finite", f"{odd:.0f}", meaning]]


def _values(metrics: Sequence[Line], name: str) -> list[float]:
    return [float(line[name]) for line in metrics if _is_number(line.get(name))]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _time(about: Mapping[str, Any]) -> str:
    """From start to end; resumed runs stood still in between."""
    try:
        began = datetime.fromisoformat(about["started"])
        seconds = (datetime.fromisoformat(about["finished"]) - began).total_seconds()
    except (KeyError, TypeError, ValueError):
        return f"started {about['started']}" if about.get("started") else ""
    return f"{timedelta(seconds=round(seconds))} from {began:%Y-%m-%d %H:%M}"


def _size(path: Path) -> str:
    if path.is_dir():
        return ""
    number = path.stat().st_size
    if number < 1000:
        return f"{number} B"
    return f"{number / 1e6:,.1f} MB" if number >= 1e5 else f"{number / 1e3:,.1f} kB"


def _text(value: Any) -> str:
    return configuration.toml_value(value) if not isinstance(value, dict) else json.dumps(value)
