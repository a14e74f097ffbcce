"""A .pt, .pth or .bin file read without running what is in it: two walls and three limits.

Such a file is a pickle, a small program. Before torch sees it, the program is read as text: every name that
it calls must be on our list, and a name that only describes a run (argparse.Namespace, yacs' CfgNode) stands
for an empty object, whatever it holds. Then `torch.load(weights_only=True)` reads it, with a list of its own.
Sizes are checked in the archive's directory, so that a small file can't fill the memory.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch

from sslkit.core.console import command
from sslkit.core.errors import UserError, first_line

SAFE_SINCE = (2, 10)
"""Older versions of torch have known ways out of weights_only (CVE-2025-32434, CVE-2026-24747)."""

MOST_INSTRUCTIONS = 400_000
"""Of the pickle; a checkpoint of a thousand tensors with AdamW's moments has about 100,000."""

MOST_DIRECTORY = 1 << 20
"""Bytes of the archive's directory; those of three thousand tensors take 200,000."""

TENSORS = re.compile(
    r"collections OrderedDict|_codecs encode|__builtin__ set"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|parameter)|torch\.nn\.parameter Parameter"
    r"|torch (\w+Storage|Size|device|b?float\d+|u?int\d+|bool)|torch\.storage (Untyped|Typed)Storage"
)
"""Names, as pickle writes them, of which tensors and plain containers consist."""

DESCRIPTIONS = re.compile(
    r"argparse Namespace|yacs\.config CfgNode|easydict EasyDict|pathlib \w*Path"
    r"|numpy dtype|numpy\._?core\.multiarray scalar"
)
"""Names of settings and figures that people save beside the weights: read as nothing."""

_DICTIONARIES = ("yacs.config.CfgNode", "easydict.EasyDict")
_CLEAN = "where it was made: torch.save({'model': file['model']}, 'clean.pth'), or ask for safetensors"


class _Nothing:
    """Stands for an object whose class is not imported; takes any state and keeps none."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


class _NothingDictionary:
    """The same for a kind of dict: torch fills only its own kinds, so an instance is one of those."""

    def __new__(cls, *_: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


def read_pickle(file: Path, trust: bool = False) -> Any:
    """What `torch.save` wrote, tensors on the CPU and, where the format allows, still on the disk.

    Args:
        trust: read it with a torch older than `SAFE_SINCE` too. Nothing else changes: weights_only stays.

    Raises:
        UserError: old torch, more than tensors and plain values in it, damaged, or larger than it says.
    """
    _refuse_old_torch(file, trust)
    try:
        zipped = zipfile.is_zipfile(file)
        names = set(_names_in_archive(file) if zipped else _names_in_legacy(file))
        inert = [_stand_in(file, name) for name in sorted(names) if not TENSORS.fullmatch(name)]
        with torch.serialization.safe_globals(inert):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except UserError:
        raise
    except Exception as problem:  # a damaged program can end in any of them
        _refuse(file, first_line(problem))


def is_safe() -> bool:
    """Whether this torch's weights_only is safe, as far as is known."""
    return tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) >= SAFE_SINCE


def _refuse_old_torch(file: Path, trust: bool) -> None:
    if not is_safe() and not trust:
        begun = command("sslkit", "export", file)
        raise UserError(
            f"{file} is a pickle, and torch {torch.__version__} can be tricked into running code in it",
            f"torch >= 2.10; or, if you trust who made it: {begun} OUT --trust, then use OUT",
        )


def _names_in_archive(file: Path) -> Iterator[str]:
    """Names that the pickle in a zip archive calls; the archive's directory is checked on the way."""
    if _directory_bytes(file) > MOST_DIRECTORY:
        _refuse(file, f"an archive's directory of more than {MOST_DIRECTORY:,} bytes")
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size for m in members):
            _refuse(file, "it is compressed, and torch.save never compresses")
        if sum(member.file_size for member in members) > file.stat().st_size:
            _refuse(file, "its parts are together larger than the file")
        pickles = [member for member in members if member.filename.endswith("/data.pkl")]
        if len(pickles) != 1:
            _refuse(file, "not what torch.save writes: no data.pkl in it")
        with archive.open(pickles[0]) as opened:
            yield from _names(file, io.BytesIO(opened.read()))


def _names_in_legacy(file: Path) -> Iterator[str]:
    """The same for files from before torch 1.6: five pickles in a row, then bare numbers."""
    with file.open("rb") as opened:
        if opened.read(2) == b"PK":
            _refuse(file, "an archive that is cut off")
        opened.seek(0)
        for _ in range(5):
            yield from _names(file, opened)


def _names(file: Path, stream: BinaryIO | io.BytesIO) -> Iterator[str]:
    """Names called by one pickle, read as text."""
    for count, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
        if count > MOST_INSTRUCTIONS:
            _refuse(file, f"a pickle of more than {MOST_INSTRUCTIONS:,} instructions")
        if instruction.name == "GLOBAL":
            yield str(argument)
        elif instruction.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
            problem = f"{file} is a pickle that calls names in a hidden way ({instruction.name})"
            raise UserError(problem, _CLEAN)


def _stand_in(file: Path, name: str) -> Any:
    """What takes the place of a name that holds no weights: (class, dotted name), as torch wants it."""
    dotted = name.replace(" ", ".")
    if not DESCRIPTIONS.fullmatch(name):
        raise UserError(f"{file} holds more than tensors: opening it would call {dotted}", _CLEAN)
    return (_NothingDictionary if dotted in _DICTIONARIES else _Nothing), dotted


def _directory_bytes(file: Path) -> int:
    """Size of a zip archive's directory, as its last record says."""
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - (22 + 0xFFFF)))
        tail = opened.read()
    end = tail.rfind(b"PK\5\6")
    size = int.from_bytes(tail[end + 12 : end + 16], "little")
    large = tail.rfind(b"PK\6\6", 0, end)  # zip64: the same figure, longer
    return int.from_bytes(tail[large + 40 : large + 48], "little") if large >= 0 else size


def _refuse(file: Path, reason: str) -> NoReturn:
    raise UserError(f"{file} can't be read: {reason}", "the file is damaged, or no weights")
