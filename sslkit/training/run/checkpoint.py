"""Checkpoints that are whole or absent: safetensors and JSON, a manifest with hashes, one rename to commit.

    checkpoints/step-00012500/   model.safetensors  optimizer.safetensors  state.json  manifest.json

Written under a temporary name and flushed file by file, the manifest last; then renamed, and only then older
ones are pruned. A checkpoint counts only if every file has the size and SHA-256 that its manifest says.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sslkit.core.checkpoint_files import checkpoint_json, committed, fault
from sslkit.core.errors import UserError, first_line
from sslkit.core.files import sha256
from sslkit.models.weights import save
from sslkit.training.loop import generators
from sslkit.training.loop.optim import match_memory_
from sslkit.training.run.lock import alive
from sslkit.training.run.snapshot import Snapshot, snapshot
from sslkit.version import __version__

_FORMAT = 2
KEEP = 2
"""Verified checkpoints that stay when older ones are pruned."""

MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: lambda state: {"sslkit": "0.1", "config": {}, "micro_batch": 0, **state, "format": 2},
}
"""Format → what makes its state.json that of the next one."""


class SaveFailed(UserError):
    """A checkpoint could not be written; the ones before it are as they were."""


def bytes_needed(method: nn.Module, optimizer: str) -> int:
    """Of a run's checkpoints, the one being written among them, and of its product, before the first step.

    Args:
        optimizer: "adamw", which keeps two numbers for each weight that is trained; others keep one.
    """
    weights: int = sum(tensor.nbytes for tensor in method.state_dict().values())
    trained: int = sum(parameter.nbytes for parameter in method.parameters() if parameter.requires_grad)
    return (KEEP + 1) * (weights + trained * (2 if optimizer == "adamw" else 1)) + weights


def write(
    folder: Path, step: int, method: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> Path:
    """Commit a checkpoint for `step` finished steps; raises what `commit` raises."""
    return commit(folder, step, snapshot(method, optimizer), state)


def commit(folder: Path, step: int, content: Snapshot, state: dict[str, Any]) -> Path:
    """Write, flush, rename; then prune to the newest two that verify.

    Args:
        content: copies that are only begun are waited for.

    Raises:
        UserError: a weight is not finite; such a checkpoint would only hide the fault.
        SaveFailed: the disk is full, or refuses; nothing is left behind.
    """
    final = folder / f"step-{step:08d}"
    if final.is_dir():
        return final
    content.wait()
    broken = [name for name, tensor in content.weights.items() if _is_broken(tensor)]
    if broken:
        raise UserError(
            f"step {step}: weight {broken[0]} is not finite, so no checkpoint was written", code=1
        )
    temporary = _temporary(final)
    try:
        _fill(temporary, content, {"format": _FORMAT, "step": step, "sslkit": __version__, **state})
        temporary.rename(final)
    except (OSError, RuntimeError, SafetensorError) as problem:  # a full disk shows as any of the three
        shutil.rmtree(temporary, ignore_errors=True)
        raise _save_failed(folder, step, content.bytes, problem) from problem
    with suppress(OSError):  # committed already; what can't be flushed or pruned is no failed save
        _flush(folder)
        _prune(folder, final)
    return final


def _is_broken(tensor: torch.Tensor) -> bool:
    """Something in it is not finite; a single value may be an infinite bound, as a clamp of Gemma's is."""
    allowed = torch.isfinite(tensor) if tensor.ndim else ~torch.isnan(tensor)
    return not bool(allowed.all())


def _fill(temporary: Path, content: Snapshot, state: dict[str, Any]) -> None:
    """All files of a checkpoint, each on the disk before the next, the manifest last."""
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save(content.weights, temporary / "model.safetensors")
    save(content.rest, temporary / "optimizer.safetensors")
    _write_json(temporary / "state.json", state)
    files = {}
    for file in sorted(temporary.iterdir()):
        _flush(file)
        files[file.name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    _write_json(temporary / "manifest.json", {"format": _FORMAT, "files": files})
    _flush(temporary)


def _save_failed(folder: Path, step: int, needed: int, problem: Exception) -> SaveFailed:
    reason = (isinstance(problem, OSError) and problem.strerror) or first_line(problem)
    room = ""
    with suppress(OSError):
        room = f"; it needs {needed:,} bytes, {shutil.disk_usage(folder).free:,} are free"
    return SaveFailed(
        f"step {step} was not saved in {folder}: {reason}{room}", "make room; older checkpoints are whole", 1
    )


def _prune(folder: Path, written: Path) -> None:
    """Remove what is older than the newest two that verify; `written` was hashed a moment ago."""
    verified = 0
    for path in committed(folder):
        if verified >= KEEP:  # under a temporary name first, so that half of one never looks like a whole
            shutil.rmtree(path.rename(_temporary(path)), ignore_errors=True)
        else:
            verified += path == written or not fault(path)


def _temporary(final: Path) -> Path:
    return final.with_name(f"{final.name}.tmp-{os.getpid()}")


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and one line for each newer one that does not.

    A broken one is set aside with the ending .bad; nothing is deleted.
    """
    _sweep(folder)
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


def _sweep(folder: Path) -> None:
    """Remove what processes left behind that died while they saved."""
    for left in folder.glob("step-*.tmp-*"):
        owner = left.name.rpartition("-")[2]
        if owner.isdecimal() and not alive(int(owner)):
            shutil.rmtree(left, ignore_errors=True)


def read_state(path: Path) -> dict[str, Any]:
    """state.json in the present format, whatever format it was written in.

    Raises:
        UserError: a format that this version can't read.
    """
    state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    wrote = f"{path} has format {state['format']}, written by sslkit {state.get('sslkit', '?')}"
    if state["format"] > _FORMAT:
        problem = f"{wrote}; this is {__version__}, which reads formats up to {_FORMAT}"
        raise UserError(problem, f"install sslkit {state.get('sslkit', '')} or newer".replace("  ", " "))
    while state["format"] < _FORMAT:
        if state["format"] not in MIGRATIONS:
            raise UserError(f"{wrote}; this sslkit reads formats {min(MIGRATIONS)} to {_FORMAT}")
        state = MIGRATIONS[state["format"]](state)
    return state


def restore(path: Path, method: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put weights, optimizer state and random generators back; returns state.json."""
    state = read_state(path)
    restore_weights(path, method)
    tensors = load_file(path / "optimizer.safetensors")
    generators.restore_generators_(tensors, generators.device_of(method))
    entries: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        entries.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    match_memory_(optimizer)
    return state


def restore_weights(path: Path, method: nn.Module) -> None:
    """Put only the weights of encoder and heads back.

    Raises:
        UserError: they are another model's.
    """
    theirs, ours = load_file(path / "model.safetensors"), method.state_dict()
    differences = [
        f"{name} is {_shape(theirs.get(name))} there, {_shape(ours.get(name))} here"
        for name in sorted(theirs.keys() | ours.keys())
        if _shape(theirs.get(name)) != _shape(ours.get(name))
    ]
    if differences:
        more = f" (and {len(differences) - 2} more)" if len(differences) > 2 else ""
        raise UserError(
            f"{path} does not fit config.toml: {'; '.join(differences[:2])}{more}", "was config.toml edited?"
        )
    method.load_state_dict(theirs)


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"{list(tensor.shape)}"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(checkpoint_json(content), encoding="utf-8")
    _flush(path)


def _flush(path: Path) -> None:
    """Force a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
