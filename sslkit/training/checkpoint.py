"""Checkpoints that are whole or absent: safetensors and JSON, a manifest with hashes, one rename to commit.

    checkpoints/step-00012500/   model.safetensors  optimizer.safetensors  state.json  manifest.json

Written under a temporary name and flushed file by file, the manifest last; then renamed, and only then older
ones are pruned. A checkpoint counts only if every file has the size and SHA-256 that its manifest says.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sslkit.errors import UserError
from sslkit.weights import save, sha256

FORMAT = 1
KEEP = 2


def write(
    folder: Path, step: int, method: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> Path:
    """Commit a checkpoint for `step` finished steps, then prune to the newest two.

    Raises:
        UserError: a weight is not finite; such a checkpoint would only hide the fault.
    """
    final = folder / f"step-{step:08d}"
    if final.is_dir():
        return final
    weights = method.state_dict()
    broken = [name for name, tensor in weights.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise UserError(
            f"step {step}: weight {broken[0]} is not finite, so no checkpoint was written", code=1
        )
    temporary = folder / f"{final.name}.tmp-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save(weights, temporary / "model.safetensors")
    save({**_optimizer_tensors(optimizer), **_generator_states()}, temporary / "optimizer.safetensors")
    _write_json(temporary / "state.json", {"format": FORMAT, "step": step, **state})
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)}
        for file in sorted(temporary.iterdir())
    }
    for name in files:
        _flush(temporary / name)
    _write_json(temporary / "manifest.json", {"format": FORMAT, "files": files})
    temporary.rename(final)
    _flush(folder)
    for old in committed(folder)[KEEP:]:
        shutil.rmtree(old)
    return final


def committed(folder: Path) -> list[Path]:
    """Checkpoints by name, newest first, verified or not."""
    return sorted((path for path in folder.glob("step-????????") if path.is_dir()), reverse=True)


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and one line for each newer one that does not.

    A broken one is set aside with the ending .bad; nothing is deleted.
    """
    for left in folder.glob("step-*.tmp-*"):  # of a process that died while it saved
        shutil.rmtree(left, ignore_errors=True)
    notices: list[str] = []
    for path in committed(folder):
        problem = fault(path)
        if not problem:
            return path, notices
        aside = path.with_suffix(".bad")
        number = 2
        while aside.exists():
            aside, number = path.with_suffix(f".bad-{number}"), number + 1
        path.rename(aside)
        notices.append(f"checkpoint {path.name} is damaged ({problem}); set aside as {aside.name}")
    return None, notices


def whole(folder: Path) -> Path | None:
    """The newest checkpoint that verifies; changes nothing, so that a running run can be looked at."""
    return next((path for path in committed(folder) if not fault(path)), None)


def fault(path: Path) -> str:
    """Why a checkpoint can't be trusted; empty if it can."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        for name, facts in manifest["files"].items():
            if not (path / name).is_file():
                return f"{name} is missing"
            if (path / name).stat().st_size != facts["bytes"]:
                return f"{name} has {(path / name).stat().st_size} bytes, not {facts['bytes']}"
            if sha256(path / name) != facts["sha256"]:
                return f"{name} has another SHA-256"
    except (OSError, ValueError, KeyError, TypeError) as problem:
        return f"manifest.json: {problem!r}"
    return ""


def restore(path: Path, method: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put weights, optimizer state and random generators back; returns state.json."""
    state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if state["format"] != FORMAT:
        raise UserError(f"{path} has format {state['format']}, this sslkit reads {FORMAT}")
    restore_weights(path, method)
    tensors = load_file(path / "optimizer.safetensors")
    torch.set_rng_state(tensors.pop("generator.cpu"))
    if (cuda := tensors.pop("generator.cuda", None)) is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)
    entries: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        entries.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    return state


def restore_weights(path: Path, method: nn.Module) -> None:
    """Put only the weights of encoder and heads back.

    Raises:
        UserError: they are another model's.
    """
    try:
        method.load_state_dict(load_file(path / "model.safetensors"))
    except RuntimeError as problem:
        first = str(problem).splitlines()[1].strip() if "\n" in str(problem) else str(problem)
        raise UserError(f"{path} does not fit config.toml: {first}", "was config.toml edited?") from None


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The per-parameter state as "index.key" → tensor; the groups are rebuilt from the configuration."""
    entries = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": torch.as_tensor(value)
        for index, state in entries.items()
        for key, value in state.items()
    }


def _generator_states() -> dict[str, Tensor]:
    states = {"generator.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["generator.cuda"] = torch.cuda.get_rng_state()
    return states


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    _flush(path)


def _flush(path: Path) -> None:
    """Force a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
