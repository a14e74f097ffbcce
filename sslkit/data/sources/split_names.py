"""Which part of a data set a folder, or a value in the column `split`, stands for, by its name alone.

    train  Training  seg_train  train2017  images_train  TrainingSet  train_images     training
    val  valid  validation  dev  eval  test  Testing  seg_test  test-set  …             held out

A name counts where beside the word there are only usual ones (set, images, a year), or where another folder
has the same ones, as in cats_train and cats_test. So "train_station", "test tube" and "dev board" are
classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

_TRAINING = ("train", "training", "trn")
_HELD_OUT = (
    "val", "valid", "validation", "validate", "dev", "devel", "eval", "evaluation", "holdout", "heldout",
    "test",
    "testing", "tst",
)  # fmt: skip
"""The first one that is there is the validation part."""
HELD_OUT = ("val", "valid", "validation", "dev", "eval", "test")

_USUAL = frozenset(
    (
        "set", "data", "dataset", "image", "images", "img", "imgs", "photo", "photos", "picture",
        "pictures", "pics",
        "jpg", "jpeg", "png", "split", "part", "folder", "dir", "sample", "samples", "frames", "crops",
        "seg", "cls",
        "small", "large", "full", "mini", "tiny", "raw", "clean", "resized", "cropped", "new", "final",
        "labelled",
        "labeled", "unzipped", "extracted",
    )
)  # fmt: skip
_ENDS = re.compile("(set|data|images|imgs|split)$")
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|[^\W\d_A-Za-z]+")


class Role(NamedTuple):
    """What a name stands for. Of two parts that are held out the one with the lower rank is preferred."""

    held_out: bool
    rank: int
    beside: tuple[str, ...]  # the other words of the name, "*" where the role's stands


def role_of(name: str) -> Role | None:
    """The role in a name that stands alone; None for a name with none, or with two, as in "train_val"."""
    role = _read(name)
    return role if role and _usual(role) else None


def roles(names: Iterable[str]) -> dict[str, Role]:
    """The names among those side by side that are parts of a data set, each with its role."""
    read = {name: role for name in names if (role := _read(name))}
    pairs = {role.beside for role in read.values() if not role.held_out} & {
        role.beside for role in read.values() if role.held_out
    }
    return {name: role for name, role in read.items() if _usual(role) or role.beside in pairs}


def is_wrapping(name: str) -> bool:
    """Whether a lone folder of that name in a part is no class, as in seg_train/seg_train/ and
    train/images/.
    """
    return role_of(name) is not None or all(map(_is_usual, _words(name)))


def _read(name: str) -> Role | None:
    words = _words(name)
    found = [(place, role) for place, word in enumerate(words) if (role := _role(word))]
    if len(found) != 1:
        return None
    (place, (held_out, rank)), beside = found[0], list(words)
    beside[place] = "*"
    return Role(held_out, rank, tuple(word for word in beside if not _is_usual(word)))


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORDS.findall(name)]


def _role(word: str) -> tuple[bool, int] | None:
    for known in (word, _ENDS.sub("", word)):
        if known in _TRAINING:
            return False, 0
        if known in _HELD_OUT:
            return True, _HELD_OUT.index(known)
    return None


def _usual(role: Role) -> bool:
    return role.beside == ("*",)


def _is_usual(word: str) -> bool:
    return word in _USUAL or word.isdigit()
