"""visualize: pictures of what a method does, and of what a run learned, as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from sslkit.core.console import SILENT, Console
from sslkit.core.errors import UserError, nearest
from sslkit.core.paths import refuse_unwritable, writable
from sslkit.data.sources.folders import mark_drawn
from sslkit.models.unfinished import newest_file, unfinished_notice
from sslkit.visualization.figures.style import save_figure
from sslkit.visualization.inputs import COUNT, LIMIT, Inputs
from sslkit.visualization.kinds import KIND_GROUPS, KINDS, refusal

__all__ = ["KINDS", "refusal", "visualize"]


def visualize(
    source: str,
    images: Sequence[str] = (),
    *,
    kinds: Sequence[str] = (),
    out: Path | None = None,
    count: int = COUNT,
    radius: float | None = None,
    size: int | None = None,
    seed: int = 0,
    others: Sequence[str] = (),
    limit: int = LIMIT,
    console: Console = SILENT,
) -> list[Path]:
    """Draw and write PNG files; returns their paths. What exists is kept: the new file gets -2, -3, …

    Args:
        source: a run folder, a method's name for what needs no training, or any other SOURCE of weights.
        images: DATA, or single image files; by default the run's own images, or generated ones.
        kinds: of `KINDS` and `KIND_GROUPS`; none means all that the source allows.
        out: folder; by default RUN/pictures, or pictures-NAME.
        count: images shown (`spectrum` shows four at most, `masks` and `families` one).
        radius: cut in bins, instead of the run's or the method's own.
        size: side of the pictures, pixels.
        seed: of the choice of images, and for a method's name of its random views.
        others: runs beside which `compare` shows this one.
        limit: images at most that `neighbours` and `map` look at.

    Raises:
        UserError: unknown source or kind, a kind that needs a run, no images; then nothing is written.
    """
    subject = Inputs(
        source, images, count=count, radius=radius, size=size, seed=seed, others=others, limit=limit,
        console=console,
    )  # fmt: skip
    wanted = _wanted(kinds, subject)
    folder = out or _own_folder(subject, console)
    _check_folder(folder)
    if wanted != ["curves"]:
        if subject.run is not None and (newest := newest_file(subject.run.path)) is not None:
            console.say(unfinished_notice(newest))
        subject.prepare()
    figures = _drawn(wanted, subject, named=bool(kinds))
    written = []
    for kind, figure in figures.items():
        written.append(save_figure(figure, folder / f"{kind}.png"))
        mark_drawn(written[-1:])
        console.say(f"{kind:<{max(map(len, figures))}} {written[-1]}")
    return written


def _drawn(wanted: Sequence[str], subject: Inputs, named: bool) -> dict[str, Figure]:
    """Every kind drawn; one that nobody named, and that can't be drawn of these images, is left out."""
    figures = {}
    for kind in wanted:
        try:
            figures[kind] = KINDS[kind].draw(subject)
        except UserError as problem:
            if named:
                raise
            subject.console.warn(f"{kind} is left out: {problem.message}")
    return figures


def _wanted(kinds: Sequence[str], subject: Inputs) -> list[str]:
    """The kinds to draw, each once; refuses what the source can't show."""
    chosen: list[str] = []
    for kind in kinds:
        if kind not in {*KINDS, *KIND_GROUPS}:
            raise UserError(
                f"unknown kind of picture {kind!r}", nearest(kind, [*KINDS, *KIND_GROUPS], most=100)
            )
        members = KIND_GROUPS.get(kind, (kind,))
        problems = {member: refusal(member, subject, kind) for member in members}
        if all(problems.values()):
            problem = next(filter(None, problems.values()))
            if len(set(kinds)) > 1:
                problem.hint = ", or ".join(filter(None, [problem.hint, f"leave out --kind {kind}"]))
            raise problem
        chosen += [member for member in members if problems[member] is None]
    if kinds:
        return list(dict.fromkeys(chosen))
    return [kind for kind in KINDS if refusal(kind, subject) is None]


def _own_folder(subject: Inputs, console: Console) -> Path:
    """RUN/pictures; where there is no run, or one that can't be written, pictures-NAME beside it."""
    if subject.run is None:
        return Path(f"pictures-{subject.name}")
    inside, here = subject.run.path / "pictures", Path(f"pictures-{subject.title}")
    if writable(inside if inside.is_dir() else subject.run.path):
        return inside
    console.say(f"{subject.run.path} can't be written: the pictures go to {here}")
    return here


def _check_folder(folder: Path) -> None:
    """Refuse at the door a folder where no picture can be written; nothing is made yet."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, a folder for the pictures expected", "choose another --out")
    if not folder.is_dir():
        refuse_unwritable(folder, "--out")
    elif not writable(folder):
        raise UserError(f"{folder} can't be written", "choose another --out")
