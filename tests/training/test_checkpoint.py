"""A checkpoint is whole or absent, and what is damaged is never used."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sslkit.core.errors import UserError
from sslkit.training.run import checkpoint

FILES = ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]


def trained(steps: int, seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model and its AdamW after some steps, with batch norm's integer buffer among the weights."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        model(torch.randn(5, 3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def write(folder: Path, step: int) -> Path:
    model, optimizer = trained(step)
    return checkpoint.write(folder, step, model, optimizer, {"images_seen": step * 5})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_is_four_files_with_their_hashes(tmp_path: Path) -> None:
    path = write(tmp_path, 3)
    assert names(tmp_path) == ["step-00000003"]
    assert names(path) == FILES
    manifest = json.loads((path / "manifest.json").read_text())
    assert sorted(manifest["files"]) == FILES[1:]
    for name, facts in manifest["files"].items():
        content = (path / name).read_bytes()
        assert facts == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    state = json.loads((path / "state.json").read_text())
    assert (state["step"], state["images_seen"]) == (3, 15)
    assert checkpoint.fault(path) == ""


def test_what_is_restored_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    model, optimizer = trained(3)
    path = checkpoint.write(tmp_path, 3, model, optimizer, {})
    random_next = torch.randn(2)
    other, other_optimizer = trained(0, seed=9)
    assert checkpoint.restore(path, other, other_optimizer)["step"] == 3
    assert torch.equal(torch.randn(2), random_next)  # the generator's state came back too
    for twin, twin_optimizer in ((model, optimizer), (other, other_optimizer)):
        torch.manual_seed(5)
        twin(torch.randn(5, 3)).square().mean().backward()
        twin_optimizer.step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            assert torch.equal(value, other_optimizer.state_dict()["state"][index][key]), key


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10, 300):
        write(tmp_path, step)
    assert names(tmp_path) == ["step-00000010", "step-00000300"]
    assert checkpoint.newest(tmp_path) == (tmp_path / "step-00000300", [])


def test_the_same_step_is_written_once(tmp_path: Path) -> None:
    path = write(tmp_path, 2)
    before = (path / "manifest.json").stat().st_mtime_ns
    assert write(tmp_path, 2) == path
    assert (path / "manifest.json").stat().st_mtime_ns == before


def test_nothing_there_is_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) == (None, [])
    assert checkpoint.newest(tmp_path / "missing") == (None, [])


def test_half_written_ones_do_not_count_and_do_not_hinder(tmp_path: Path) -> None:
    whole = write(tmp_path, 1)
    for left_behind in ("step-00000002.tmp-1", f"step-00000003.tmp-{os.getpid()}"):
        shutil.copytree(whole, tmp_path / left_behind)
    assert checkpoint.newest(tmp_path) == (whole, [])
    third = write(tmp_path, 3)  # its own left-over gives way
    assert checkpoint.newest(tmp_path) == (third, [])


def flip(file: Path, position: int, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1 << bit
    file.write_bytes(content)


@pytest.mark.parametrize("file", FILES[1:])
def test_any_flipped_bit_is_found(tmp_path: Path, file: str) -> None:
    path = write(tmp_path, 1)
    content = (path / file).read_bytes()
    chance = random.Random(0)
    for position in [0, len(content) - 1, *(chance.randrange(len(content)) for _ in range(20))]:
        flip(path / file, position, chance.randrange(8))
        assert checkpoint.fault(path) == f"{file} has another SHA-256"
        (path / file).write_bytes(content)
    assert checkpoint.fault(path) == ""


def test_any_flipped_bit_of_the_manifest_is_found_or_harmless(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    content = (path / "manifest.json").read_bytes()
    files = json.loads(content)["files"]
    for position in range(len(content)):
        flip(path / "manifest.json", position, position % 8)
        if checkpoint.fault(path) == "":
            assert json.loads((path / "manifest.json").read_bytes())["files"] == files
        (path / "manifest.json").write_bytes(content)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["missing", "emptied", "truncated", "longer"])
def test_a_damaged_one_is_set_aside_and_the_one_before_used(tmp_path: Path, file: str, damage: str) -> None:
    before, after = write(tmp_path, 1), write(tmp_path, 2)
    content = (after / file).read_bytes()
    if damage == "missing":
        (after / file).unlink()
    else:
        changed = {"emptied": b"", "truncated": content[:-3], "longer": content + b"x"}[damage]
        (after / file).write_bytes(changed)
    found, notices = checkpoint.newest(tmp_path)
    assert found == before
    assert len(notices) == 1
    assert notices[0].startswith("checkpoint step-00000002 is damaged (")
    assert file in notices[0]
    assert notices[0].endswith("set aside as step-00000002.bad")
    assert names(tmp_path) == ["step-00000001", "step-00000002.bad"]  # nothing is deleted


def test_several_damaged_ones(tmp_path: Path) -> None:
    for round_ in range(3):  # the same step, damaged again after each resume
        (write(tmp_path, 2) / "state.json").write_text("{}")
        found, notices = checkpoint.newest(tmp_path)
        assert (found, len(notices)) == (None, 1), round_
    assert names(tmp_path) == ["step-00000002.bad", "step-00000002.bad-2", "step-00000002.bad-3"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_never_written(tmp_path: Path, value: float) -> None:
    before = write(tmp_path, 1)
    model, optimizer = trained(2)
    with torch.no_grad():
        model[1].running_mean[2] = value  # type: ignore[index, union-attr]
    with pytest.raises(UserError, match=r"step 2: weight 1\.running_mean is not finite") as error:
        checkpoint.write(tmp_path, 2, model, optimizer, {})
    assert error.value.code == 1
    assert names(tmp_path) == [before.name]


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    (path / "state.json").write_text(json.dumps({"format": 99, "step": 1}))
    with pytest.raises(UserError, match="format 99"):
        checkpoint.restore(path, *trained(0))


def test_files_obey_the_umask_and_hold_no_pickle(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        path = write(tmp_path, 1)
    finally:
        os.umask(mask)
    for file in path.iterdir():
        assert file.stat().st_mode & 0o777 == 0o640, file.name
        assert file.suffix in (".json", ".safetensors")
    assert set(load_file(path / "model.safetensors")) == set(trained(1)[0].state_dict())


def test_a_newer_format_says_who_wrote_it(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    (path / "state.json").write_text(json.dumps({"format": 3, "step": 1, "sslkit": "7.1"}))
    with pytest.raises(
        UserError, match=r"format 3, written by sslkit 7\.1; .* reads formats up to 2"
    ) as error:
        checkpoint.restore(path, *trained(0))
    assert error.value.hint == "install sslkit 7.1 or newer"
    (path / "state.json").write_text(json.dumps({"format": 0, "step": 1}))
    with pytest.raises(UserError, match="this sslkit reads formats 1 to 2"):
        checkpoint.restore(path, *trained(0))


def test_another_model_is_told_by_its_first_differences(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    other = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    with pytest.raises(UserError) as error:
        checkpoint.restore_weights(path, other)
    assert "0.bias is [4] there, [5] here; 0.weight is [4, 3] there, [5, 3] here (and 4 more)" in str(
        error.value
    )
    assert error.value.code == 2


def test_pruning_counts_only_what_verifies(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (write(tmp_path, 2) / "state.json").write_text("{}")
    write(tmp_path, 3)
    assert names(tmp_path) == ["step-00000001", "step-00000002", "step-00000003"]
    write(tmp_path, 4)
    assert names(tmp_path) == ["step-00000003", "step-00000004"]


def test_left_overs_go_when_their_process_has(tmp_path: Path) -> None:
    whole = write(tmp_path, 1)
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    for pid in (process.pid, os.getppid(), os.getpid()):
        shutil.copytree(whole, tmp_path / f"step-00000002.tmp-{pid}")
    checkpoint.newest(tmp_path)
    kept = {"step-00000001", f"step-00000002.tmp-{os.getppid()}", f"step-00000002.tmp-{os.getpid()}"}
    assert set(names(tmp_path)) == kept


def test_order_is_that_of_steps_whatever_the_clock_says(tmp_path: Path) -> None:
    for step, seconds in ((9, 2_000_000_000), (10, 0)):
        os.utime(write(tmp_path, step), (seconds, seconds))
    assert checkpoint.newest(tmp_path)[0] == tmp_path / "step-00000010"
