"""visualize: pictures of what a method does, and of what a run learned, as PNG files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure

from sslkit import keyed
from sslkit.console import SILENT, Console
from sslkit.errors import UserError, nearest
from sslkit.methods.base import Clock
from sslkit.visualization.curves import curves, read_metrics
from sslkit.visualization.families import families
from sslkit.visualization.masks import masks
from sslkit.visualization.panels import panels
from sslkit.visualization.reconstruction import HALVES, reconstruction
from sslkit.visualization.spectrum import spectrum
from sslkit.visualization.style import save
from sslkit.visualization.subject import Subject
from sslkit.visualization.views import views

EPOCHS = 3
"""How many epochs' views of an image are shown."""


def visualize(
    source: str,
    images: Sequence[str] = (),
    *,
    kinds: Sequence[str] = (),
    out: Path | None = None,
    count: int = 4,
    radius: float | None = None,
    size: int | None = None,
    seed: int = 0,
    console: Console = SILENT,
) -> list[Path]:
    """Draw and write PNG files; returns their paths. What exists is kept: the new file gets -2, -3, …

    Args:
        source: a run folder, or a method's name for what needs no training.
        images: DATA, or single image files; by default the run's own images, or generated ones.
        kinds: of `KINDS`; none means all that the source allows.
        out: folder; by default RUN/pictures, or pictures-METHOD.
        count: images shown (`spectrum` shows four at most, `masks` and `families` one).
        radius: cut in bins, instead of the run's or the method's own.
        size: side of the pictures, pixels.
        seed: of the choice of images, and for a method's name of its random views.

    Raises:
        UserError: unknown source or kind, a kind that needs a run, no images; then nothing is written.
    """
    subject = Subject(source, images, count=count, radius=radius, size=size, seed=seed, console=console)
    wanted = _wanted(kinds, subject)
    if wanted != ["curves"]:
        subject.prepare()
    folder = out or (subject.run.path / "pictures" if subject.run else Path(f"pictures-{source}"))
    _check_folder(folder)
    figures = {kind: KINDS[kind].draw(subject) for kind in wanted}
    written = []
    for kind, figure in figures.items():
        written.append(save(figure, folder / f"{kind}.png"))
        console.say(f"{kind:<9} {written[-1]}")
    return written


def draw_masks(subject: Subject) -> Figure:
    return masks(subject.pictures[0], subject.radius)


def draw_families(subject: Subject) -> Figure:
    return families(subject.pictures[0], subject.radius)


def draw_spectrum(subject: Subject) -> Figure:
    return spectrum(subject.pictures, subject.radius)


def draw_views(subject: Subject) -> Figure:
    """Views and inputs of the first epochs, keyed as in training: by seed, epoch and position in the set."""
    method, transform = subject.method, subject.method.transform()
    index = torch.tensor(list(subject.originals))
    made, inputs, captions = [], [], []
    for epoch in range(EPOCHS):
        clock = Clock(step=epoch, steps=EPOCHS, steps_per_epoch=1, seed=subject.seed)
        items = subject.originals.items()
        epoch_views = [
            transform(image, keyed.generator(subject.seed, epoch, position))["image"]
            for position, image in items
        ]
        made.append(torch.stack(epoch_views).float() / 255)
        task = method.task(made[-1], index, clock)  # type: ignore[operator]
        inputs.append(task.inputs.clamp(0, 1))
        captions.append(
            [subject.degradation or ("low kept" if low else "high kept") for low in task.keep_low]
        )
    return views(list(subject.originals.values()), torch.stack(made, 1), torch.stack(inputs, 1), captions)


def draw_reconstruction(subject: Subject) -> Figure:
    """Every image through both tasks: `MFM.panels` gives the first half of a batch its low frequencies."""
    tasks = (subject.degradation,) if subject.degradation else HALVES
    repeated = torch.cat([subject.pictures] * len(tasks))
    with torch.no_grad():
        panels = subject.method.panels({"image": repeated, "index": torch.arange(len(repeated))})
    return reconstruction(panels, tasks, None if subject.degradation else subject.radius)


def draw_panels(subject: Subject) -> Figure:
    images = subject.pictures
    with torch.no_grad():
        pictures = subject.method.panels({"image": images, "index": torch.arange(len(images))})
    if not pictures:
        raise UserError(f"the method of {subject.source} has no pictures of what it does")
    return panels(pictures, f"What {subject.name} does to images")


def draw_curves(subject: Subject) -> Figure:
    if subject.run is None:  # `visualize` has refused this
        raise ValueError("curves: a run expected, got a method")
    file = subject.run.path / "metrics.jsonl"
    metrics = read_metrics(file) if file.is_file() else []
    if not any("epoch" in line for line in metrics):
        raise UserError(f"{file} holds no figures yet", "train on: sslkit pretrain --resume RUN")
    return curves(metrics, f"Training of {subject.run.path.name}")


@dataclass(frozen=True)
class Kind:
    """One kind of picture. `text` says in a sentence what it shows, for people who can't see it."""

    draw: Callable[[Subject], Figure]
    needs_run: bool
    masking: bool | None  # only for methods that mask frequencies (`task`, as MFM), or only for others
    text: str


KINDS = {
    "masks": Kind(
        draw_masks,
        False,
        None,
        "Low-pass, high-pass and band-pass masks at four radii with the number of bins they keep, each above "
        "the image filtered by it.",
    ),
    "families": Kind(
        draw_families,
        False,
        None,
        "Masks of seven shapes at one radius with the share of bins they keep, each above the part of an "
        "image that it keeps and the part that is left out.",
    ),
    "views": Kind(
        draw_views,
        False,
        True,
        "Original images beside random views of them from three epochs, and the low-pass or high-pass input "
        "made of each view.",
    ),
    "spectrum": Kind(
        draw_spectrum,
        False,
        None,
        "Images, their low-pass and high-pass halves and the log-magnitude spectra of all; below them the "
        "radial power and the power law that fits it.",
    ),
    "recon": Kind(
        draw_reconstruction,
        True,
        True,
        "Input images, the low-pass and high-pass versions the network was given, its predictions, the "
        "composite of given and predicted frequencies and its error; below each its spectrum, at the end the "
        "error by frequency.",
    ),
    "panels": Kind(
        draw_panels,
        True,
        False,
        "Images, and beside each what the method makes of it: views with other colours, hidden patches, "
        "predictions.",
    ),
    "curves": Kind(
        draw_curves,
        True,
        None,
        "Loss, the losses of both tasks, learning rate, gradient norm, effective rank, feature deviation, "
        "speed and waiting share over the epochs.",
    ),
}


def _wanted(kinds: Sequence[str], subject: Subject) -> list[str]:
    """The kinds to draw, each once; refuses what the source can't show."""
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"unknown kind of picture {kind!r}", nearest(kind, KINDS))
        if problem := refusal(kind, subject):
            raise problem
    return list(dict.fromkeys(kinds)) or [kind for kind in KINDS if refusal(kind, subject) is None]


def refusal(kind: str, subject: Subject) -> UserError | None:
    """Why this kind can't be drawn of the subject, if it can't."""
    if KINDS[kind].needs_run and subject.run is None:
        problem = f"{kind} needs a trained run, and {subject.source!r} is a method's name"
        return UserError(problem, "give a run folder such as runs/mfm-…-1")
    if KINDS[kind].masking is True and not subject.masks_frequencies:
        problem = f"{kind} shows masked frequencies, and {subject.name} masks none"
        return UserError(problem, "panels shows what it does")
    if KINDS[kind].masking is False and subject.masks_frequencies:
        return UserError(f"{kind} is for methods that mask no frequencies", "recon shows what mfm predicts")
    return None


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, a folder for the pictures expected", "choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UserError(f"can't create {folder}: {problem.strerror}", "choose another --out") from None
