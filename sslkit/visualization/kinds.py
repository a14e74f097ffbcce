"""All kinds of pictures: what each needs, what it shows, and when it can't be drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from matplotlib.figure import Figure

from sslkit.core.console import command
from sslkit.core.errors import UserError
from sslkit.visualization import draw
from sslkit.visualization.figures import attention_maps, first_layer
from sslkit.visualization.inputs import Inputs
from sslkit.visualization.report import stored


@dataclass(frozen=True)
class Kind:
    """One kind of picture. `text` says in a sentence what it shows, for people who can't see it."""

    draw: Callable[[Inputs], Figure]
    needs: Literal["images", "method", "run", "encoder"]
    text: str
    masking: bool | None = None  # only for methods that mask frequencies (`task`, as MFM), or only for others


_ROBUSTNESS = {
    "robust-corruptions": "Accuracy under fifteen corruptions of the images, mean over severities, "
    "a bar for each source.",
    "robust-filters": "Accuracy on low-pass and high-pass images over the radius of the filter, "
    "a curve for each source.",
    "robust-waves": "Error under noise of a single frequency, as a map over the frequencies for each source.",
    "robust-attacks": "Accuracy under FGSM and PGD over the size of the attack, curves for each source.",
}

KINDS = {
    "masks": Kind(
        draw.draw_masks,
        "images",
        "Low-pass, high-pass and band-pass masks at four radii with the number of bins they keep, each above "
        "the image filtered by it.",
    ),
    "families": Kind(
        draw.draw_families,
        "images",
        "Masks of seven shapes at one radius with the share of bins they keep, each above the part of an "
        "image that it keeps and the part that is left out.",
    ),
    "views": Kind(
        draw.draw_views,
        "method",
        "Original images beside random views of them from three epochs, and the low-pass or high-pass input "
        "made of each view.",
        masking=True,
    ),
    "spectrum": Kind(
        draw.draw_spectrum,
        "images",
        "Images, their low-pass and high-pass halves and the log-magnitude spectra of all; below them the "
        "radial power and the power law that fits it.",
    ),
    "recon": Kind(
        draw.draw_reconstruction,
        "run",
        "Input images, the low-pass and high-pass versions the network was given, its predictions, the "
        "composite of given and predicted frequencies and its error; below each its spectrum, at the end the "
        "error by frequency.",
        masking=True,
    ),
    "panels": Kind(
        draw.draw_panels,
        "run",
        "Images, and beside each what the method makes of it: views with other colours, hidden patches, "
        "predictions.",
        masking=False,
    ),
    "curves": Kind(
        draw.draw_curves,
        "run",
        "Loss, the losses of both tasks, learning rate, gradient norm, effective rank, feature deviation, "
        "speed and waiting share over the epochs.",
    ),
    "attention": Kind(
        draw.draw_attention,
        "encoder",
        "Images, how attention flows to their patches through all blocks, and where each head of the last "
        "block looks; below, the mean distance at which every head of every block looks.",
    ),
    "pca": Kind(
        draw.draw_pca,
        "encoder",
        "Images, the first three principal components of their features as red, green and blue, the first "
        "one alone, and three components of the foreground that it parts.",
    ),
    "neighbours": Kind(
        draw.draw_neighbours,
        "encoder",
        "Images and beside each those that the encoder takes for most alike, with the cosine of their "
        "features; a check mark where the class is the same, a cross where it is not.",
    ),
    "map": Kind(
        draw.draw_map,
        "encoder",
        "Small images on a plane, alike ones close together, and the same plane with a dot for each image in "
        "the colour of its class.",
    ),
    "filters": Kind(
        draw.draw_filters,
        "encoder",
        "Kernels of the first layer, the frequency response of each, and the mean response over the plane "
        "and over the radius.",
    ),
    "layers": Kind(
        draw.draw_layers,
        "encoder",
        "For every block the amplitude of its features by frequency, relative to the lowest, and the "
        "amplitude at the highest frequency over the depth.",
    ),
    **{kind: Kind(draw.draw_stored_as(kind), "run", text) for kind, text in _ROBUSTNESS.items()},
    "compare": Kind(
        draw.draw_compare,
        "run",
        "Losses of several runs in one plot, spectra of what they predict, their probes in a table, and what "
        "each makes of the same images.",
    ),
}

KIND_GROUPS = {"robust": tuple(stored.FIGURES)}
"""Names for several kinds at once: of these, the ones that can be drawn."""


def refusal(kind: str, subject: Inputs, asked: str = "") -> UserError | None:
    """Why this kind can't be drawn of the subject, if it can't; `asked`: the group it was asked for by."""
    facts, name = KINDS[kind], asked or kind
    if facts.needs in ("run", "method") and not subject.has_method:
        problem = f"{name} needs a run of pretrain, and {subject.source} is weights without a method"
        return UserError(problem, "filters needs no run")
    if facts.needs in ("run", "encoder") and subject.has_method and subject.run is None:
        problem = f"{name} needs a trained run, and {subject.source!r} is a method's name"
        return UserError(problem, "give a run folder such as runs/mfm-…-1")
    if facts.masking is True and not subject.masks_frequencies:
        problem = f"{kind} shows masked frequencies, and {subject.name} masks none"
        return UserError(problem, "panels shows what it does")
    if facts.masking is False and subject.masks_frequencies:
        return UserError(f"{kind} is for methods that mask no frequencies", "recon shows what mfm predicts")
    return _refusal_of_content(kind, subject, asked)


def _refusal_of_content(kind: str, subject: Inputs, asked: str) -> UserError | None:
    """What only the encoder or the run's files can show."""
    if kind == "attention":
        return attention_maps.attention_refusal(subject.encoder)
    if kind == "filters":
        return first_layer.first_layer_refusal(subject.encoder)
    if kind in stored.FIGURES:
        return stored.stored_refusal(draw.run_of(subject), kind, asked)
    if kind == "compare" and not subject.others:
        cure = command("sslkit", "visualize", subject.source)
        return UserError("compare needs two runs or more", f"{cure} --with RUN")
    return None
