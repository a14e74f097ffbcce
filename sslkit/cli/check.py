"""sslkit check DATA..."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from sslkit.cli import options
from sslkit.core.console import Console, counted, named, nearby, visible

if TYPE_CHECKING:
    from sslkit.data.audit.audit import Audit, Defect

SHOWN = 3
"""Images that are named of each finding; --out lists all."""
BAR = 40


EXAMPLES = (
    "sslkit check photos/",
    "sslkit check labelled/train --against labelled/val -o findings.tsv",
)


def defaults() -> dict[str, str]:
    """What is taken where an option is not given."""
    return {"workers": "auto: one per core, none for few images"}


def check(
    data: Annotated[
        list[str], typer.Argument(metavar="DATA...", help="Folders, .txt lists, .csv tables or fractal:N.")
    ],
    against: Annotated[
        list[str] | None,
        typer.Option("--against", metavar="OTHER", help="Images that must not be in DATA; repeatable."),
    ] = None,
    out: Annotated[
        str | None, typer.Option("-o", "--out", metavar="FILE", help="Every finding as a line of a new .tsv.")
    ] = None,
    workers: options.Workers = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Look at images before spending hours on them: unreadable, tiny, doubled, leaked; exit 1 on findings."""
    from sslkit import api

    console = Console(quiet, json)
    audit = api.check(*data, against=against or (), out=out, workers=workers, console=console)
    console.result("\n".join(_lines(audit)), audit.to_document())
    if audit.findings:
        raise typer.Exit(1)


def _lines(audit: Audit) -> list[str]:
    """The audit as text."""
    seen = audit.seen
    of = visible(seen.images.name) + (
        f" against {visible(audit.against.images.name)}" if audit.against else ""
    )
    lines = [f"{counted(len(seen.images), 'image')}: {of} ({audit.rate:.0f} images/s)"]
    lines += [f"  {kind:<20} {count:>9,}" for kind, count in seen.kinds.most_common()]
    lines += [f"{name} = {visible(text)}" for name, text in audit.numbers.facts().items()]
    lines += ["short side, pixels", *_bars(audit.histogram())]
    if audit.classes:
        (most, *_, least) = audit.classes.items()
        lines += ["classes"]
        lines += [
            f"  {len(audit.classes)}, from {least[1]:,} images ({visible(named(least[0]))}) to {most[1]:,} "
            f"({visible(named(most[0]))})"
        ]
    lines += [f"  {visible(note)}" for note in audit.notes]
    if huge := seen.huge():
        lines += [
            f"{huge:,} images over 16 megapixels: made smaller once, they would be read faster every epoch"
        ]
    if own := seen.images.left_out.own:
        lines += [visible(own)]
    for finding in audit.findings:
        lines += _finding(finding)
    return lines if audit.findings else [*lines, "no findings"]


def _bars(histogram: Mapping[str, int]) -> list[str]:
    longest = max(histogram.values(), default=1)
    bars = {sides: "#" * -(-BAR * count // longest) for sides, count in histogram.items()}
    return [f"  {sides:<20} {count:>9,}  {bars[sides]}".rstrip() for sides, count in histogram.items()]


def _finding(finding: Defect) -> list[str]:
    lines = [f"{finding.kind}: {counted(finding.count, finding.noun)}, {visible(finding.advice)}"]
    if finding.noun != "image":  # the line has said all
        return lines
    lines += ["  ".join(["", *(visible(nearby(text)) for text in row)]) for row in finding.rows[:SHOWN]]
    more = len(finding.rows) - SHOWN
    return [*lines, f"  and {more:,} more; --out FILE lists all"] if more > 0 else lines
