"""What a step asks of a GPU, held on torch's real CUDA code over a stand-in that computes nothing.

benchmarks/gpu-rehearsal measures; the limits are here. A limit is lowered with the figures, never raised
without a reason.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

TOOL = Path(__file__).parents[2] / "benchmarks" / "gpu-rehearsal"
LIMITS = {  # ViT-S/16, 256 × 224 px: launches, of which outside the encoder, GiB that those move, peak GiB
    "mfm": (900, 150, 9, 10),
    "mae": (1400, 650, 75, 12),
    "simmim": (900, 120, 6, 10),
    "simclr": (1130, 275, 30, 19),
    "moco": (1300, 290, 31, 10.5),
    "byol": (2350, 385, 34, 19),
    "dino": (2450, 510, 75, 34),
}
WAITING = {  # files whose lines may wait, and not once a step: before the first, at log lines, with a save
    "training/pretrain/prepare.py",
    "training/run/checkpoint.py",  # --resume
    "frequency/masks.py",  # kept
    "training/loop/health.py",
    "training/run/nonfinite.py",
    "training/run/snapshot.py",
    "models/weights.py",  # the product
    "models/config_json.py",
}
CURRENT = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 14)
"""Launches are counted where they were measured: an earlier torch has other kernels."""


def lacking() -> str:
    """Why nothing can be rehearsed here; empty if it can."""
    if not sys.platform.startswith("linux"):
        return "the stand-in for CUDA is for Linux"
    if torch.version.cuda is None:
        return "this torch is no CUDA build"
    if torch.cuda.is_available():
        return "here is a GPU: benchmarks/gpu-rehearsal/gpu_check.sh"
    missing = [tool for tool in ("gcc", "nm") if shutil.which(tool) is None]
    return f"no {' and no '.join(missing)}" if missing else ""


pytestmark = pytest.mark.skipif(bool(lacking()), reason=lacking())


@pytest.fixture(scope="module")
def rehearsed(request: pytest.FixtureRequest) -> Any:
    """A script of the tool with these words → the JSON lines that it prints; one process for each choice."""
    folder = request.config.cache.mkdir("gpu-rehearsal")
    environment = {
        **os.environ,
        "GPU_REHEARSAL_CACHE": str(folder),
        "PYTHONPATH": os.pathsep.join([str(TOOL.parents[1]), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }

    @functools.cache
    def measured(script: str, *words: str) -> dict[str, dict[str, Any]]:
        command = [sys.executable, str(TOOL / script), "--json", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        return {row["name"]: row for row in rows}

    return measured


@pytest.mark.slow
def test_no_method_waits_and_none_launches_more(rehearsed: Any) -> None:
    rows = {name.split()[0]: row for name, row in rehearsed("table.py", "--only", "vit_small").items()}
    assert LIMITS.keys() < rows.keys()
    assert not {name: row["waits"] for name, row in rows.items() if row["waits"]}
    if not CURRENT:
        return
    for name, limits in LIMITS.items():
        row = rows[name]
        found = row["launches"], row["outside"], row["bytes"] / 2**30, row["peak"] / 2**30
        assert all(one <= limit for one, limit in zip(found, limits, strict=True)), (name, found, limits)


@pytest.mark.slow
def test_no_option_of_mfm_waits(rehearsed: Any) -> None:
    """Nor do two micro-batches, nor views that are cut out of images on the device."""
    rows = rehearsed("table.py", "--options")
    assert len(rows) > 15
    assert not {name: row["waits"] for name, row in rows.items() if row["waits"]}


@pytest.mark.slow
def test_a_batch_is_sent_beside_what_the_device_computes(rehearsed: Any) -> None:
    """By a stream of its own, which the usual one waits for; memory is not given away while it is read."""
    sent = rehearsed("table.py", "--options")["sending 256 × 224 px to the device"]
    assert sent["copies"] == sent["beside"] == 2
    assert sent["ordered"] == 1
    assert sent["held"] == [1, 3]  # places of three batches when the device is done, and when it still reads


@pytest.mark.slow
def test_a_save_waits_once(rehearsed: Any) -> None:
    """For all of its tensors, kernels in channels_last among them, and always into the same memory."""
    [saved] = rehearsed("saving.py", "resnet18").values()
    assert saved["tensors"] > 300
    assert saved["copies"] > 290  # the rest is the generator's state, of the CPU
    assert saved["waits"] == 1
    assert saved["equal"]
    first, second = saved["pinned"]
    assert first == second
    if CURRENT:
        assert saved["bytes"] <= first < 1.2 * saved["bytes"]


@pytest.mark.slow
def test_whole_commands_run_and_go_on_where_memory_runs_out(rehearsed: Any) -> None:
    """pretrain, with too little memory for the batch from the second step on; --resume; probe."""
    rows = rehearsed("commands.py")
    assert {name: row["status"] for name, row in rows.items()} == {"pretrain": 0, "resume": 0, "probe": 0}
    assert [row["step"] for row in rows.values()] == [2, 4, 4]
    if CURRENT:  # cuDNN, or with an earlier torch its own convolutions, which take more
        assert {row["at once"] for row in rows.values()} == {8}
    assert all(0 < row["at once"] < 16 for row in rows.values())
    for name in ("pretrain", "resume"):
        lines = {
            line.partition(": ")[2].partition(":")[0]: count for line, count in rows[name]["waits"].items()
        }
        assert {line.removeprefix("sslkit/") for line in lines} <= WAITING, name
        assert lines["sslkit/training/run/snapshot.py"] == 2, name  # one for each of its saves
