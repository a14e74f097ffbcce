"""Few labels: N images of each class, drawn several times."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sslkit.core import rng
from sslkit.core.errors import UserError
from sslkit.data.sources.image_set import ImageSet

MOST_SEEDS = 20


def parse_shots(wanted: str | Sequence[int | str]) -> tuple[int, ...]:
    """ "1,5,10,all" → (1, 5, 10), ascending, each once; all images are measured in any case.

    Raises:
        UserError: anything but whole numbers from 1 and "all".
    """
    words = wanted.split(",") if isinstance(wanted, str) else [str(word) for word in wanted]
    words = [word.strip() for word in words if word.strip() not in ("", "all")]
    for word in words:
        if not (word.isdecimal() and int(word) >= 1):
            raise UserError(f"--shots: {word!r} is not a number of images per class", "--shots 1,all")
    return tuple(sorted({int(word) for word in words}))


def check_shots(shots: Sequence[int], seeds: int, train: ImageSet) -> None:
    """Refuse more images per class than the smallest class has, and no or too many draws."""
    if not 1 <= seeds <= MOST_SEEDS:
        raise UserError(f"--seeds: {seeds} is not 1 to {MOST_SEEDS}", "leave it out: the default is 3")
    counts = torch.bincount(torch.tensor(train.labels), minlength=len(train.classes))
    smallest = int(counts.argmin())
    if shots and max(shots) > int(counts[smallest]):
        have = f"class {train.classes[smallest]!r} has {int(counts[smallest])} training images"
        raise UserError(f"--shots {max(shots)}: {have}", f"--shots {int(counts[smallest])} or less")


def draw_shots(labels: Tensor, shots: int, seed: int) -> Tensor:
    """Positions, int64 ascending, of `shots` images of every class; a larger draw holds the smaller ones."""
    chosen = []
    for label in torch.unique(labels).tolist():
        members = (labels == label).nonzero().flatten()
        order = rng.generator(seed, 0, label, "shots").permutation(len(members))
        chosen.append(members[torch.from_numpy(order)[:shots]])
    return torch.cat(chosen).sort().values
