"""What probe found, for people: tables on the terminal and in Markdown."""

from __future__ import annotations

from sslkit.core.console import Console, command, counted, visible
from sslkit.evaluation.probe.leaks import Leaks
from sslkit.evaluation.probe.readout import TITLES
from sslkit.evaluation.probe.result import LocalResult, ProbeResult
from sslkit.evaluation.robustness import robustness_result
from sslkit.evaluation.robustness.robustness_result import RobustnessResult

_NOTE = "frozen features are half of the answer, for a masked-image method the lesser half; the other"

Table = tuple[str, list[str], list[list[str]]]
"""Title, header, rows."""


def tables(result: ProbeResult) -> list[Table]:
    """All tables but that of the robustness."""
    head = ["", "width", "kNN %", "read from", "linear %", "read from"]
    cells = [
        [
            row.name,
            str(row.width),
            _spread(row.knn, row.knn_interval),
            TITLES.get(row.knn_readout, row.knn_readout),
            _spread(row.linear, row.linear_interval),
            TITLES.get(row.linear_readout, row.linear_readout),
        ]
        for row in result.rows
    ]
    found: list[Table] = []
    if result.rows:
        found.append(("all training images (± half a 95 % interval)", head, cells))
    for level in result.levels:
        spread = f"mean ± deviation of {len(level.seeds)} draws" if len(level.seeds) > 1 else "one draw"
        few = [
            [row.name, _spread(row.knn, row.knn_std), _spread(row.linear, row.linear_std)]
            for row in level.rows
        ]
        found.append((f"{level.shots} per class ({spread})", ["", "kNN %", "linear %"], few))
    if result.grid:
        grid = [
            [
                cell.source,
                str(cell.size),
                cell.normalization,
                _spread(cell.knn, cell.knn_interval),
                _spread(cell.linear, cell.linear_interval),
            ]
            for cell in result.grid
        ]
        header = ["", "size", "normalisation", "kNN %", "linear %"]
        found.append(("input sizes and normalisations (± half a 95 % interval)", header, grid))
    if result.local is not None:
        found.append(_local(result.local))
    return found


def _spread(value: float, half: float | None) -> str:
    return f"{value:.1f}" if half is None else f"{value:.1f} ± {half:.1f}"


def _local(local: LocalResult) -> Table:
    count = f"{local.counts['train']} to train on, {local.counts['validation']} to validate"
    rows = [
        [
            row.name,
            f"{row.grid} x {row.grid}",
            *(_spread(*score) for score in row.scores.values()),
        ]
        for row in local.rows
    ]
    title = f"{local.task}, a linear layer on every cell ({count}; ± half a 95 % interval)"
    rows.append(["the most frequent class everywhere", "", f"{local.constant:.1f}"])
    rows[-1] += [""] * (len(local.rows[0].scores) - 1)
    return title, ["", "cells", *(f"{measure} %" for measure in local.rows[0].scores)], rows


def show(result: ProbeResult, console: Console) -> None:
    """The tables, and the command for the fairer test; the verdict itself is the command's result."""
    for number, (title, header, rows) in enumerate(tables(result)):
        if number or result.levels or not result.rows:
            console.say(title)
        console.table(header, rows)
    if result.counts["unreadable"]:
        console.warn(f"{counted(result.counts['unreadable'], 'image')} could not be read: left out")
    if result.robustness is not None:
        robustness_result.show_robustness(result.robustness, console)
    for source in dict.fromkeys(verdict.source for verdict in result.comparisons):
        console.say(f"{_NOTE}: {command('sslkit', 'finetune', source, result.data)}")


def leak_warning(leaks: Leaks, data: str) -> tuple[str, str]:
    """One line on validation images that are in training too, and the cure."""
    parts = [f"{len(leaks.copies)} are in training too"] * bool(leaks.copies)
    parts += [f"{len(leaks.near)} almost are"] * bool(leaks.near)
    text = f"{data}: of the validation images " + " and ".join(parts)
    return text, "left out" if leaks.excluded else "--exclude-leaks leaves them out"


def to_markdown(result: ProbeResult) -> str:
    """table.md: verdicts, tables, what was measured on."""
    counts = result.counts
    models = result.rows or (result.local.rows if result.local else ())
    lines = [f"# Probe of {', '.join(_cell(row.name) for row in models if row.kind == 'source')}", ""]
    lines += [f"- {_cell(sentence)}" for sentence in (*result.headlines, *result.verdicts)]
    for title, header, rows in tables(result):
        lines += ["", f"## {title[0].upper()}{title[1:]}", "", *_markdown(header, rows)]
    if result.robustness is not None:
        lines += ["", "## Robustness", "", *robust_lines(result.robustness)]
    whole = f"kNN with k = {result.k}, " if result.rows else ""
    lines += [
        "",
        f"{_cell(result.data)}: {counts['train']} training and "
        f"{counted(counts['validation'], 'validation image')}, "
        f"{counted(counts['classes'], 'class', 'classes')}, {counts['unreadable']} unreadable; "
        f"{whole}seed {result.seed}." + (f" {_leaks(result.leaks)}" if whole else ""),
    ]
    return "\n".join(lines) + "\n"


def _leaks(leaks: Leaks) -> str:
    text = f"Validation images that are in training too: {len(leaks.copies)}, almost: {len(leaks.near)}"
    return text + (", left out." if leaks.excluded and leaks.count else ".")


def robust_lines(robust: RobustnessResult) -> list[str]:
    """Markdown, line by line."""
    lines = [robustness_result.title(robust), "", *_markdown(*robustness_result.robustness_table(robust))]
    found = [f"- {_cell(sentence)}" for sentence in robustness_result.relative_sentences(robust)]
    return [*lines, "", *found] if found else lines


def _markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return ["| " + " | ".join(map(_cell, row)) + " |" for row in [header, rule, *rows]]


def _cell(text: str) -> str:
    """Text that can't break a table."""
    return visible(text).replace("|", "\\|")
