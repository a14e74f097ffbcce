"""Damaged image files, many of them: does any end the process, escape as another error, or take long?

    python tests/faults/images.py --count 1000

Each format is read in a process of its own, so that a crash in a decoder is seen and names its file. Printed
for each: files read, files refused, other exceptions, the slowest file, and by how much the memory grew.
Exit code 1 when anything but a picture or UnreadableImage came out, a file took more than a second, or the
memory grew by more than a whole image of 64 megapixels and its copies take.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: the package beside it

from sslkit.data.images.decode import UnreadableImage, read_image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF")
SECONDS = 1.0
"""What one file may take."""
MEGABYTES = 1024
"""What the memory may grow by: a damaged header may claim 64 megapixels, 256 MB in RGBA, and be believed."""

LARGE = (0, 1, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
"""Numbers on which parsers stumble."""


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def originals(form: str) -> list[bytes]:
    """Whole files that take different ways through the decoder."""
    chance = np.random.default_rng(0)
    color = Image.fromarray(chance.integers(0, 256, (40, 56, 3), dtype=np.uint8))
    grey, clear = color.convert("L"), color.convert("RGBA")
    clear.putalpha(grey)
    deep = Image.fromarray(chance.integers(0, 65536, (40, 56), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    extra: dict[str, Any] = {"exif": exif, "icc_profile": b"no real profile" * 9}
    frames: dict[str, Any] = {"save_all": True, "append_images": [color.rotate(90), color.rotate(180)]}
    plans: dict[str, list[tuple[Image.Image, dict[str, Any]]]] = {
        "JPEG": [(color, extra), (color, {"progressive": True}), (grey, {}), (color.convert("CMYK"), {})],
        "PNG": [
            (color, extra), (clear, {}), (color.convert("P"), {"transparency": 3}), (deep, {}),
            (color, frames),
        ],
        "WEBP": [(color, extra), (clear, {"lossless": True}), (clear, {}), (color, frames)],
        "GIF": [(color, {}), (color.convert("P"), {"transparency": 3}), (color, frames)],
        "TIFF": [
            (color, extra), (color, {"compression": "tiff_lzw"}), (clear, {"compression": "tiff_deflate"}),
            (color, {"compression": "jpeg"}), (grey.convert("1"), {"compression": "group4"}), (deep, {}),
            (grey.convert("F"), {}), (color, frames), (color.convert("CMYK"), {"compression": "packbits"}),
        ],
    }  # fmt: skip
    return [encoded(image, form, **options) for image, options in plans[form]]


def mutated(whole: bytes, chance: random.Random) -> bytes:
    """One to four of: bits flipped, cut, bytes put in, taken out, doubled, numbers in the header replaced."""
    damaged = bytearray(whole)
    for _ in range(chance.choice((1, 1, 2, 4))):
        if len(damaged) < 16:
            break
        kind, start = chance.randrange(7), chance.randrange(len(damaged))
        length = chance.randint(1, 32)
        header = chance.randrange(min(len(damaged) - 4, 256))  # where the parsers are
        if kind == 0:
            for _ in range(length):
                damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del damaged[start:]
        elif kind == 2:
            damaged[start:start] = chance.randbytes(length)
        elif kind == 3:
            del damaged[start : start + length]
        elif kind == 4:
            damaged[start:start] = damaged[start : start + length]
        elif kind == 5:
            damaged[header] = chance.randrange(256)
        else:
            form = chance.choice(("<I", ">I", "<H", ">H"))
            struct.pack_into(form, damaged, header, chance.choice(LARGE) % (1 << 8 * struct.calcsize(form)))
    return bytes(damaged)


def with_checksums(png: bytes) -> bytes:
    """The checksums of a PNG's chunks made right again, so that damage gets past the first check."""
    fixed, start = bytearray(png), 8
    while start + 12 <= len(fixed):
        end = start + 8 + int.from_bytes(fixed[start : start + 4], "big")
        if end + 4 > len(fixed):
            break
        struct.pack_into(">I", fixed, end, zlib.crc32(fixed[start + 4 : end]))
        start = end + 4
    return bytes(fixed)


def mutations(form: str, count: int, seed: int) -> Iterator[bytes]:
    chance, files = random.Random(f"{form} {seed}"), originals(form)
    for number in range(count):
        damaged = mutated(files[number % len(files)], chance)
        yield with_checksums(damaged) if form == "PNG" and chance.random() < 0.7 else damaged


def read_all(form: str, count: int, seed: int, place: Path) -> dict[str, Any]:
    """What became of the mutations; the file in question is always the one at `place`."""
    found: dict[str, Any] = {"read": 0, "refused": 0, "slowest": 0.0, "others": [], "slow": []}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, content in enumerate(mutations(form, count, seed)):
        place.write_bytes(content)
        began = time.process_time()  # not of the other programs on the machine
        try:
            image = read_image(str(place))
            outcome = "read" if image.mode == "RGB" else "others"
        except UnreadableImage as error:
            outcome = "refused" if error.reason and error.reason.isprintable() else "others"
        except BaseException as error:
            outcome = "others"
            found["others"].append(f"number {number}: {error!r}")
        seconds = time.process_time() - began
        found["slowest"] = max(found["slowest"], seconds)
        if seconds > SECONDS:
            found["slow"].append(number)
        if outcome != "others":
            found[outcome] += 1
    found["megabytes"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    return found


def survey(form: str, count: int, seed: int) -> bool:
    """One format in a process of its own; prints its line, True when all is well."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "image"
        line = [sys.executable, __file__, "--child", str(place), "--format", form]
        line += ["--count", str(count), "--seed", str(seed)]
        done = subprocess.run(line, capture_output=True, text=True)
        if done.returncode:
            kept = Path(tempfile.gettempdir()) / f"fatal.{form.lower()}"
            kept.write_bytes(place.read_bytes())
            print(f"{form:5} the process ended with {done.returncode} at {kept}\n{done.stderr}")
            return False
    found = json.loads(done.stdout)
    print(
        f"{form:5} {found['read']:6} read  {found['refused']:6} refused  {len(found['others'])} others  "
        f"{len(found['slow'])} slow  slowest {found['slowest']:.3f} s  memory +{found['megabytes']} MB"
    )
    for problem in found["others"]:
        print(f"      {problem}")
    if lines := done.stderr.splitlines():  # libtiff does this, and Pillow offers no way to stop it
        print(f"      {len(lines)} lines on stderr from the decoder, the first: {lines[0]!r}")
    whole = found["read"] + found["refused"] == count
    return whole and not found["slow"] and found["megabytes"] < MEGABYTES


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="mutations of each format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", choices=FORMATS, help="this one alone")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.child:
        print(json.dumps(read_all(wanted.format, wanted.count, wanted.seed, wanted.child)))
        return 0
    forms = [wanted.format] if wanted.format else FORMATS
    passed = [survey(form, wanted.count, wanted.seed) for form in forms]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
