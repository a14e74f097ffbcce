"""embed: one vector per image into a file, and which images are alike."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sslkit.core.config.setting import AUTO
from sslkit.core.config.validate import refuse_range
from sslkit.core.console import SILENT, Console
from sslkit.core.device import Precision, pick_device, pick_precision
from sslkit.core.errors import UserError, nearest_path
from sslkit.core.files import sha256
from sslkit.core.paths import check_free, numbered_names, refuse_full, write_whole
from sslkit.data.images.decode import UnreadableImage
from sslkit.data.loading.workers import reading_workers
from sslkit.data.sources.image_set import ImageSet, open_images
from sslkit.data.sources.set_range import asked_range, with_range
from sslkit.evaluation.embedding.gallery import (
    class_names,
    embed_images,
    nearest_neighbours,
    reader,
    relative_names,
)
from sslkit.evaluation.embedding.vector_files import (
    Vectors,
    check_target,
    class_of,
    write_vectors,
)
from sslkit.models.encoder import Encoder
from sslkit.models.foreign import is_foreign
from sslkit.models.weights import encoder_file, load_encoder

_NEIGHBOURS = 5
DEFAULT = Path("features.safetensors")


@dataclass(frozen=True)
class Match:
    """An image that is like the query."""

    name: str
    label: str
    cosine: float


@dataclass(frozen=True)
class Embedding:
    """What `embed` has made."""

    file: Path
    count: int  # images
    width: int  # numbers in a vector
    unreadable: int
    classes: int  # 0: no labels
    neighbours: Path | None = None
    matches: tuple[Match, ...] = ()  # of the query, most similar first

    def to_document(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def embed(
    source: str,
    data: str,
    out: Path | None = None,
    *,
    readout: str = "mean",
    neighbours: int = 0,
    query: str | None = None,
    size: int | None = None,
    device: str = AUTO,
    precision: str = AUTO,
    workers: int | None = None,
    seed: int = 0,
    range: str | Sequence[float] | None = None,
    console: Console = SILENT,
) -> Embedding:
    """Write the vector of every image of `data` to `out`.

    Args:
        source: a run, an exported folder, a file of weights, timm/NAME or random/NAME.
        out: a new file: .safetensors, .npz, .csv or .parquet; by default features.safetensors, or
            features-2.safetensors, … where that is taken.
        readout: "mean" (of a ViT's patch tokens, of a CNN's last map) or "cls", the class token.
        neighbours: write that many most similar images of each to STEM-neighbours.csv beside `out`.
        query: an image file; its most similar images (5, or as many as `neighbours`) are in the result.
        size: side of the images, pixels; by default the source's own.
        seed: of the weights of random/NAME.
        range: as `data.range`; by default the source's own, or else that of the images.

    Raises:
        UserError: no such source or images, `out` exists, no class token, a query that can't be read; nothing
            is written then.
    """
    if neighbours < 0:
        raise UserError(f"--neighbours {neighbours}: not less than 0 expected", "--neighbours 5")
    refuse_range(size, seed)
    wanted = free_name(DEFAULT) if out is None else out
    check_target(wanted)
    if neighbours:
        check_free(_table_beside(wanted))
    place = pick_device(device)
    encoder = load_encoder(source, size, seed, console=console)
    encoder.range = asked_range(encoder.range, range, source, console)
    vector, exact = reader(encoder, readout), pick_precision(precision, place)
    asked = None if query is None else _open_query(query)
    images = with_range(open_images([data]), encoder.range, console)
    asked = None if asked is None else replace(asked, range=images.range)
    for line in images.left_out.lines():
        console.say(line)
    if neighbours and len(images) < 2:
        raise UserError(f"{data}: one image has no neighbours", "two images or more")
    readers = reading_workers(place.type == "cpu") if workers is None else workers
    letters = 12 if wanted.suffix == ".csv" else 4  # of a number as text, or bytes
    needed = len(images) * encoder.width * letters
    refuse_full(wanted, needed, "the vectors", "choose an --out on another disk, or make room")
    encoder.to(place)
    found, kept = embed_images(
        vector, images, encoder.size, device=place, precision=exact, workers=readers, console=console
    )
    if missing := len(images) - len(kept):
        console.warn(f"{missing} of {len(images)} images can't be read and are left out", "sslkit check DATA")
        images = images.subset(kept)
    facts = _facts(source, seed, encoder, readout, exact, images)
    made = _with_names(found, data, images, facts, console)
    file, table = write_vectors(made, wanted), None
    if file != wanted and out is not None:
        console.warn(f"another command has made {wanted} meanwhile: the vectors are in {file}")
    if neighbours:
        table = write_whole(_table_beside(file), partial(_write_neighbours, made, neighbours))
    matches: tuple[Match, ...] = ()
    if asked is not None:
        one, _ = embed_images(vector, asked, encoder.size, device=place, precision=exact)
        own = next((place for place, path in enumerate(images.paths) if path == asked.paths[0]), None)
        matches = _matches(made, one, neighbours or _NEIGHBOURS, own)
    console.say(f"{len(made.names)} images, {found.shape[1]} numbers each, {readout} of {source}")
    return Embedding(file, len(made.names), found.shape[1], missing, len(made.classes), table, matches)


def free_name(path: Path) -> Path:
    """`path`, or NAME-2, NAME-3, … where a file has that name."""

    def taken(one: Path) -> bool:
        return os.path.lexists(one) or os.path.lexists(_table_beside(one))

    return next(one for one in numbered_names(path) if not taken(one))


def _table_beside(file: Path) -> Path:
    return file.with_name(f"{file.stem}-neighbours.csv")


def _open_query(query: str) -> ImageSet:
    """The image file as a set of one; UserError if it can't be read."""
    path = Path(query)
    if not path.is_file():
        raise UserError(f"--query {query}: no such file", nearest_path(query, "name one image file"))
    found = ImageSet([str(path.absolute())], query)  # type: ignore[arg-type]  # texts become Names
    try:
        found.read(0)
    except UnreadableImage as problem:
        raise UserError(f"--query {query} can't be read: {problem.reason}") from None
    return found


def _facts(
    source: str, seed: int, encoder: Encoder, readout: str, precision: Precision, images: ImageSet
) -> dict[str, str]:
    """What one needs to make the same vectors again."""
    drawn, range = source.startswith("random/"), images.range
    known = {"range": json.dumps(range.setting()), "nodata": json.dumps(range.nodata)} if range.known else {}
    return {
        **known,
        "source": f"{source}, seed {seed}" if drawn else source,
        "sha256": _source_hash(source),
        "backbone": encoder.name,
        "readout": readout,
        "size": str(encoder.size),
        "mean": json.dumps([round(value, 6) for value in encoder.mean.flatten().tolist()]),
        "std": json.dumps([round(value, 6) for value in encoder.std.flatten().tolist()]),
        "precision": precision,
        "data": images.name,
        "fingerprint": images.fingerprint,
    }


def _source_hash(source: str) -> str:
    """SHA-256 of the file of weights; empty for `timm/NAME` and `random/NAME`."""
    if source.startswith(("random/", "timm/")):
        return ""
    return sha256(Path(source) if is_foreign(source) else encoder_file(Path(source)))


def _with_names(
    found: np.ndarray, data: str, images: ImageSet, facts: dict[str, str], console: Console
) -> Vectors:
    names = relative_names(data, images)
    labels = class_names([data], images, console)
    if labels is None:
        return Vectors(found, names, None, [], facts)
    classes = sorted(set(labels) - {""})
    number = {name: place for place, name in enumerate(classes)}
    return Vectors(found, names, np.array([number.get(label, -1) for label in labels]), classes, facts)


def _write_neighbours(made: Vectors, k: int, file: Path) -> None:
    """Rows image, neighbour, cosine: the k most similar of each image, in the order of the images."""
    vectors = torch.from_numpy(made.vectors)
    row = 0
    with file.open("w", encoding="utf-8", errors="surrogateescape", newline="") as opened:
        table = csv.writer(opened)
        table.writerow(["image", "neighbour", "cosine"])
        for cosines, indices in nearest_neighbours(vectors, vectors, k, torch.arange(len(vectors))):
            for cosine, index in zip(cosines.tolist(), indices.tolist(), strict=True):
                for value, other in zip(cosine, index, strict=True):
                    table.writerow([made.names[row], made.names[other], f"{value:.6f}"])
                row += 1


def _matches(made: Vectors, query: np.ndarray, k: int, own: int | None) -> tuple[Match, ...]:
    """own: where the query itself is among the images, if it is."""
    itself = None if own is None else torch.tensor([own])
    vectors = torch.from_numpy(made.vectors)
    cosines, indices = next(nearest_neighbours(vectors, torch.from_numpy(query), k, itself))
    pairs = zip(cosines[0].tolist(), indices[0].tolist(), strict=True)
    return tuple(
        Match(made.names[index], "".join(class_of(made, index)), round(cosine, 6)) for cosine, index in pairs
    )
