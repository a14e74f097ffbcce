"""The run folder: one place for everything a run leaves behind, never an existing one.

config.toml  run.json  metrics.jsonl  log.txt  skipped.tsv  encoder.safetensors  config.json
checkpoints/  pictures/  report.html  images.jsonl.gz  nonfinite.jsonl  run.lock (while it trains)
"""

from __future__ import annotations

import errno
import json
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch

from sslkit.core.checkpoint_files import whole
from sslkit.core.config import build as configuration
from sslkit.core.config.build import PretrainConfig
from sslkit.core.config.setting import AUTO
from sslkit.core.console import command, counted
from sslkit.core.errors import UserError, nearest_path
from sslkit.core.files import replacing, write_json
from sslkit.core.paths import claim_folder, make_folder, next_folder, refuse_unwritable
from sslkit.core.value_range import as_set
from sslkit.data.sources.image_set import ImageSet
from sslkit.methods import configuration as method_configuration
from sslkit.methods import load
from sslkit.methods.base import Info, Method
from sslkit.models.encoder import Encoder
from sslkit.models.memories import EpochOrder
from sslkit.models.weights import ENCODER_FILE, is_finetuning, write_encoder
from sslkit.training.run import checkpoint
from sslkit.training.run.lock import refuse_if_locked
from sslkit.version import __version__

_FORMAT = 1
ROOM = "choose an --out on another disk, or make room"
RUNS = Path("runs")
"""Where runs go that nobody has named a folder for."""


class RunFolder:
    """Files of one run. `create` makes a new folder, `open` takes an existing one.

    With several processes only the first one writes there: for the others `writes` is False.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self.writes = path, writes

    @classmethod
    def create(cls, path: Path, overwrite: bool = False) -> RunFolder:
        """A new, empty run folder; with `overwrite` a run that is there moves aside, to PATH-old-N.

        Raises:
            UserError: it exists, or can't be written.
        """
        refuse(path, overwrite)
        if overwrite and path.exists():
            _move_aside(path)
        return cls._filled(make_folder(path))

    @classmethod
    def claim(cls, parent: Path, stem: str) -> RunFolder:
        """A new, empty run folder PARENT/STEM-N, under a number that no other command gets."""
        return cls._filled(claim_folder(parent, stem))

    @classmethod
    def _filled(cls, path: Path) -> RunFolder:
        (path / "checkpoints").mkdir()
        (path / "pictures").mkdir()
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        cure = "give a folder such as runs/mfm-…-1"
        if is_finetuning(path):
            cure = f"it is a fine-tuning: {command('sslkit', 'finetune', '--resume', path)}"
            raise UserError(f"{path} is not a pre-training run", cure)
        if not (path / "run.json").is_file() or not (path / "config.toml").is_file():
            problem = f"{path} is not a run: no run.json and config.toml there"
            raise UserError(problem, nearest_path(path, cure))
        run = cls(path)
        if run.facts.get("kind") != "pretrain":
            raise UserError(f"{path} is not a pre-training run", cure)
        data = run.facts.get("data")
        if not isinstance(data, dict) or not {"count", "fingerprint", "native"} <= set(data):
            raise UserError(f"{path / 'run.json'} does not tell of the run's images", "was it edited?")
        return run

    @property
    def facts(self) -> dict[str, Any]:
        """run.json."""
        try:
            facts: dict[str, Any] = json.loads((self.path / "run.json").read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError) as problem:
            raise UserError(f"{self.path / 'run.json'} can't be read: {problem}") from None
        if not isinstance(facts, dict):
            raise UserError(f"{self.path / 'run.json'} is not that of a run")
        return facts

    def update(self, **facts: Any) -> None:
        """Change run.json, as a whole, so that a reader never sees half of it."""
        if not self.writes:
            return
        old = self.facts if (self.path / "run.json").is_file() else {}
        heartbeat = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        write_json(self.path / "run.json", {**old, **facts, "heartbeat": heartbeat})

    def log(self, metrics: Mapping[str, float | None]) -> dict[str, float | None]:
        """Write one line of metrics.jsonl, and return it: six digits, NaN (a task absent) as null."""
        line = rounded(metrics)
        self.append("metrics.jsonl", json.dumps(line))
        return line

    def append(self, name: str, line: str) -> None:
        """Add a line to one of the run's files, whole or, where the disk is full, not at all (OSError)."""
        if not self.writes:
            return
        content = f"{line}\n".encode()
        with (self.path / name).open("ab", buffering=0) as file:
            before = file.tell()
            try:
                if file.write(content) != len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(before)
                raise

    def forget_after(self, step: int) -> None:
        """Drop the lines of later steps: a resumed run writes them again."""
        for name in ("metrics.jsonl", "nonfinite.jsonl"):
            file = self.path / name
            if not file.is_file():
                continue
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = "".join(f"{line}\n" for line in lines if _step_of(line) <= step)
            with replacing(file) as unfinished:
                unfinished.write_text(kept, encoding="utf-8")

    def finish(self, encoder: Encoder, metadata: dict[str, str]) -> None:
        """Write the product, in the names and with the config.json that timm opens."""
        write_encoder(encoder, self.path, ENCODER_FILE, metadata)


def refuse(path: Path, overwrite: bool = False) -> None:
    """Whatever would hinder a run there, told before any work.

    Raises:
        UserError: it exists, is in use, is too long a name, or no place where this process may write.
    """
    refuse_unwritable(path)
    refuse_if_locked(path)
    if (path / "run.json").is_file():
        if not overwrite:
            cure = f"continue it with {command('--resume', path)}"
            raise UserError(
                f"{path} exists", f"{cure}, choose another --out, or --overwrite to move it aside"
            )
    elif os.path.lexists(path):
        cure = "choose another folder; nothing is overwritten"
        raise UserError(f"{path} exists" + (" and is no run" if overwrite else ""), cure)


def refuse_place(out: str, overwrite: bool = False) -> None:
    """`refuse` for the setting `run.out`; where it is auto, whether a run can lie below runs/."""
    if out == AUTO:
        refuse_unwritable(RUNS / "run-1", "--out")
    else:
        refuse(Path(out), overwrite)


@contextmanager
def begun(run: RunFolder) -> Iterator[RunFolder]:
    """Inside is written what stands in a new run's folder before the first step: all of it, or none stays.

    Raises:
        UserError: the disk refuses.
    """
    try:
        yield run
    except BaseException as problem:
        shutil.rmtree(run.path, ignore_errors=True)
        if not isinstance(problem, OSError):
            raise
        reason = problem.strerror or problem
        raise UserError(f"{run.path}: {reason}", "make room, or choose another --out", code=1) from None


def _move_aside(path: Path) -> None:
    """A run that is there becomes PATH-old-N."""
    try:
        path.rename(next_folder(path.parent, f"{path.name}-old"))
    except OSError as problem:  # another command was faster, or the folder above is read-only
        raise UserError(f"{path} can't be moved aside: {problem.strerror}", "choose another --out") from None


def read_configuration(path: Path) -> PretrainConfig:
    """The complete configuration of a run or of any pretrain TOML file."""
    values = configuration.read(str(path))
    name = str(values.pop("method.name", "mfm"))
    return method_configuration(name, values)


def describe(images: ImageSet, info: Info, device: torch.device) -> dict[str, Any]:
    """The facts of run.json that do not change while it runs."""
    return {
        "format": _FORMAT,
        "kind": "pretrain",
        "command": command("sslkit", *sys.argv[1:]) if _is_command_line() else "",
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "data": {
            "name": images.name,
            "count": len(images),
            "items": info.count,
            "fingerprint": images.fingerprint,
            "native": info.native,
            "range": images.range.setting(),
            "nodata": list(images.range.nodata),
        },
        "versions": {
            "sslkit": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
        },
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type}, {counted(torch.get_num_threads(), 'thread')}",
    }


def build_method(config: PretrainConfig, info: Info) -> Method:
    """The method and its encoder with fresh weights, from a resolved configuration."""
    torch.manual_seed(config.run.seed)
    method = load(config.method_name)(config.method, build_encoder(config), info)
    if method.plans_epochs():
        method.add_module("epoch_order", EpochOrder(info.count))
    return method


def build_encoder(config: PretrainConfig) -> Encoder:
    """The encoder with fresh weights, from a resolved configuration."""
    model = config.model
    encoder = Encoder(
        model.backbone,
        config.data.size,
        patch_size=model.patch_size or None,
        heads=model.heads or None,
        stem=model.stem,
    )
    encoder.range = as_set(config.data)
    return encoder


def load_method(path: Path) -> Method:
    """The method of a run with its heads, from the newest whole checkpoint, in evaluation mode.

    Raises:
        UserError: not a run, or one that has saved nothing yet.
    """
    run = RunFolder.open(Path(path))
    found = whole(run.path / "checkpoints")
    if found is None:
        cure = command("sslkit", "pretrain", "--resume", path)
        raise UserError(f"run {path} has saved nothing yet", f"train on: {cure}")
    config, data = read_configuration(run.path / "config.toml"), run.facts["data"]
    method = build_method(config, Info(data.get("items", data["count"]), config.data.size, data["native"]))
    checkpoint.restore_weights(found, method)
    return method.eval()


def _is_command_line() -> bool:
    """Called by the console script or `python -m sslkit`, not from somebody's program."""
    return Path(sys.argv[0]).name in ("sslkit", "sslkit.exe") or Path(sys.argv[0]).parent.name == "sslkit"


def rounded(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    """Figures as they are written: six digits, NaN (a task absent) as null."""
    return {name: _short(value) for name, value in metrics.items()}


def _short(value: float | None) -> float | None:
    """Whole numbers as they are, others with six significant digits, none if not finite."""
    if value is None or isinstance(value, int):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 1 << 62  # a line cut off by a crash is dropped too
