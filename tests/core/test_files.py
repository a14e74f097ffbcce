"""Files that appear whole."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest

from sslkit.core.config.build import PretrainConfig, read
from sslkit.core.files import read_text, replacing, write_json
from sslkit.exporting import export
from sslkit.methods import TEMPLATE, card, load
from sslkit.models.weights import load_encoder
from sslkit.training.pretrain.pretrain import pretrain
from sslkit.training.run.folder import read_configuration


def test_what_is_there_stays_until_the_new_file_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "table.md"
    file.write_text("old")
    with replacing(file) as unfinished:
        assert unfinished.parent == tmp_path
        assert unfinished.name.startswith(".")
        assert unfinished.suffix == ".md"
        unfinished.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"step": 1})

    def broken() -> None:
        with replacing(tmp_path / "a.json") as unfinished:
            unfinished.write_text('{"step"')
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert json.loads((tmp_path / "a.json").read_text()) == {"step": 1}
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "b.json"):
        pass  # nothing was written, so there is nothing to rename
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_document_keeps_its_order_and_paths_are_texts(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"z": Path("runs/a"), "a": [1, None, 2.5]})
    text = (tmp_path / "a.json").read_text()
    assert text == '{\n "z": "runs/a",\n "a": [\n  1,\n  null,\n  2.5\n ]\n}\n'


def _write(file: Path, letter: str) -> None:
    for _ in range(200):
        write_json(file, {"content": letter * 20_000})


def test_a_reader_never_sees_half_of_what_two_processes_write(tmp_path: Path) -> None:
    file, context = tmp_path / "run.json", multiprocessing.get_context("spawn")
    _write(file, "c")
    writers = [context.Process(target=_write, args=(file, letter)) for letter in "ab"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        content = json.loads(file.read_text())["content"]
        assert content == content[0] * 20_000
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_a_text_that_an_editor_has_marked(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "c.toml"
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    file.write_bytes(mark + "[run]\nout = 'läufe'\n".encode(encoding))
    assert read_text(file) == "[run]\nout = 'läufe'\n"
    assert read(str(file)) == {"run.out": "läufe"}


def test_every_file_of_a_run_that_a_person_may_save_again(
    tiny: Callable[..., PretrainConfig], tmp_path: Path
) -> None:
    run = pretrain(tiny("run"))
    for name in ("config.toml", "run.json", "config.json"):
        (run / name).write_bytes(b"\xef\xbb\xbf" + (run / name).read_bytes())
    assert load_encoder(run).name == "test_vit"
    assert read_configuration(run / "config.toml").schedule.epochs == 3
    assert export(run, tmp_path / "out").compared.endswith("of the run's images")
    method = tmp_path / "mine.py"
    method.write_bytes(b"\xef\xbb\xbf" + TEMPLATE.read_bytes())
    assert card(str(method)).Config
    assert load(str(method)).__name__ == load(str(TEMPLATE)).__name__
