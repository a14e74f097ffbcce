"""kill -9, again and again: does every run resume, and end bit for bit where an undisturbed one ends?

    python tests/faults/kill.py --times 200

Runs of a few seconds are killed at random moments, and before every single operation on the files of a save
(seen by Python's audit hook, so that the library holds no switch for tests), resumed and killed again until
they complete. After each kill every committed checkpoint must verify, and none that was there may be lost.
Children are forked from one process that has imported torch, as 200 imports would take most of the time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: the package beside it

from sslkit.core.config.build import PretrainConfig, build_pretrain
from sslkit.core.console import Console
from sslkit.methods import card
from sslkit.training.pretrain.pretrain import pretrain, resume
from sslkit.training.run import checkpoint

EVENTS = {"open", "os.chmod", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}
SAVES = 14
SETTINGS = {
    "model.backbone": "test_vit",
    "model.patch_size": 8,
    "data.size": 32,
    "data.workers": 0,
    "method.radius": 4.0,
    "optim.lr": 0.05,
    "schedule.epochs": 10,
    "schedule.warmup_epochs": 1.0,
    "run.batch_size": 4,
    "run.device": "cpu",
    "run.precision": "float32",
    "run.log_every": 1,
    "run.pictures": 0,
    "run.save_every": "3",
}
"""Forty steps over sixteen images on a ViT with 0.3 M weights, saved every third."""


def configuration(photos: Path, out: Path) -> PretrainConfig:
    known = card("mfm")
    own = {"data.sources": [str(photos)], "run.out": str(out)}
    return build_pretrain("mfm", known.Config, {**known.facts["defaults"], **SETTINGS, **own})


def write_photos(folder: Path) -> Path:
    folder.mkdir()
    noise = np.random.default_rng(0)
    for number in range(16):
        coarse = Image.fromarray(noise.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((40, 36), Image.Resampling.BICUBIC).save(folder / f"{number:02}.png")
    return folder


def fork(work: Callable[[], Any]) -> int:
    """A child that does `work`, silently, and ends."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        work()
        code = 0
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """Exit code of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def start(config: PretrainConfig) -> None:
    """Begin or continue; a run killed before it had settings and facts is moved aside by hand."""
    out = Path(config.run.out)
    if (out / "run.json").is_file() and (out / "config.toml").is_file():
        resume(out, Console(quiet=True))
        return
    if out.exists():
        out.rename(out.with_name(f"{out.name}-unborn-{time.monotonic_ns()}"))
    pretrain(config, Console(quiet=True))


def kill_before(operation: int, points: Path) -> None:
    """From now on in this process: SIGKILL before operation number `operation` on the run's checkpoints."""
    seen = 0

    def hook(event: str, given: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in EVENTS and isinstance(given[0], str | os.PathLike) and "/step-" in os.fspath(given[0]):
            seen += 1
            if seen == operation:
                place = os.fspath(given[0]).rpartition("/step-")[2].partition(".tmp-")
                where = f"{event} {'written' if place[1] else 'committed'} {Path(place[2] or place[0]).name}"
                points.open("a").write(f"{''.join(c for c in where if not c.isdigit())}\n")
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def begin(config: PretrainConfig, point: int | None, points: Path) -> None:
    if point is not None:
        kill_before(point, points)
    start(config)


def operations(folder: Path, config: PretrainConfig) -> int:
    """How many operations the saves of an undisturbed run are."""
    counted = folder / "operations"

    def work() -> None:
        seen = []
        sys.addaudithook(
            lambda event, given: (
                seen.append(event)
                if event in EVENTS and isinstance(given[0], str | os.PathLike) and "/step-" in str(given[0])
                else None
            )
        )
        start(config)
        counted.write_text(str(len(seen)))

    assert ended(fork(work)) == 0
    return int(counted.read_text())


def saved_moments(count: int, chance: random.Random) -> Iterator[int]:
    """Numbers of operations to kill before: all of one save in turn, in one of a process's first saves."""
    one = -(-count // SAVES)
    return (
        1 + operation + one * chance.randrange(SAVES // 3) for operation in itertools.cycle(range(one))
    )  # fmt: skip


def equal(run: Path, other: Path) -> bool:
    """Weights, optimizer and reported losses, bit for bit."""
    last = "checkpoints/step-00000040"
    for file in ("encoder.safetensors", f"{last}/model.safetensors", f"{last}/optimizer.safetensors"):
        ours, theirs = load_file(run / file), load_file(other / file)
        if ours.keys() != theirs.keys() or not all(torch.equal(ours[name], theirs[name]) for name in ours):
            return False
    lines = [(path / "metrics.jsonl").read_text().splitlines() for path in (run, other)]
    losses = [[(json.loads(line)["step"], json.loads(line)["loss"]) for line in part] for part in lines]
    return losses[0] == losses[1]


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--times", type=int, default=200, help="kills; half at random moments")
    words.add_argument("--seed", type=int, default=0)
    given = words.parse_args()
    torch.set_num_threads(1)
    chance = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as name:
        return attack(Path(name), given.times, chance)


def attack(folder: Path, times: int, chance: random.Random) -> int:
    config = configuration(write_photos(folder / "photos"), folder / "whole")
    began = time.monotonic()
    whole, count = Path(config.run.out), operations(folder, config)
    duration, points = time.monotonic() - began, folder / "points"
    points.touch()
    in_save = saved_moments(count, chance)
    kills = runs = different = lost = damaged = failed = 0
    while kills < times:
        runs += 1
        mine = replace(config, run=replace(config.run, out=str(folder / f"run-{runs}")))
        checkpoints, code = Path(mine.run.out) / "checkpoints", -1
        while code != 0:
            before = {path.name for path in checkpoint.committed(checkpoints)}
            point = next(in_save) if kills % 2 and kills < times else None
            wait = chance.uniform(0, duration) if point is None and kills < times else None
            child = fork(partial(begin, mine, point, points))
            newest = max(before, default="")
            if wait is not None:
                time.sleep(wait)
                newest = max([newest, *(path.name for path in checkpoint.committed(checkpoints))])
                os.kill(child, signal.SIGKILL)
            code = ended(child)
            kills += code == -signal.SIGKILL
            failed += code not in (0, -signal.SIGKILL)
            there = checkpoint.committed(checkpoints)
            damaged += sum(bool(checkpoint.fault(path)) for path in there)
            lost += bool(newest) and max((path.name for path in there), default="") < newest
            if code not in (0, -signal.SIGKILL):
                break
        different += code != 0 or not equal(Path(mine.run.out), whole)
    named = sorted(set(points.read_text().splitlines()))
    print(
        f"{kills} kills in {runs} runs, {len(points.read_text().splitlines())} of them inside a save, before:"
    )
    print("  " + "\n  ".join(named))
    print(f"did not resume: {failed}")
    print(f"ended with other weights, optimizer state or losses: {different} of {runs} runs")
    print(f"committed checkpoints lost: {lost}, damaged: {damaged}")
    print(f"{time.monotonic() - began:.0f} s")
    return int(bool(failed or different or lost or damaged))


if __name__ == "__main__":
    sys.exit(main())
