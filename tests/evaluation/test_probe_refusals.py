"""Labelled images that probe can't use, and what its command line promises scripts: one line each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Called, probing, refused
from PIL import Image

from sslkit.models.encoder import Encoder


def write(folder: Path, names: str, count: int) -> None:
    """Class folders `names`, separated by blanks, each with `count` images of noise."""
    random = np.random.default_rng(len(str(folder)))
    for name in names.split():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            picture = random.integers(0, 256, (36, 36, 3), dtype=np.uint8)
            Image.fromarray(picture).save(folder / name / f"{number}.png")


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Called]:
    """call("data", "--grid") probes an exported encoder in tmp_path → (exit code, stdout, stderr)."""
    torch.manual_seed(0)
    return probing(tmp_path, Encoder("test_resnet", 32), monkeypatch, capsys)


def test_labels_that_do_not_fit(call: Callable[..., Called]) -> None:
    write(Path("strange/train"), "cat dog", 2)
    write(Path("strange/val"), "cat bird", 2)
    refused(call("strange"), "class 'bird' is in the validation part but not in training")
    write(Path("lonely"), "cat dog", 1)
    refused(call("lonely"), "every class has one image")
    Path("list.csv").write_text("path,label\nlonely/cat/0.png,cat\nlonely/cat/9.png,dog\n")
    refused(call("list.csv"), "1 of 2 files are missing, the first is 'lonely/cat/9.png'")
    write(Path("lacking/train"), "cat dog", 2)
    write(Path("lacking/val"), "cat", 2)
    refused(call("lacking"), "class 'dog' is in training but not in the validation part")
    write(Path("hollow"), "cat dog", 3)
    Path("hollow/bird").mkdir()
    refused(call("hollow"), "class folder 'bird' holds no images")
    write(Path("notes"), "dog", 3)
    Path("notes/cat").mkdir()
    Path("notes/cat/0.txt").write_text("a cat")
    refused(call("notes"), "only one class folder (dog) holds images; 'cat' holds none")
    write(Path("hollow-val/train"), "cat dog", 3)
    write(Path("hollow-val/val"), "cat dog", 2)
    Path("hollow-val/val/bird").mkdir()
    refused(call("hollow-val"), "class folder 'bird' holds no images")
    write(Path("good"), "cat dog", 5)
    assert "hint: did you mean 'good'?" in call("goood")[2]
    assert "hint: did you mean 'model'?" in call("good", source="modell")[2]
    refused(call("good", "--shots", "5"), "--shots 5: class 'cat' has 4 training images")
    refused(call("good", "--min-top1", "101"), "--min-top1: 101 is not a percentage")
    Path("taken").mkdir()
    refused(call("good", "--out", "taken"), "taken exists")
    config = json.loads(Path("model/config.json").read_text())
    Path("model/config.json").write_text(json.dumps({**config, "architecture": "test_convnext"}))
    refused(call("good"), "model.safetensors does not fit test_convnext")


def test_one_training_image_per_class_is_enough(call: Callable[..., Called]) -> None:
    write(Path("few/train"), "cat dog", 1)
    write(Path("few/val"), "cat dog", 3)
    code, out, err = call("few", "--shots", "1")
    assert code == 0, err
    assert "after 1 image per class: " in out


def test_the_gate_and_what_is_written(call: Callable[..., Called]) -> None:
    write(Path("good"), "cat dog", 10)
    for name in ("run.json", "config.toml"):  # as if the source were a run
        (Path("model") / name).write_text("{}" if name == "run.json" else "")
    before = sorted(path.name for path in Path("model").iterdir())
    code, out, _ = call("good", "--min-top1", "100", "--out", "made", "--shots", "2", "--json", "--grid")
    document = json.loads(out)
    best = max(document["rows"][0]["knn"], document["rows"][0]["linear"])
    assert code == (1 if best < 100 else 0)
    assert json.loads(Path("made/probe.json").read_text()) == document
    pictures = ["probe-grid.png", "probe-shots.png", "probe.png"]
    assert sorted(file.name for file in Path("made").iterdir()) == [
        *pictures[:2],
        "probe.json",
        *pictures[2:],
        "table.md",
    ]
    assert sorted(path.name for path in Path("model").iterdir()) == before  # --out: not in the run
    for name in ("run.json", "config.toml"):
        (Path("model") / name).unlink()
    for name in pictures:
        with Image.open(Path("made") / name) as picture:
            assert min(picture.size) > 300
    assert Path("made/table.md").read_text().startswith("# Probe of model\n\n- ")
    code, out, err = call("good", "--min-top1", "0")
    assert code == 0
    assert out.splitlines()[0] == document["headlines"][0]
    shutil.rmtree("made")
    code, _, err = call("good", "--baseline", "timm/test_resnet_missing")
    assert (code, err.splitlines()[0]) == (2, "error: unknown backbone 'test_resnet_missing'")
