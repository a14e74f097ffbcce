"""From `Inputs` to each kind of picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from sslkit.core import rng
from sslkit.core.errors import UserError
from sslkit.evaluation.embedding.gallery import nearest_neighbours
from sslkit.methods.base import Clock
from sslkit.visualization.figures.attention import attention
from sslkit.visualization.figures.attention_maps import attention_maps
from sslkit.visualization.figures.curves import curves, read_metrics
from sslkit.visualization.figures.embedding_map import image_map, projections
from sslkit.visualization.figures.first_layer import filters, first_filters
from sslkit.visualization.figures.layers import block_count, block_maps, layers, relative_amplitude
from sslkit.visualization.figures.mask_families import families
from sslkit.visualization.figures.mask_pictures import masks
from sslkit.visualization.figures.neighbours import Neighbour, neighbours
from sslkit.visualization.figures.panels import panels
from sslkit.visualization.figures.pca import components, feature_maps, pca
from sslkit.visualization.figures.reconstruction import HALVES, reconstruction
from sslkit.visualization.figures.runs import Compared, compare_figure
from sslkit.visualization.figures.spectrum import spectrum
from sslkit.visualization.figures.views import views
from sslkit.visualization.inputs import Inputs
from sslkit.visualization.report import stored

VIEWED_EPOCHS = 3
"""How many epochs' views of an image are shown."""
_NEIGHBOURS = 6


def draw_masks(subject: Inputs) -> Figure:
    return masks(subject.pictures[0], subject.radius)


def draw_families(subject: Inputs) -> Figure:
    return families(subject.pictures[0], subject.radius)


def draw_spectrum(subject: Inputs) -> Figure:
    return spectrum(subject.pictures, subject.radius)


def draw_views(subject: Inputs) -> Figure:
    """Views and inputs of the first epochs, keyed as in training: by seed, epoch and position in the set."""
    method = subject.method
    index = torch.tensor(list(subject.originals))
    made, inputs, captions = [], [], []
    for epoch in range(VIEWED_EPOCHS):
        clock = Clock(step=epoch, steps=VIEWED_EPOCHS, steps_per_epoch=1, seed=subject.seed)
        made.append(torch.stack([_view(subject, position, epoch) for position in subject.originals]))
        task = method.task(made[-1], index, clock)  # type: ignore[operator]
        inputs.append(task.inputs.clamp(0, 1))
        captions.append(
            [subject.degradation or ("low kept" if low else "high kept") for low in task.keep_low]
        )
    return views(list(subject.originals.values()), torch.stack(made, 1), torch.stack(inputs, 1), captions)


def _view(subject: Inputs, position: int, epoch: int) -> Tensor:
    """What a worker makes of the image in that epoch, float [3, size, size] in [0, 1]."""
    with subject.images.opened(position) as picture:
        views = subject.method.transform()(picture, rng.generator(subject.seed, epoch, position))
    return views["image"].float() / 255


def draw_reconstruction(subject: Inputs) -> Figure:
    """Every image through both tasks: `MFM.panels` gives the first half of a batch its low frequencies."""
    tasks = (subject.degradation,) if subject.degradation else HALVES
    panels = subject.panels(torch.cat([subject.pictures] * len(tasks)))
    return reconstruction(panels, tasks, None if subject.degradation else subject.radius)


def draw_panels(subject: Inputs) -> Figure:
    pictures = subject.panels(subject.pictures)
    if not pictures:
        raise UserError(f"the method of {subject.source} has no pictures of what it does")
    return panels(pictures, f"What {subject.name} does to images")


def draw_curves(subject: Inputs) -> Figure:
    run = run_of(subject)
    file = run / "metrics.jsonl"
    metrics = read_metrics(file)
    if not any("epoch" in line for line in metrics):
        raise UserError(f"{file} holds no figures yet", "train on: sslkit pretrain --resume RUN")
    return curves(metrics, f"Training of {run.name}")


def draw_attention(subject: Inputs) -> Figure:
    maps = attention_maps(subject.encoder, subject.pictures)
    return attention(subject.pictures, maps, subject.title)


def draw_pca(subject: Inputs) -> Figure:
    maps, origin = feature_maps(subject.encoder, subject.pictures)
    return pca(subject.pictures, components(maps), subject.title, origin)


def draw_neighbours(subject: Inputs) -> Figure:
    gallery = subject.gallery
    vectors, rows = torch.from_numpy(gallery.vectors), torch.tensor(gallery.queries)

    def shown(row: int, cosine: float) -> Neighbour:
        return Neighbour(gallery.thumbnail(row), gallery.labels[row] if gallery.labels else "", cosine)

    found = [
        [shown(row, value) for value, row in zip(cosine, index, strict=True)]
        for cosines, indices in nearest_neighbours(vectors, vectors[rows], _NEIGHBOURS, rows)
        for cosine, index in zip(cosines.tolist(), indices.tolist(), strict=True)
    ]
    return neighbours([shown(row, 1.0) for row in gallery.queries], found, subject.title, len(vectors))


def draw_map(subject: Inputs) -> Figure:
    gallery = subject.gallery
    made = projections(gallery.vectors, subject.seed, subject.console)
    return image_map(made, gallery.thumbnail, gallery.labels, subject.title)


def draw_filters(subject: Inputs) -> Figure:
    return filters(first_filters(subject.encoder), subject.title)


def draw_layers(subject: Inputs) -> Figure:
    maps = block_maps(subject.encoder, subject.pictures)
    unit = "block" if subject.encoder.family == "vit" else "level"
    profiles, total = list(map(relative_amplitude, maps)), block_count(subject.encoder)
    return layers(profiles, subject.title, unit, len(subject.pictures), total)


def draw_stored_as(kind: str) -> Callable[[Inputs], Figure]:
    def draw(subject: Inputs) -> Figure:
        return stored.draw_stored(run_of(subject), kind)

    return draw


def draw_compare(subject: Inputs) -> Figure:
    """The run and the others, all with the images of the first."""
    others = [subject.beside(source) for source in subject.others]
    return compare_figure([_compared(one) for one in (subject, *others)])


def _compared(subject: Inputs) -> Compared:
    run = run_of(subject)
    metrics, probe = read_metrics(run / "metrics.jsonl"), stored.probe_document(run)
    settings = subject.name, repr(subject.method.config)  # each run's Config is a class of its own
    return Compared(run.name, settings, metrics, probe, subject.pictures, _made(subject))


def _made(subject: Inputs) -> dict[str, Tensor]:
    """What a run makes of the images: MFM's composites of both tasks, or the last two of its own pictures."""
    tasks = ("",) if subject.degradation or not subject.masks_frequencies else ("from low", "from high")
    made = subject.panels(torch.cat([subject.pictures] * len(tasks)))
    if not subject.masks_frequencies:
        own = {name.replace("_", " "): shown for name, shown in made.items() if name != "image"}
        return dict(list(own.items())[-2:])
    names = [task or "composite" for task in tasks]
    composites = dict(zip(names, made["composite"].chunk(len(tasks)), strict=True))
    # What a run was never trained for would be noise.
    untrained = {0.0: "from low", 1.0: "from high"}.get(getattr(subject.method.config, "low_share", 0.5))
    return {name: shown for name, shown in composites.items() if name != untrained}


def run_of(subject: Inputs) -> Path:
    """The folder of a subject that is a run."""
    if subject.run is None:  # `refusal` says so before
        raise ValueError(f"a run expected, got {subject.source!r}")
    return subject.run.path
