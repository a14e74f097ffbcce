"""Tables and lists as people's programs write them, and class names of any bytes wherever they are told."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from sslkit import api
from sslkit.core.console import Console, as_json, named, readable
from sslkit.core.errors import UserError
from sslkit.data.sources.image_set import open_images
from sslkit.data.sources.labels import open_labelled
from sslkit.data.sources.tables import lines_of, one_spelling, read_table
from sslkit.evaluation.embedding.gallery import class_names
from sslkit.visualization.figures.style import Sheet, plain


@pytest.fixture
def images(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for number in range(8):
        Image.fromarray(draw.integers(0, 255, (36, 40, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    return tmp_path


ROWS = [(f"{number}.png", "café" if number % 2 else "thé, vert") for number in range(8)]


def text(separator: str, space: str = "", header: str = "path,label") -> str:
    rows = [header.replace(",", separator + space)]
    return "\n".join([*rows, *(f'{path}{separator}{space}"{label}"' for path, label in ROWS)]) + "\n"


WRITTEN = {
    "commas": text(",").encode(),
    "spaces after commas": text(",", " ").encode(),
    "semicolons": text(";").encode(),
    "tabs": text("\t").encode(),
    "bars": text("|").encode(),
    "a spreadsheet's first line": ("sep=;\n" + text(";")).encode(),
    "a mark": text(";").encode("utf-8-sig"),
    "UTF-16": text("\t").encode("utf-16"),
    "UTF-16, high byte first": b"\xfe\xff" + text(",").encode("utf-16-be"),
    "UTF-16 without a mark": text(",").encode("utf-16-le"),
    "UTF-16 without a mark, high byte first": text(",").encode("utf-16-be"),
    "UTF-32": text(",").encode("utf-32"),
    "capitals": text(";", header=" Path,LABEL ").encode(),
    "lines of Windows, some empty": text(";").replace("\n", "\r\n\r\n").encode(),
    "lines of an old Mac": text(",").replace("\n", "\r").encode(),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_table_is_the_same_however_it_was_written(images: Path, kind: str) -> None:
    table = images / "a.csv"
    table.write_bytes(WRITTEN[kind])
    rows, note = read_table(str(table))
    assert [(os.path.basename(row["path"]), row["label"]) for row in rows] == ROWS
    assert note == ""
    assert len(open_images([str(table)])) == 8
    table.rename(images / "a.tsv")
    assert open_labelled(str(images / "a.tsv"))[0].classes == ("café", "thé, vert")


def test_what_is_no_text_is_refused_in_one_line(images: Path) -> None:
    for content in ((images / "0.png").read_bytes(), b"path,label\n0.png,\0a\n", b"\xff\xfea"):
        (images / "a.csv").write_bytes(content)
        with pytest.raises(UserError, match="neither UTF-8 nor UTF-16, no text") as caught:
            read_table(str(images / "a.csv"))
        assert caught.value.hint == "save it as UTF-8"
    (images / "a.csv").write_text("name;class\n0.png;a\n")
    with pytest.raises(UserError, match="no column `path`") as caught:
        read_table(str(images / "a.csv"))
    assert caught.value.hint == "columns found: name, class"


def test_lists_of_other_programs(images: Path) -> None:
    for content in (
        "0.png\r\n 1.png \n".encode("utf-16"),
        b"\xef\xbb\xbf0.png\r1.png",
        b"0.png\n1.png\t\n\n",
    ):
        (images / "a.txt").write_bytes(content)
        assert [os.path.basename(path) for path in lines_of(str(images / "a.txt"))] == ["0.png", "1.png"]
    os.rename(images / "0.png", images / " 0.png")  # a space that belongs to the name
    (images / "a.txt").write_text(" 0.png\n")
    assert lines_of(str(images / "a.txt")) == [str(images / " 0.png")]


def test_values_that_are_written_differently_are_one_class(images: Path) -> None:
    labels = ["1", "1.0", " 1", "01", "2", "2 ", "2.5", "2.50"]
    rows = [f"{number}.png,{label}" for number, label in enumerate(labels)]
    (images / "a.csv").write_text("path,label\n" + "\n".join(rows))
    training, validation = open_labelled(str(images / "a.csv"))
    assert training.classes == ("1", "2", "2.5")
    assert len(training) + len(validation) == 8
    assert training.notes == (
        "labels that differ only in spaces or the form of a number are one class: "
        "'1', ' 1', '01', '1.0'; so are 2 more",
    )
    names = class_names([str(images / "a.csv")], open_images([str(images / "a.csv")]))
    assert names == ["1", "1", "1", "1", "2", "2", "2.5", "2.5"]
    assert read_table(str(images / "a.csv"))[0][1]["label"] == "1"


def test_what_is_meant_differently_stays_apart() -> None:
    apart = [
        "1",
        "-1",
        "1a",
        "1.0.0",
        "1_0",
        "10",
        "A",
        "a",
        "nan",
        "NaN",
        "1/2",
        "0.5",
        "e",
        "1e400",
        "٣",
        "3",
        "",
    ]
    assert one_spelling(apart) == ({label: label for label in apart}, "")
    assert len(set(one_spelling(["a  b", "a b", "a\u00a0b", " a b"])[0].values())) == 1
    assert set(one_spelling(["caf\u00e9", "cafe\u0301"])[0].values()) == {"caf\u00e9"}
    assert one_spelling([" cat"])[0] == {" cat": "cat"}
    assert set(one_spelling(["1", "1e0", "+1", "1.", "1.00"])[0].values()) == {"1"}


def test_names_in_sentences() -> None:
    told = {
        "cat": "cat",
        "1": "'1'",
        "2.5": "'2.5'",
        "": "''",
        " a": "' a'",
        "v1": "v1",
        "猫": "猫",
        "-": "'-'",
    }
    assert {name: named(name) for name in told} == told
    assert named("caf\udce9") == "caf\ufffd"


def test_json_holds_no_stray_bytes_and_is_else_as_before() -> None:
    document = {"a": ["caf\udce9", "猫", "\U0001f600", "\\ud83d"], "b\udcff": 1}
    assert json.loads(as_json(document)) == {"a": ["caf\ufffd", "猫", "\U0001f600", "\\ud83d"], "b\ufffd": 1}
    assert as_json({"a": "\U0001f600"}, indent=1) == json.dumps({"a": "\U0001f600"}, indent=1)


def test_pictures_take_any_name() -> None:
    name = "caf\udce9 $100$ \x1b[31m\n"
    assert readable(name) == "caf\ufffd $100$ \ufffd[31m "
    sheet = Sheet(3, 2, name, name)
    axes = sheet.plot(0.5, 0.8, 2, 0.8, "x", "y")
    axes.plot([0, 1], [0, 1], label=plain("$a_$"))
    axes.legend()
    sheet.figure.canvas.draw()  # type: ignore[attr-defined]


BYTES = (b"caf\xe9", b"$100$", "猫".encode(), b"1", b"esc \x1b[31m")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse names that are not UTF-8")
def test_class_names_of_any_bytes_reach_every_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = np.random.default_rng(0)
    data = tmp_path / "data"
    for name in BYTES:
        os.makedirs(os.path.join(os.fsencode(data), name))
        for number in range(3):
            pixels = draw.integers(0, 255, (40, 36, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(os.path.join(os.fsencode(data), name, b"%d.png" % number))
    few = {"size": 32, "console": Console()}
    api.visualize("random/test_vit", [data], kinds=["neighbours", "map"], out=tmp_path / "pictures", **few)
    run = api.finetune(
        "random/test_vit", data, epochs=1, batch_size=4, workers=0, out=str(tmp_path / "ft"), **few
    )
    for file in [*run.folder.glob("*.json"), *run.folder.glob("*.jsonl")]:
        assert "\\udc" not in file.read_text(encoding="utf-8")
    assert "caf\ufffd" in json.loads((run.folder / "classes.json").read_text())
    assert b"caf\xe9" in (run.folder / "classes.csv").read_bytes()
    assert (run.folder / "pictures/confusion.png").is_file()
    again = open_labelled(str(run.folder / "splits.csv"))  # DATA itself, stray bytes included
    assert again[0].classes == open_labelled(str(data))[0].classes
    for ending in ("safetensors", "npz", "csv"):
        api.embed("random/test_vit", data, tmp_path / f"a.{ending}", workers=0, **few)
    with safe_open(tmp_path / "a.safetensors", "np") as opened:
        assert "caf\ufffd" in json.loads(opened.metadata()["classes"])
    assert "'1' " in capsys.readouterr().err  # among the worst classes
    assert api.check(data, workers=0).classes["caf\udce9"] == 3
    assert len(api.pack(data, out=tmp_path / "pack").classes) == len(BYTES)
