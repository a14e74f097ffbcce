"""Many images as vectors, their names and classes, and which of them are alike."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sslkit.augmentations.crops import CenterCrop
from sslkit.core.console import SILENT, Console
from sslkit.core.device import Precision, autocast, to_device
from sslkit.core.errors import UserError, nearest
from sslkit.data.loading.loader import evaluation_loader
from sslkit.data.packs import reader as packed
from sslkit.data.sources import fractal
from sslkit.data.sources.image_set import ImageSet
from sslkit.data.sources.labels import layout_of
from sslkit.data.sources.layout import Ambiguous
from sslkit.data.sources.tables import is_table, read_table
from sslkit.models.encoder import Encoder

_READOUTS = ("mean", "cls")
_BATCH = 64
SIMILARITIES = 1 << 24
"""Cosines in memory at once."""


def reader(encoder: Encoder, readout: str = "mean") -> Callable[[Tensor], Tensor]:
    """float [B, 3, H, W] in [0, 1] → [B, D]: `Encoder.vector`, or a ViT's class token after its last norm.

    Raises:
        UserError: an unknown read-out, or "cls" where there is no class token.
    """
    if readout not in _READOUTS:
        raise UserError(f"unknown read-out {readout!r}", nearest(readout, _READOUTS))
    if readout == "mean":
        return encoder.vector
    if encoder.family != "vit" or encoder.model.cls_token is None:
        raise UserError(f"{encoder.name} has no class token", "leave --readout out: mean")
    return lambda images: encoder.tokens(images).prefix[:, 0]


def embed_images(
    vector: Callable[[Tensor], Tensor],
    images: ImageSet,
    size: int,
    *,
    device: torch.device,
    precision: Precision = "float32",
    workers: int = 0,
    console: Console = SILENT,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Vectors [K, D] of the readable images' central crops, and their positions in the set, ascending [K].

    The vectors go straight to where they stay: beside one batch nothing else is held in memory.

    Args:
        vector: the model, already on `device` and in evaluation mode.

    Raises:
        UserError: not one image could be read.
    """
    found: NDArray[np.float32] | None = None
    kept = np.empty(len(images), dtype=np.int64)
    done = 0
    with torch.inference_mode(), console.bar("embedding", len(images)) as bar:
        for views, _, index in evaluation_loader(images, CenterCrop(size), _BATCH, workers):
            with autocast(device, precision):
                output = vector(to_device({"image": views}, device)["image"])
            if found is None:
                found = np.empty((len(images), output.shape[1]), dtype=np.float32)
            found[done : done + len(index)] = output.float().cpu().numpy()
            kept[done : done + len(index)] = index.numpy()
            done += len(index)
            bar.advance(len(index))
    if found is None:
        raise UserError(f"{images.name}: none of {len(images)} images can be read")
    return found[:done], kept[:done]


def nearest_neighbours(
    vectors: Tensor, queries: Tensor, k: int, own: Tensor | None = None, chunk: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Cosines and positions of the k vectors nearest to each query, most similar first, part by part.

    As in the kNN of `probe`, all are centred by the mean of `vectors` first: cosines between features with a
    large common part are all near 1.

    Args:
        vectors: float [N, D]; queries: float [M, D].
        k: at most as many as there are.
        own: int64 [M], the positions of the queries themselves in `vectors`; these are no neighbours.
        chunk: queries at once; 0: as many as SIMILARITIES allows.

    Yields:
        float [m, k] and int64 [m, k] for the next m queries.
    """
    mean = vectors.mean(0)
    reference = F.normalize(vectors - mean, dim=1)
    k = min(k, len(vectors) - (own is not None))
    chunk = chunk or max(1, SIMILARITIES // len(vectors))
    for first in range(0, len(queries), chunk):
        similarity = F.normalize(queries[first : first + chunk] - mean, dim=1) @ reference.T
        if own is not None:
            similarity.scatter_(1, own[first : first + chunk, None], -2.0)
        cosine, index = similarity.topk(k, dim=1)
        yield cosine, index


def relative_names(source: str, images: ImageSet) -> list[str]:
    """What each image is called below DATA: below the folder, in the pack, or from the list's folder on."""
    root = os.path.abspath(source) if os.path.isdir(source) else os.path.dirname(os.path.abspath(source))
    return [_called(path, root) for path in images.paths]


def _called(path: str, root: str) -> str:
    if packed.is_packed_name(path):
        return packed.original(path)
    return path if fractal.is_name(path) else os.path.relpath(path, root)


def class_names(sources: Sequence[str], images: ImageSet, console: Console = SILENT) -> list[str] | None:
    """The name of each image's class, "" where it has none; None if there are not two classes.

    A class is a class folder as `finetune` finds them (layout.py), in all parts; of a .csv, the column
    `label`. Folders that can be read in two ways give a warning, and no classes.
    """
    named = []
    for source in sources:
        try:
            named.append(_namer(source))
        except Ambiguous as problem:
            console.warn(f"no classes: {problem.message}", problem.hint)
        except UserError:  # no labels there
            continue
    labels = [next(filter(None, (namer(path) for namer in named)), "") for path in images.paths]
    return labels if len(set(labels) - {""}) > 1 else None


def _namer(source: str) -> Callable[[str], str]:
    """A function from an image's path to its class, "" where it has none. Raises UserError."""
    if is_table(source) and os.path.isfile(source):
        rows = {row["path"]: row.get("label", "") for row in read_table(source)[0]}
        return lambda path: rows.get(path, "")
    if not os.path.isdir(source):
        return lambda path: ""
    layout = layout_of(source)
    if packed.is_pack(source):
        return lambda path: layout.class_of(packed.original(path)) if packed.is_packed_name(path) else ""
    root = os.path.join(os.path.abspath(source), "")
    return lambda path: layout.class_of(path.removeprefix(root)) if path.startswith(root) else ""
