"""sslkit doctor: what it finds, what it says of a broken environment, and the run that it kills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from sslkit import api
from sslkit.cli import app
from sslkit.testing.doctor import broken_import, machine, operations, packages

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("version", "wanted", "well"),
    [
        ("2.15.0+cu132", ">=2.6", True),
        ("2.5.1", ">=2.6", False),
        ("2.6", ">=2.6.0", True),
        ("2.6.0", ">=2.6", True),
        ("10.3", ">=10.3,<11", True),
        ("11.0", ">=10.3,<11", False),
        ("1.0.9", ">=1.0.26", False),
        ("1.0.26.dev0", ">=1.0.26", True),
        ("3.11.7", "", True),
    ],
)
def test_version_against_bounds(version: str, wanted: str, well: bool) -> None:
    assert packages.within(version, wanted) == well


def test_bounds_are_those_of_the_project() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = packages.bounds()
    assert wanted["python"].replace(" ", "") == project["requires-python"]
    for name in packages.PACKAGES:
        assert f"{name}{wanted[name.lower()]}" in project["dependencies"]


@pytest.mark.parametrize(
    ("torch_version", "torchvision", "wants", "reason"),
    [
        ("2.15.0+cu132", "0.30.0+cu132", "2.15.0", ""),
        ("2.15.0+cpu", "0.30.0+cu132", "2.15.0", "different builds (cpu and cu132)"),
        ("2.15.0+cpu", "0.29.0+cpu", "2.14.1", "was built for torch 2.14.1"),
        ("2.15.0", "0.30.0", "", ""),
        ("2.15.0+cpu", "0.30.0", "2.15", ""),  # a build that doesn't tell its kind
    ],
)
def test_mismatched_pair(torch_version: str, torchvision: str, wants: str, reason: str) -> None:
    found = packages.mismatch(torch_version, torchvision, wants)
    assert reason in found
    assert bool(reason) == bool(found)


def test_builds_are_read_without_importing() -> None:
    assert packages._builds()[0] == torch.__version__
    program = (
        "import sys; from sslkit.testing.doctor import packages; "
        "packages._builds(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def broken_environment(folder: Path) -> dict[str, str]:
    """A torchvision that fails as the CUDA build does beside a CPU build of torch."""
    (folder / "torchvision").mkdir(parents=True)
    (folder / "torchvision/version.py").write_text("__version__ = '0.29.0+cu999'\n")
    failure = 'raise RuntimeError("operator torchvision::nms does not exist")\n'
    (folder / "torchvision/__init__.py").write_text(failure)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


@pytest.mark.slow
def test_a_broken_pair_is_explained(tmp_path: Path) -> None:
    environment = broken_environment(tmp_path / "site")
    for words, code in ((["doctor"], 1), (["pretrain", "fractal:8"], 2)):
        done = subprocess.run(
            [sys.executable, "-m", "sslkit", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        told = done.stdout + done.stderr
        assert done.returncode == code, told
        assert "operator torchvision::nms does not exist" in told
        assert "pip install --force-reinstall torch torchvision" in told
        assert "Traceback" not in told
    assert len(done.stderr.splitlines()) == 2


def test_other_problems_stay_bugs() -> None:
    assert broken_import(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert broken_import(ImportError("No module named 'yacs'")) is None
    assert broken_import(RuntimeError("operator torchvision::nms does not exist")) is not None


def test_a_missing_package_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "PACKAGES", ("no-such-package",))
    found = {finding.name: finding for finding in packages.package_findings()}
    assert found["no-such-package"].state == "error"
    assert "pip install" in found["no-such-package"].cure


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_core_limit(tmp_path: Path, files: dict[str, str], cores: float | None) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert machine.core_limit(tmp_path) == cores


def test_a_wrong_fft_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.fft_finding(torch.device("cpu")).state == "ok"
    right = torch.fft.rfft2
    monkeypatch.setattr(torch.fft, "rfft2", lambda images: right(images) * 1.0001)
    assert machine.fft_finding(torch.device("cpu")).state == "error"
    monkeypatch.setattr(torch.fft, "rfft2", lambda images: right(images).conj())
    assert machine.fft_finding(torch.device("cpu")).state == "error"


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    assert machine._disk(tmp_path / "not" / "yet").state in ("ok", "warning")
    assert Path("/proc").is_dir() is not (machine._disk(Path("/proc/runs")).state == "ok")


def test_every_part_is_looked_at() -> None:
    names = {finding.name for finding in api.doctor()}
    wanted = {"python", *packages.PACKAGES, "torch pair", "imports", "cpu", "FFT cpu", "auto"}
    assert wanted | {"cores", "disk", "locale"} <= names


@pytest.mark.parametrize("json_wanted", [False, True])
def test_command(
    json_wanted: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sslkit", "doctor", *(["--json"] if json_wanted else [])])
    with pytest.raises(SystemExit) as ended:
        app.main()
    out, err = capsys.readouterr()
    assert err == ""
    if json_wanted:
        document = json.loads(out)
        states = [finding["state"] for finding in document["findings"]]
        assert document["errors"] == states.count("error")
    else:
        states = [line.split()[0] for line in out.splitlines()]
        assert f"numpy        {metadata.version('numpy')}" in out
    assert set(states) <= {"ok", "warning", "error"}
    assert ended.value.code == int("error" in states)


@pytest.mark.slow
def test_train_kill_resume_compare_export_reload() -> None:
    from sslkit.testing.doctor.selftest import selftest_findings

    found = list(selftest_findings())
    assert [finding.name for finding in found] == [
        "train",
        "kill -9",
        "resume",
        "compare",
        "export",
        "reload",
    ]
    assert {finding.state for finding in found} == {"ok"}, found


def test_versions_that_the_suite_passed_with_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = packages._tested()
    for name in packages.PACKAGES:
        assert f"{name} {packages.NEWEST_TESTED[name]}" in found.text
        assert f"{name} {packages.OLDEST_TESTED[name]}" in found.text
    monkeypatch.setitem(packages.NEWEST_TESTED, "torch", "2.5")
    assert f"newer here: torch {torch.__version__.split('+')[0]}" in packages._tested().text


def test_operations_of_a_device_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that lacks one or computes other values is told."""
    cpu = torch.device("cpu")
    assert operations.operations_finding(cpu).state == "ok"
    lacking = operations.operations_finding(torch.device("meta"))  # where no value is
    assert lacking.state == "error"
    assert "keyed draws: " in lacking.text
    monkeypatch.setattr(operations, "to_device", lambda batch, device: {"image": batch["image"] + 1})
    assert operations.operations_finding(cpu).text == "copies: other values than on the CPU"
