"""Damage to checkpoints on the disk: is all of it found, and is the one before used?

    python tests/faults/rot.py --times 2000

Single flipped bits in any file of a checkpoint (the manifest too), truncations at any length, emptied and
missing files. Every damage must be found, and `newest` must fall back on the checkpoint before.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: the package beside it

from sslkit.training.run import checkpoint


def written(folder: Path, step: int) -> Path:
    torch.manual_seed(step)
    model = nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 20)).square().mean().backward()
    optimizer.step()
    return checkpoint.write(folder, step, model, optimizer, {"images_seen": step})


def damage(file: Path, kind: str, chance: random.Random) -> None:
    content = bytearray(file.read_bytes())
    if kind == "missing":
        file.unlink()
    elif kind == "emptied":
        file.write_bytes(b"")
    elif kind == "truncated":
        file.write_bytes(content[: chance.randrange(1, len(content))])
    else:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        file.write_bytes(content)


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--times", type=int, default=2000, help="flipped bits, and half as many truncations")
    words.add_argument("--seed", type=int, default=0)
    given = words.parse_args()
    chance = random.Random(given.seed)
    kinds = ["bit"] * given.times + ["truncated"] * (given.times // 2) + ["emptied", "missing"] * 8
    done, missed = Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        folder, kept = Path(name) / "checkpoints", Path(name) / "kept"
        before, after = written(folder, 1), written(folder, 2)
        shutil.copytree(after, kept)
        names = sorted(path.name for path in after.iterdir())
        for number, kind in enumerate(kinds):
            damage(after / names[number % len(names)], kind, chance)
            found, notices = checkpoint.newest(folder)
            done[kind] += 1
            missed[kind] += (found, len(notices)) != (before, 1)
            for path in folder.iterdir():
                if path != before:
                    shutil.rmtree(path)
            shutil.copytree(kept, after)
    for kind, count in done.items():
        print(f"{kind}: {count - missed[kind]} of {count} found, the checkpoint before used")
    return int(any(missed.values()))


if __name__ == "__main__":
    sys.exit(main())
