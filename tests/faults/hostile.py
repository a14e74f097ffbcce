"""Files made to harm: what reading each of them does, and how much memory it takes.

    python tests/faults/hostile.py [--json]

Every file is read by a process of its own, forked from one that has imported everything. No payload may run
(it would leave a file named canary), every answer must be a UserError of one line, and the memory of the
process may grow by 1.2 times the file, or by 32 MB where that is more.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import resource
import struct
import sys
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sslkit.core.errors import UserError
from sslkit.models.foreign.pickles import is_safe
from sslkit.models.weights import load_encoder

CANARY = "canary"
SLACK = 32 << 20
WEIGHTS = {"patch_embed.proj.weight": torch.zeros(192, 3, 16, 16)}


class Call:
    """An object whose pickle calls a function when it is opened."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


def touch() -> Call:
    return Call(os.system, f"touch {CANARY}")


def evaluate() -> Call:
    return Call(eval, f"open({CANARY!r}, 'w')")


def pt_system(file: Path) -> None:
    torch.save({"model": WEIGHTS, "config": touch()}, file)


def pt_eval(file: Path) -> None:
    torch.save({"model": WEIGHTS, "config": {"a": [evaluate()]}}, file)


def pt_exec(file: Path) -> None:
    torch.save(OrderedDict(**WEIGHTS, x=Call(exec, f"open({CANARY!r}, 'w')")), file)


def pt_legacy(file: Path) -> None:
    torch.save({"model": WEIGHTS, "config": touch()}, file, _use_new_zipfile_serialization=False)


def pt_bare_pickle(file: Path) -> None:
    file.write_bytes(pickle.dumps(touch()))


def pt_in_namespace(file: Path) -> None:
    torch.save({"model": WEIGHTS, "args": argparse.Namespace(hook=evaluate())}, file)


def pt_as_storage(file: Path) -> None:
    """The payload hides in the tuple that names a tensor's storage."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing: Any) -> Any:
            return ("storage", touch(), "0", "cpu", 1) if isinstance(thing, torch.Tensor) else None

    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump({"model": WEIGHTS})
    write_archive(file, stream.getvalue())


def pt_hidden_name(file: Path) -> None:
    """Protocol 4 takes the names of functions from the stack, where no list of names sees them."""
    write_archive(file, pickle.dumps({"config": touch()}, protocol=4))


def pt_hub(file: Path) -> None:
    """A function of torch itself that downloads and runs code."""
    torch.save({"model": WEIGHTS, "config": Call(torch.hub.load, "nobody/nothing", "all")}, file)


def pt_zip_bomb(file: Path) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}, protocol=2))
        with archive.open("a/data/0", "w", force_zip64=True) as opened:
            for _ in range(512):
                opened.write(bytes(1 << 20))


def pt_overlap(file: Path) -> None:
    """A thousand names for one part of the archive."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("a/data/0", bytes(4 << 20))
        for number in range(1000):
            twin = zipfile.ZipInfo(f"a/data/{number + 1}")
            first = archive.getinfo("a/data/0")
            twin.file_size, twin.compress_size, twin.CRC = first.file_size, first.compress_size, first.CRC
            twin.header_offset, twin.flag_bits, twin.external_attr = first.header_offset, 0, 0
            archive.filelist.append(twin)


def pt_directory_bomb(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}, protocol=2))
        for number in range(50_000):
            archive.writestr(f"a/{number}", b"")


def pt_many_lists(file: Path) -> None:
    """Four million empty lists, a byte each, and 56 in memory."""
    write_archive(file, b"\x80\x02](" + b"]" * 4_000_000 + b"e.")


def pt_truncated(file: Path) -> None:
    torch.save({"model": {"x": torch.zeros(1 << 20)}}, file)
    file.write_bytes(file.read_bytes()[: 1 << 20])


def pt_expanded(file: Path) -> None:
    """A billion numbers that are one number, in a file of 2 kB."""
    torch.save({"model": {"patch_embed.proj.weight": torch.zeros(1).expand(192, 3, 16, 1 << 17)}}, file)


def pt_short_storage(file: Path) -> None:
    """A tensor that is larger than the numbers that are there."""
    torch.save({"model": {"x": torch.zeros(1000)}}, file)
    write_archive(file, zipfile.ZipFile(file).read(f"{file.stem}/data.pkl"), bytes(8))


def pt_no_pickle(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/code.py", f"open({CANARY!r}, 'w')")


def pt_noise(file: Path) -> None:
    file.write_bytes(bytes((i * 197 + 31) % 251 for i in range(100_000)))


def pt_empty(file: Path) -> None:
    file.write_bytes(b"")


def st_huge_header(file: Path) -> None:
    file.write_bytes(struct.pack("<Q", 1 << 62) + b"{}")


def st_header_bomb(file: Path) -> None:
    """A hundred thousand tensors without a number in them."""
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    write_safetensors(file, json.dumps({str(number): entry for number in range(100_000)}).encode())


def st_overlap(file: Path) -> None:
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    write_safetensors(file, json.dumps({"a": entry, "b": entry}).encode(), bytes(16))


def st_negative_shape(file: Path) -> None:
    write_safetensors(file, b'{"a":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}}', bytes(16))


def st_overflow(file: Path) -> None:
    """A product of sides that is 16 bytes again, modulo 2 to the 64."""
    shape = [1 << 32, 1 << 32, 4]
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 16]}
    write_safetensors(file, json.dumps({"a": entry}).encode(), bytes(16))


def st_beyond(file: Path) -> None:
    write_safetensors(file, b'{"a":{"dtype":"F32","shape":[400],"data_offsets":[0,1600]}}', bytes(16))


def st_not_json(file: Path) -> None:
    write_safetensors(file, b"{'a': __import__('os')}")


def st_deep(file: Path) -> None:
    write_safetensors(file, b"[" * 100_000 + b"]" * 100_000)


def st_twice(file: Path) -> None:
    entry = b'{"dtype":"F32","shape":[4],"data_offsets":[%d,%d]}'
    write_safetensors(file, b'{"a":' + entry % (0, 16) + b',"a":' + entry % (16, 32) + b"}", bytes(32))


def dcp_metadata(folder: Path) -> None:
    """A distributed checkpoint: its index is a pickle that torch opens without asking."""
    folder.mkdir()
    (folder / ".metadata").write_bytes(pickle.dumps(touch()))
    save_file(WEIGHTS, folder / "__0_0.distcp")


def write_archive(file: Path, program: bytes, numbers: bytes = bytes(64)) -> None:
    """What torch.save would write, with this pickle in it."""
    with zipfile.ZipFile(file, "w") as archive:
        parts = {"data.pkl": program, "byteorder": b"little", "data/0": numbers, "version": b"3\n"}
        for name, data in parts.items():
            archive.writestr(f"a/{name}", data)


def write_safetensors(file: Path, header: bytes, numbers: bytes = b"") -> None:
    file.write_bytes(struct.pack("<Q", len(header)) + header + numbers)


def makers() -> dict[str, Callable[[Path], None]]:
    """Every kind of file above, by the name that it will have."""
    endings = {"pt": ".pt", "st": ".safetensors", "dcp": ""}
    return {
        name + endings[name.split("_")[0]]: function
        for name, function in globals().items()
        if name.split("_")[0] in endings and callable(function)
    }


def read(file: Path) -> dict[str, Any]:
    """What `load_encoder` answers, in a forked process, and by how much that grew."""
    from_child, to_parent = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(to_parent, json.dumps(_answer(file)).encode())
        os._exit(0)
    os.close(to_parent)
    with os.fdopen(from_child) as pipe:
        text = pipe.read()
    code = os.waitpid(child, 0)[1]
    return json.loads(text) if text else {"kind": f"died with {code}", "text": "", "grown": 0}


def _answer(file: Path) -> dict[str, Any]:
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    try:
        # A torch that refuses every pickle would hide what the walls behind that refusal do.
        load_encoder(file, trust=not is_safe())
        kind, text = "loaded", ""
    except UserError as problem:
        kind, text = "UserError", f"{problem.message}\n{problem.hint}"
    except BaseException as problem:
        kind, text = type(problem).__name__, str(problem)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {"kind": kind, "text": text, "grown": max(0, grown)}


def main() -> int:
    """Make and read every file; exit code 1 if one of them did harm."""
    harm = 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name, make in makers().items():
            make(file := Path(name))
            size = sum(f.stat().st_size for f in ([file] if file.is_file() else file.iterdir()))
            found = {"file": name, "bytes": size, **read(file), "canary": Path(CANARY).exists()}
            short = found["text"].count("\n") <= 1
            harmless = found["kind"] == "UserError" and short and not found["canary"]
            found["harmless"] = harmless and found["grown"] <= max(1.2 * size, SLACK)
            harm += not found["harmless"]
            if "--json" in sys.argv:
                print(json.dumps(found), flush=True)
            else:
                state = "ok " if found["harmless"] else "BAD"
                megabytes = f"{size / 1e6:8.2f} MB {found['grown'] / 1e6:+7.1f} MB"
                print(f"{state} {name:<27} {megabytes}  {found['kind']}: {found['text'].splitlines()[:1]}")
    return 1 if harm else 0


if __name__ == "__main__":
    sys.exit(main())
