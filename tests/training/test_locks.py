"""Two processes never write into one run, and a dead one does not block it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sslkit.core.config.build import PretrainConfig
from sslkit.core.console import Console
from sslkit.core.errors import UserError
from sslkit.training.pretrain.pretrain import pretrain, resume
from sslkit.training.run.lock import LOCK_FILE, alive, locked

Tiny = Callable[..., PretrainConfig]
QUIET = Console(quiet=True)


def hold(folder: Path, **facts: object) -> None:
    (folder / LOCK_FILE).write_text(
        json.dumps({"pid": 1, "host": os.uname().nodename, "started": "x", **facts})
    )


def gone() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_the_lock_names_its_process_and_goes_with_it(tmp_path: Path) -> None:
    with locked(tmp_path, QUIET):
        holder = json.loads((tmp_path / LOCK_FILE).read_text())
        assert (holder["pid"], holder["host"]) == (os.getpid(), os.uname().nodename)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError), locked(tmp_path, QUIET):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_second_one_is_refused_by_pid_and_host(tmp_path: Path) -> None:
    with locked(tmp_path, QUIET):
        before = (tmp_path / LOCK_FILE).read_bytes()
        with (
            pytest.raises(
                UserError, match=f"in use by process {os.getpid()} on {os.uname().nodename}"
            ) as error,
            locked(tmp_path, QUIET),
        ):
            pass
        assert error.value.code == 2
        assert (tmp_path / LOCK_FILE).read_bytes() == before


@pytest.mark.parametrize("kind", ["dead", "another process with its number", "empty", "not JSON"])
def test_what_a_dead_process_left_is_taken_over(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hold(tmp_path, pid=gone())
    if kind == "another process with its number":
        hold(tmp_path, pid=os.getpid(), birth="1")
    if kind in ("empty", "not JSON"):
        (tmp_path / LOCK_FILE).write_text({"empty": "", "not JSON": '{"pid": 12'}[kind])
    with locked(tmp_path, Console()):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert "taking over the lock of process" in capsys.readouterr().err


def test_another_host_can_t_be_seen_and_is_never_taken_over(tmp_path: Path) -> None:
    hold(tmp_path, pid=gone(), host="node-far-away")
    with pytest.raises(UserError, match="on node-far-away") as error, locked(tmp_path, QUIET):
        pass
    assert error.value.hint.endswith(f"delete {tmp_path / LOCK_FILE}")


def test_alive() -> None:
    assert alive(os.getpid())
    assert alive(1)
    assert not alive(gone())
    assert not alive(os.getpid(), "1")
    assert not any(map(alive, (0, -1, None, "12")))


RACE = """
import sys, time
from pathlib import Path
from sslkit.core.console import SILENT
from sslkit.core.errors import UserError
from sslkit.training.run.lock import locked
folder = Path(sys.argv[1])
while not (folder.parent / "go").exists():
    pass
try:
    with locked(folder, SILENT):
        time.sleep(1.5)
        print("had it")
except UserError as problem:
    print("refused")
"""


@pytest.mark.slow
def test_of_six_that_find_a_dead_lock_at_once_one_gets_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    hold(folder, pid=gone())
    line = [sys.executable, "-c", RACE, str(folder)]
    children = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    (tmp_path / "go").touch()
    said = [child.communicate(timeout=120)[0].strip() for child in children]
    assert sorted(said) == ["had it"] + ["refused"] * 5


# ---------------------------------------------------------------------------------------- runs and locks


def test_training_holds_the_lock_and_nobody_else_gets_in(tiny: Tiny) -> None:
    config, tried = tiny("run"), []

    class Second(Console):
        def event(self, document: object) -> None:
            for work in (
                lambda: pretrain(config),
                lambda: pretrain(config, overwrite=True),
                lambda: resume(run),
            ):
                with pytest.raises(UserError, match=rf"run is in use by process {os.getpid()} on"):
                    work()
                tried.append(1)

    run = Path(config.run.out)
    pretrain(config, Second(quiet=True))
    assert len(tried) == 36
    assert not (run / LOCK_FILE).exists()


def test_overwrite_moves_aside(tiny: Tiny, tmp_path: Path) -> None:
    first = {}
    for number in (1, 2):
        pretrain(tiny("run", **{"run.seed": number}), overwrite=True)
        first[number] = (tmp_path / "run/encoder.safetensors").read_bytes()
    pretrain(tiny("run"), overwrite=True)
    assert (tmp_path / "run-old-1/encoder.safetensors").read_bytes() == first[1]
    assert (tmp_path / "run-old-2/encoder.safetensors").read_bytes() == first[2]
    (tmp_path / "precious").mkdir()
    with pytest.raises(UserError, match="precious exists and is no run"):
        pretrain(tiny("precious"), overwrite=True)


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("file/run", "Not a directory"),
        ("n" * 300, "File name too long"),
        ("/".join(["deep" * 50] * 20), "File name too long"),
        ("/proc/run", "can't create /proc/run: /proc: "),
    ],
)
def test_a_place_that_can_t_hold_a_run_is_refused_before_the_model(
    tiny: Tiny, tmp_path: Path, out: str, reason: str
) -> None:
    (tmp_path / "file").write_text("")
    # A backbone that does not exist would be refused next: the place comes first.
    with pytest.raises(UserError, match=reason) as error:
        pretrain(tiny("run", **{"run.out": str(tmp_path / out), "model.backbone": "no_such_backbone"}))
    assert error.value.code == 2
