"""Report sections about evaluation results: probe, fine-tuning, robustness, from the commands' documents.

Keys that a document lacks are left out, unknown ones are ignored.
"""

from __future__ import annotations

import csv
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sslkit.core.console import counted
from sslkit.evaluation.metrics.significance import Difference
from sslkit.evaluation.probe.readout import TITLES
from sslkit.evaluation.robustness.robustness_result import RobustnessResult
from sslkit.visualization.figures.seeds import arms, read_seeds
from sslkit.visualization.report.html import drawn, facts, paragraph, stored, table
from sslkit.visualization.report.stored import robustness_figures

Document = Mapping[str, Any]

RESULT_PICTURES = {
    "confusion": "Confusion matrix{whose}: of each class (row), what percentage was called what (column).",
    "reliability": "Reliability{whose}: accuracy over confidence, on the diagonal where it is honest.",
    "calibration": "Calibration{whose}: accuracy over confidence, on the diagonal where it is honest.",
    "probe": "Accuracies of the probe with 95 % intervals, beside the baselines.",
    "probe-shots": "Accuracy over the number of labelled images per class.",
    "probe-grid": "Accuracy over sizes and normalisations of the input.",
}
"""A picture's file name, without ending and number → what it shows, and of which of several runs."""

ROBUSTNESS = {
    "robust-corruptions": "Accuracy under fifteen corruptions, a bar per source; dashed: on clean images.",
    "robust-filters": "Accuracy on low-pass and on high-pass images over the radius.",
    "robust-waves": "Error under noise of one frequency; zero frequency in the middle.",
    "robust-attacks": "Accuracy under FGSM and PGD over the largest change of a value.",
}


def headlines(document: Document) -> str:
    """The probe's verdict, which stands at the top of the page."""
    return "".join(paragraph(str(sentence), "verdict") for sentence in document.get("headlines") or ())


def probe_section(document: Document, run: Path) -> str:
    """Accuracy of frozen features beside the baselines, and each comparison behind the verdict."""
    counts = document.get("counts", {})
    first = [str(sentence) for sentence in document.get("headlines") or ()]
    others = [sentence for sentence in _sentences(document, "verdicts") if sentence not in first]
    rows = document.get("rows", [])
    read = any("knn_readout" in row for row in rows)
    header = ["Features"]
    for title in (f"kNN, k = {document.get('k', 20)}", "Linear"):
        header += [title, *([f"{title.partition(',')[0]} reads"] if read else [])]
    cells = [[row.get("name", "?"), *_read(row, "knn", read), *_read(row, "linear", read)] for row in rows]
    measured = (
        f"{document.get('data', '')}: {counts.get('train', '?')} training and "
        f"{_counted(counts.get('validation'), 'validation image')}, "
        f"{_counted(counts.get('classes'), 'class', 'classes')}."
    )
    parts = [table("Top-1 accuracy in %, ± half a 95 % interval", header, cells)]
    parts.append("".join(f"<li>{paragraph(sentence)}</li>" for sentence in others))
    parts[-1] = f"<ul>{parts[-1]}</ul>" if parts[-1] else ""
    parts += [paragraph(measured + _leaks(document), "about"), *map(_shots, _listed(document, "shots"))]
    drawn_by_it = ["probe", *(f"probe-{part}" for part in ("shots", "grid") if document.get(part))]
    return "".join([*parts, _grid(document), _local(document), *_pictures(run, drawn_by_it)])


def finetune_section(document: Document, run: Path) -> str:
    """A classifier that started here: its figures, and where it fails."""
    counts, compared = document.get("counts", {}), read_seeds(document)
    folder = _found(str(document.get("folder", "")), run)
    if compared and folder:  # of several runs the first one's classes are in the document
        folder = _found(str(document["runs"][0].get("folder", "")), folder)
    kinds = {
        "top1": "Top-1, %",
        "top5": "Top-5, %",
        "macro_f1": "Macro-F1, %",
        "balanced": "Balanced accuracy, %",
        "calibration_error": "Calibration error",
    }
    figures = {
        title: f"{document[name]:.{3 if name == 'calibration_error' else 1}f}"
        for name, title in kinds.items()
        if isinstance(document.get(name), int | float) and not (compared and name == "top5")
    }
    if compared:
        figures = {
            title: f"{value}, mean over {counted(len(compared.seeds), 'seed')}"
            for title, value in figures.items()
        }
    if isinstance(counts, Mapping) and counts:
        figures["Images"] = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
    if isinstance(best := document.get("best"), Mapping):
        figures["Weights"] = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in best.items())
    if document.get("folder"):
        figures["Folder"] = str(document["folder"])
    called = _most_called(folder / "predictions.csv") if folder else {}
    listed = document.get("worst", [])
    classes = counts.get("classes") if isinstance(counts, Mapping) else None
    least = listed[: max(1, classes // 2)] if classes else listed  # not the best half too
    worst = [[name, f"{percent:.0f}", count, called.get(name, "")] for name, percent, count in least]
    header = ["Class", "Found, %", "Images", "Most often called"]
    parts = [
        paragraph(sentence, "verdict")
        for sentence in _sentences(document, "headlines", "verdicts", "verdict")
    ]
    parts += [arms(compared) if compared else "", facts(figures) if figures else ""]
    whose = f", with seed {compared.seeds[0]}" if compared else ""
    parts.append(table(f"The classes with the lowest recall{whose}", header, worst))
    shown = _pictures(folder, ("confusion", "reliability", "calibration"), whose) if folder else []
    return "".join([*parts, *shown, robustness_section(document.get("robustness"))])


def robustness_section(document: Document | None) -> str:
    """What is left of the accuracy when images are changed; sources side by side."""
    if not document:
        return ""
    rows = [
        [
            row.get("name", "?"),
            _number(row.get("clean")),
            _number(row.get("corrupted")),
            _number(row.get("mean_corruption_error")),
            _difference(row.get("difference")),
            row.get("baseline") or "",
        ]
        for row in _listed(document, "rows")
    ]
    header = ["Source", "Clean", "Corrupted", "mCE", "Corrupted, difference", "Baseline"]
    seeds = document.get("seeds", 1)
    means = f", means over {seeds} seeds" if seeds != 1 else ""
    note = (
        f"Accuracy in % on {_counted(document.get('count'), 'image')}{means}; mCE: mean corruption error, "
        "100 is the baseline's. An interval that holds 0 does not show a difference."
    )
    parts = [table("Accuracy on changed images", header, rows), paragraph(note, "about") if rows else ""]
    try:
        stored = robustness_figures(RobustnessResult.of_document(document))
        figures = {kind: draw() for kind, draw in stored.items()}
    except (KeyError, TypeError):  # another version's
        figures = {}
    return "".join([*parts, *(drawn(figure, ROBUSTNESS[kind]) for kind, figure in figures.items())])


def _difference(value: Any) -> str:
    if not isinstance(value, Mapping):
        return ""
    own = {item.name: value[item.name] for item in dataclasses.fields(Difference) if item.name in value}
    return str(Difference(**own))


def _shots(level: Document) -> str:
    rows = [
        [row.get("name", "?"), _with_margin(row, "knn", "_std"), _with_margin(row, "linear", "_std")]
        for row in _listed(level, "rows")
    ]
    draws = len(level.get("seeds", ()))
    spread = "one draw" if draws == 1 else f"± deviation of {draws} draws"
    images = _counted(level.get("shots"), "labelled image")
    title = f"With {images} per class, top-1 in %, {spread}"
    return table(title, ["Features", "kNN", "Linear"], rows)


def _grid(document: Document) -> str:
    cells = [
        [cell.get("source", "?"), cell.get("size", "?"), cell.get("normalization", "")]
        + [_with_margin(cell, name) for name in ("knn", "linear")]
        for cell in _listed(document, "grid")
    ]
    return table(
        "Input sizes and normalisations, top-1 in %", ["Source", "Pixels", "Values", "kNN", "Linear"], cells
    )


def _local(document: Document) -> str:
    local = document.get("local")
    if not isinstance(local, Mapping):
        return ""
    rows = _listed(local, "rows")
    scores = [row["scores"] if isinstance(row.get("scores"), Mapping) else {} for row in rows]
    measures = list(dict.fromkeys(measure for own in scores for measure in own))
    cells = [
        [row.get("name", "?"), row.get("grid", "?"), *(_interval(own.get(measure)) for measure in measures)]
        for row, own in zip(rows, scores, strict=True)
    ]
    if measures and "constant" in local:
        last = ["The most frequent class everywhere", "", _number(local["constant"])]
        cells.append([*last, *[""] * (len(measures) - 1)])
    title = "A linear layer on every cell of the last map, in %, ± half a 95 % interval over images"
    return table(title, ["Features", "Cells a side", *measures], cells)


def _interval(pair: Any) -> str:
    return " ± ".join(map(_number, pair)) if isinstance(pair, Sequence) else "–"


def _leaks(document: Document) -> str:
    leaks = document.get("leaks")
    if not isinstance(leaks, Mapping) or not leaks.get("count"):
        return ""
    done = "they are left out" if leaks.get("excluded") else "they are counted in"
    return f" {leaks['count']} validation images are, or almost are, in the training images too; {done}."


def _most_called(file: Path) -> dict[str, str]:
    """Class → the other class that most of its images were called, with their number."""
    wrong: dict[str, Counter[str]] = {}
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            for row in csv.DictReader(lines):
                if row["label"] != row["predicted"]:
                    wrong.setdefault(row["label"], Counter())[row["predicted"]] += 1
    except (OSError, KeyError, csv.Error):
        return {}
    return {label: "{} ({})".format(*found.most_common(1)[0]) for label, found in wrong.items()}


def _found(folder: str, run: Path) -> Path | None:
    """A result's folder as it was written, or where it lies now beside the run."""
    places = [Path(folder), run.parent / Path(folder).name, run / Path(folder).name]
    return next((place for place in places if folder and place.is_dir()), None)


def _pictures(folder: Path, names: Sequence[str], whose: str = "") -> list[str]:
    """Those of these names, in the folder or in its pictures/; a second one of a name has a number."""
    places = [
        (name, f"{at}{name}{number}.png")
        for name in names
        for at in ("", "pictures/")
        for number in ("", "-[0-9]*")
    ]
    return [
        stored(file, RESULT_PICTURES[name].format(whose=whose))
        for name, here in places
        for file in sorted(folder.glob(here))
    ]


def _sentences(document: Document, *names: str) -> list[str]:
    """What a document says in words: texts, or the sentences of entries."""
    values = [document.get(name) or [] for name in names]
    entries = [entry for value in values for entry in ([value] if isinstance(value, str) else value)]
    return [str(entry["sentence"] if isinstance(entry, Mapping) else entry) for entry in entries]


def _listed(document: Document, name: str) -> list[Document]:
    return [entry for entry in document.get(name) or [] if isinstance(entry, Mapping)]


def _with_margin(row: Document, name: str, margin: str = "_interval") -> str:
    own = row.get(f"{name}{margin}")
    return _number(row.get(name)) + (f" ± {own:.1f}" if isinstance(own, int | float) else "")


def _read(row: Document, name: str, with_readout: bool) -> list[str]:
    """The accuracy, and what was read for it."""
    source = str(row.get(f"{name}_readout", ""))
    return [_with_margin(row, name), *([TITLES.get(source, source)] if with_readout else [])]


def _counted(number: Any, *noun: str) -> str:
    return counted(number, *noun) if isinstance(number, int) else f"?{counted(0, *noun)[1:]}"


def _number(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, int | float) else "–"
