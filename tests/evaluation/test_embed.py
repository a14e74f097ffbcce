"""embed: the vectors are those of plain timm, every format holds the same, neighbours equal a slow loop."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open

import sslkit
from sslkit.augmentations.crops import CenterCrop
from sslkit.core.config.build import PretrainConfig
from sslkit.core.console import Console
from sslkit.core.errors import UserError
from sslkit.core.files import sha256
from sslkit.data.sources.image_set import ImageSet, open_images
from sslkit.evaluation.embedding import gallery
from sslkit.evaluation.embedding.embed import embed
from sslkit.evaluation.embedding.vector_files import check_target
from sslkit.models.encoder import Encoder
from sslkit.models.weights import write_encoder
from sslkit.training.pretrain.pretrain import pretrain

EXACT = {"size": 32, "workers": 0, "device": "cpu", "precision": "float32"}


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Two classes below train/, one of them below val/, a name with a comma, and a damaged file."""
    random = np.random.default_rng(0)
    root = tmp_path / "labelled"
    for name in (
        "train/cat/0.png",
        "train/cat/a, b.png",
        "train/dog/1.png",
        "train/dog/2.png",
        "val/cat/3.png",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(root / name)
    (root / "train/dog/broken.png").write_bytes(b"no picture")
    return root


NAMES = ["train/cat/0.png", "train/cat/a, b.png", "train/dog/1.png", "train/dog/2.png", "val/cat/3.png"]


def vectors_by_timm(root: Path) -> np.ndarray:
    """random/test_vit of seed 0 by timm alone, one image at a time."""
    torch.manual_seed(0)
    model = timm.create_model(
        "test_vit", num_classes=0, img_size=32, dynamic_img_size=True, global_pool="avg", fc_norm=False,
        pool_include_prefix=False,
    ).eval()  # fmt: skip
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    found = []
    for name in NAMES:
        image = CenterCrop(32)(Image.open(root / name).convert("RGB")).float() / 255
        with torch.no_grad():
            found.append(model(((image - mean) / std)[None])[0].numpy())
    return np.stack(found)


def test_safetensors_holds_timms_vectors_names_and_classes(labelled: Path, tmp_path: Path) -> None:
    file = tmp_path / "f.safetensors"
    made = sslkit.embed("random/test_vit", labelled, file, **EXACT)
    assert (made.count, made.width, made.unreadable, made.classes) == (5, 64, 1, 2)
    with safe_open(file, "pt") as opened:
        vectors, facts = opened.get_tensor("vectors"), opened.metadata()
        names, labels = bytes(opened.get_tensor("names")).split(b"\0"), opened.get_tensor("labels")
    assert np.allclose(vectors, vectors_by_timm(labelled), atol=1e-5)
    assert [name.decode() for name in names] == NAMES
    assert [json.loads(facts["classes"])[label] for label in labels] == ["cat", "cat", "dog", "dog", "cat"]
    assert (facts["source"], facts["size"], facts["sha256"]) == ("random/test_vit, seed 0", "32", "")
    assert json.loads(facts["mean"]) == [0.485, 0.456, 0.406]


def test_all_formats_hold_the_same(labelled: Path, tmp_path: Path) -> None:
    for ending in ("safetensors", "npz", "csv"):
        embed("random/test_vit", str(labelled), tmp_path / f"f.{ending}", **EXACT)
    with safe_open(tmp_path / "f.safetensors", "np") as opened:
        vectors = opened.get_tensor("vectors")
    arrays = np.load(tmp_path / "f.npz")  # allow_pickle=False
    assert np.array_equal(arrays["vectors"], vectors)
    assert arrays["names"].tolist() == NAMES
    assert arrays["classes"][arrays["labels"]].tolist() == ["cat", "cat", "dog", "dog", "cat"]
    with (tmp_path / "f.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert [row[:2] for row in rows[1:]] == [[name, name.split("/")[1]] for name in NAMES]
    assert rows[0][:3] == ["path", "label", "f0"]
    assert np.array_equal(np.array([row[2:] for row in rows[1:]], dtype=np.float32), vectors)
    assert json.loads((tmp_path / "f.csv.json").read_text())["size"] == str(arrays["size"]) == "32"
    assert not list(tmp_path.glob(".f*"))


def test_parquet_holds_the_same(labelled: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow: pip install 'sslkit[parquet]'")
    embed("random/test_vit", str(labelled), tmp_path / "f.parquet", **EXACT)
    table = parquet.read_table(tmp_path / "f.parquet").to_pydict()
    assert table["path"] == NAMES
    assert table["label"] == ["cat", "cat", "dog", "dog", "cat"]
    assert np.allclose(table["vector"], vectors_by_timm(labelled), atol=1e-5)


def test_a_run_its_hash_and_its_class_token(
    tiny: Callable[..., PretrainConfig], photos: Path, tmp_path: Path
) -> None:
    run = pretrain(tiny("run"))
    embed(str(run), str(photos), tmp_path / "f.npz", readout="cls", workers=0, precision="float32")
    arrays = np.load(tmp_path / "f.npz")
    assert str(arrays["sha256"]) == sha256(run / "encoder.safetensors")
    assert str(arrays["size"]) == "32"
    encoder = sslkit.load_encoder(run)
    image = CenterCrop(32)(open_images([str(photos)]).read(3)).float() / 255
    with torch.no_grad():
        expected = encoder.model.forward_features(encoder.normalize(image[None]))[0, 0]
    assert np.allclose(arrays["vectors"][3], expected, atol=1e-5)
    assert "labels" not in arrays  # one folder inside is no two classes


def test_neighbours_equal_a_slow_loop(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "SIMILARITIES", 10)  # two queries at once
    query = labelled / NAMES[2]
    made = embed(
        "random/test_vit", str(labelled), tmp_path / "f.npz", neighbours=3, query=str(query), **EXACT
    )
    vectors = np.load(tmp_path / "f.npz")["vectors"].astype(np.float64)
    vectors -= vectors.mean(0)
    expected = {}
    for one, name in enumerate(NAMES):
        others = [
            (
                float(vectors[one] @ vector / np.linalg.norm(vectors[one]) / np.linalg.norm(vector)),
                NAMES[index],
            )
            for index, vector in enumerate(vectors)
            if index != one
        ]
        expected[name] = sorted(others, reverse=True)[:3]
    with (tmp_path / "f-neighbours.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [name for name in NAMES for _ in range(3)]
    flat = [pair for name in NAMES for pair in expected[name]]
    assert [row["neighbour"] for row in rows] == [name for _, name in flat]
    assert np.allclose([float(row["cosine"]) for row in rows], [cosine for cosine, _ in flat], atol=1e-5)
    assert [match.name for match in made.matches] == [name for _, name in expected[NAMES[2]]]
    assert [match.label for match in made.matches] == [name.split("/")[1] for _, name in expected[NAMES[2]]]


def test_a_query_from_outside_finds_itself_in_a_copy(labelled: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.png"
    copy.write_bytes((labelled / NAMES[1]).read_bytes())
    made = embed("random/test_vit", str(labelled), tmp_path / "f.npz", query=str(copy), **EXACT)
    assert made.matches[0].name == NAMES[1]
    assert made.matches[0].cosine == pytest.approx(1, abs=1e-4)
    assert len(made.matches) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": "f.pkl"}, "unknown ending '.pkl'"),
        ({"out": "there.npz"}, "there.npz exists"),
        ({"out": "nowhere/f.npz"}, "lies in no folder"),
        ({"out": "/proc/f.npz"}, "no file can be made there"),
        ({"readout": "max"}, "unknown read-out 'max'"),
        ({"source": "random/test_resnet", "readout": "cls"}, "test_resnet has no class token"),
        ({"query": "missing.png"}, "no such file"),
        ({"query": "there.npz"}, "can't be read"),
        ({"neighbours": -1}, "not less than 0"),
        ({"size": 0}, "--size: 0 is not >= 8"),
        ({"workers": -1}, "--workers: -1 is not >= 0"),
        ({"neighbours": 2, "data": "fractal:1"}, "one image has no neighbours"),
        ({"data": "missing"}, "no such file or folder"),
        ({"data": "masked"}, "images/ and masks/, and a mask is no photo"),
        ({"data": "missing.csv"}, "1 of 1 files are missing, the first is 'gone.png'"),
        ({"source": "other"}, "does not fit test_vit2"),
        ({"source": "./missing"}, "is not a run"),
    ],
)
def test_what_is_wrong_is_told_and_nothing_written(
    changes: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.npz").write_bytes(b"mine")
    Path("missing.csv").write_text("path\ngone.png\n")
    for part in ("images", "masks"):
        (Path("masked") / part).mkdir(parents=True)
    Path("other").mkdir()
    write_encoder(Encoder("test_vit", 32), Path("other"), "model.safetensors", {})
    config = Path("other/config.json")
    config.write_text(config.read_text().replace('"test_vit"', '"test_vit2"'))
    before = sorted(tmp_path.rglob("*"))
    given = {"source": "random/test_vit", "data": "fractal:3", "out": "f.npz", **changes}
    with pytest.raises(UserError, match=message):
        embed(given.pop("source"), given.pop("data"), Path(given.pop("out")), **{**EXACT, **given})  # type: ignore[arg-type]
    assert sorted(tmp_path.rglob("*")) == before


def test_parquet_without_pyarrow_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslkit.evaluation.embedding.vector_files.find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        embed("random/test_vit", "fractal:3", tmp_path / "f.parquet", **EXACT)
    assert "sslkit[parquet]" in caught.value.hint


def test_what_was_left_out_is_said(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    embed("random/test_vit", str(labelled), tmp_path / "f.npz", console=Console(quiet=True), **EXACT)
    assert "1 of 6 images can't be read" in capsys.readouterr().err


def test_classes_come_from_folders_and_tables(labelled: Path, tmp_path: Path) -> None:
    images = open_images([str(labelled)])
    names = gallery.class_names([str(labelled)], images)
    assert names == ["cat", "cat", "dog", "dog", "dog", "cat"]
    inside = open_images([str(labelled / "train")])
    assert gallery.class_names([str(labelled / "train")], inside) == ["cat", "cat", "dog", "dog", "dog"]
    table = tmp_path / "t.csv"
    table.write_text("path,label\nlabelled/val/cat/3.png,one\nlabelled/train/dog/1.png,two\n")
    found = open_images([str(table)])
    assert gallery.class_names([str(table)], found) == ["two", "one"]
    assert gallery.relative_names(str(table), found) == ["labelled/train/dog/1.png", "labelled/val/cat/3.png"]
    assert gallery.class_names(["fractal:2"], open_images(["fractal:2"])) is None
    assert gallery.class_names([str(labelled)], ImageSet(["/elsewhere/a.png"], "x")) is None  # type: ignore[arg-type]


def test_a_missing_folder_comes_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        check_target(tmp_path / "my vectors" / "f.npz")
    assert caught.value.hint == f"mkdir -p '{tmp_path}/my vectors'"
