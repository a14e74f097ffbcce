"""probe from end to end on tiny images: the table, the baselines, the verdict, the document."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sslkit.backbones import Encoder
from sslkit.data.labels import open_labelled
from sslkit.errors import UserError
from sslkit.evaluation.features import extract, pixels
from sslkit.evaluation.probe import probe
from sslkit.weights import write_encoder

QUICK = {"device": "cpu", "precision": "float32", "workers": 0}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of noise, one reddish and one bluish: raw pixels tell them apart."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for channel, name in ((0, "red"), (2, "blue")):
        (folder / name).mkdir()
        for number in range(20):
            picture = random.integers(0, 120, (40, 36, 3), dtype=np.uint8)
            picture[..., channel] += 120
            Image.fromarray(picture).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(7)
    write_encoder(Encoder("resnet10t", 32), folder, "model.safetensors", {})
    return folder


def test_the_table_and_the_document(photos: Path, exported: Path) -> None:
    result = probe([str(exported)], str(photos), **QUICK)
    assert [row.kind for row in result.rows] == ["source", "random", "pixels"]
    assert result.counts == {"train": 32, "validation": 8, "classes": 2, "unreadable": 0}
    assert result.rows[2].knn == result.rows[2].linear == 100
    assert [row.width for row in result.rows] == [512, 512, 3072]
    assert [(v.baseline, v.measure) for v in result.comparisons] == [
        ("random", "kNN"),
        ("random", "linear"),
        ("pixels", "kNN"),
        ("pixels", "linear"),
    ]
    document = json.loads(json.dumps(result.to_document()))
    assert document["verdicts"][0]["sentence"] == result.verdicts[0]
    assert document["verdicts"][0]["outcome"] in ("better", "worse", "open")
    assert "predictions" not in document["rows"][0]


def test_the_random_baseline_is_the_same_architecture_with_the_seeds_weights(photos: Path) -> None:
    """`random/NAME` as source and the random baseline of the same seed are the same thing."""
    result = probe(["random/resnet10t"], str(photos), size=32, seed=3, **QUICK)
    source, baseline, _ = result.rows
    assert torch.equal(source.predictions["knn"], baseline.predictions["knn"])
    assert (source.knn, source.linear) == (baseline.knn, baseline.linear)
    assert result.verdicts == ()


def test_several_sources_share_one_table(photos: Path, exported: Path) -> None:
    result = probe([str(exported), "random/resnet10t"], str(photos), size=32, baselines=["random"], **QUICK)
    assert [row.kind for row in result.rows] == ["source", "source", "random"]


def test_a_vision_transformer_is_read_at_another_size(photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    write_encoder(Encoder("vit_tiny_patch16_224", 32), tmp_path, "model.safetensors", {})
    result = probe([str(tmp_path)], str(photos), size=48, baselines=[], **QUICK)
    assert result.rows[0].size == 48
    with pytest.raises(UserError, match="multiple of 16"):
        probe([str(tmp_path)], str(photos), size=40, **QUICK)


def test_fractals_need_no_data(exported: Path) -> None:
    result = probe([str(exported)], "fractal:40", baselines=["pixels"], **QUICK)
    assert result.counts["classes"] == 2


def test_unreadable_images_are_left_out_and_counted(photos: Path, exported: Path, tmp_path: Path) -> None:
    for file in photos.rglob("*.png"):
        target = tmp_path / file.relative_to(photos)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(file.read_bytes())
    (tmp_path / "red" / "0.png").write_bytes(b"no image")
    assert probe([str(exported)], str(tmp_path), **QUICK).counts["unreadable"] == 1


def test_features_are_those_of_the_encoder(photos: Path) -> None:
    train, _ = open_labelled(str(photos))
    found = extract(pixels, train, 32, device=torch.device("cpu"))
    assert found.vectors.shape == (32, 3072)
    assert found.vectors.min() >= 0
    assert found.vectors.max() <= 1
    assert found.labels.tolist() == list(train.labels or ())
    assert found.kept.tolist() == list(range(32))


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        ([], {}, "no source"),
        (["nowhere"], {}, "nowhere"),
        (["random/resnet10t"], {"baselines": ["randm"]}, "unknown baseline 'randm'"),
        (["random/resnet10t"], {"k": 0}, "k: 0"),
    ],
)
def test_what_cannot_work_is_said(
    photos: Path, sources: list[str], options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        probe(sources, str(photos), **QUICK, **options)  # type: ignore[arg-type]
