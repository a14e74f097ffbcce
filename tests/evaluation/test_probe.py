"""probe from end to end on tiny images: the table, the baselines, the verdict, the document."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sslkit.core.console import Console
from sslkit.core.errors import UserError
from sslkit.data.sources.labels import open_labelled
from sslkit.evaluation.probe.features import extract, pixels
from sslkit.evaluation.probe.probe import probe
from sslkit.evaluation.probe.table import tables, to_markdown
from sslkit.models.encoder import Encoder
from sslkit.models.weights import write_encoder
from sslkit.visualization.figures.probe_charts import write_result

QUICK: dict[str, Any] = {"device": "cpu", "precision": "float32", "workers": 0, "cache": False}


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
    assert [row.width for row in result.rows if row.linear_readout in ("mean", "pixels")][-1] == 3072
    assert {row.linear_readout for row in result.rows[:2]} <= {"mean", "last4"}
    assert [(v.baseline, v.measure) for v in result.comparisons] == [
        ("random", "kNN"),
        ("random", "linear"),
        ("pixels", "kNN"),
        ("pixels", "linear"),
    ]
    document = json.loads(json.dumps(result.to_document()))
    assert document["verdicts"][0]["sentence"] == result.verdicts[0]
    assert document["verdicts"][0]["outcome"] in ("better", "worse", "open")
    assert document["headlines"] == list(result.headlines)
    assert "predictions" not in document["rows"][0]
    page = to_markdown(result)
    assert result.headlines[0] in page
    assert page.count("| raw pixels | 3072 | 100.0 ± 0.0 | pixels | 100.0 ± 0.0 | pixels |") == 1


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
    assert found.vectors["pixels"].shape == (32, 3072)
    assert found.vectors["pixels"].min() >= 0
    assert found.vectors["pixels"].max() <= 1
    assert found.labels.tolist() == list(train.labels or ())
    assert found.kept.tolist() == list(range(32))


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        ([], {}, "no source"),
        (["nowhere"], {}, "nowhere"),
        (["random/resnet10t"], {"baselines": ["randm"]}, "unknown baseline 'randm'"),
        (["random/resnet10t"], {"k": 0}, "k: 0"),
        (["random/resnet10t"], {"size": 0}, "--size: 0 is not >= 8"),
        (["random/resnet10t"], {"workers": -1}, "--workers: -1 is not >= 0"),
        (["random/resnet10t"], {"readout": "cls"}, "resnet10t has no read-out 'cls'"),
        (["random/resnet10t"], {"readout": "last"}, "unknown read-out 'last'"),
        (["random/resnet10t"], {"shots": "1,many"}, "--shots: 'many' is not a number"),
        (["random/resnet10t"], {"shots": "0"}, "--shots: '0' is not a number"),
        (["random/resnet10t"], {"shots": "17"}, "--shots 17: class 'blue' has 16 training images"),
        (["random/resnet10t"], {"shots": "1", "seeds": 0}, "--seeds: 0 is not 1 to 20"),
        (["random/resnet10t"], {"robust": True, "robust_limit": 1}, "--robust-limit: 1"),
        (["random/resnet10t"], {"baselines": ["random/resnet10t"]}, "is a source and a baseline"),
    ],
)
def test_what_cannot_work_is_said(
    photos: Path, sources: list[str], options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        probe(sources, str(photos), **{**QUICK, "size": 32, **options})


def test_any_source_is_a_baseline(photos: Path, exported: Path) -> None:
    result = probe([str(exported)], str(photos), baselines=["random/test_resnet"], size=32, **QUICK)
    assert [row.kind for row in result.rows] == ["source", "baseline"]
    assert {verdict.baseline for verdict in result.comparisons} == {"random/test_resnet"}
    assert "random/test_resnet" in result.headlines[0]
    assert "pre-training" not in result.headlines[0]


def test_few_labels_are_drawn_alike_for_all_rows(photos: Path, exported: Path) -> None:
    """Raw pixels need one image each to tell the colours apart; as many as there are is all of them."""
    result = probe([str(exported)], str(photos), shots="1,16,all", seeds=2, readout="mean", **QUICK)
    one, most = result.levels
    assert (one.shots, most.shots, one.seeds) == (1, 16, (0, 1))
    assert one.rows[2].linear == 100
    assert one.rows[0].predictions["knn"].shape == (2, 8)
    assert most.rows[0].knn == result.rows[0].knn
    assert most.rows[0].knn_std == 0
    assert [told for told in result.headlines if told.startswith("after 1 image per class: ")]
    assert len(one.comparisons) == 4
    assert json.loads(json.dumps(result.to_document()))["shots"][0]["rows"][2]["linear"] == 100


def test_the_grid_holds_the_own_size_and_normalisation(photos: Path, exported: Path) -> None:
    result = probe([str(exported)], str(photos), baselines=[], grid=True, **QUICK)
    found = [(cell.size, cell.normalization) for cell in result.grid]
    assert found == [(32, "own"), (32, "none"), (64, "own"), (64, "none")]
    own, row = result.grid[0], result.rows[0]
    assert (own.knn, own.knn_interval) == (row.knn, row.knn_interval)
    assert (own.linear, own.linear_interval) == (row.linear, row.linear_interval)


def test_several_architectures_have_their_own_random_weights(
    photos: Path, exported: Path, tmp_path: Path
) -> None:
    write_encoder(Encoder("test_resnet", 32), tmp_path, "model.safetensors", {})
    found = probe([str(exported), str(tmp_path)], str(photos), robust=True, readout="mean", **QUICK)
    assert found.robustness is not None
    others = {row.name: row.baseline for row in found.robustness.rows}
    assert others == {
        str(exported): "random resnet10t 32 px",
        str(tmp_path): "random test_resnet 32 px",
        "random resnet10t 32 px": None,
        "random test_resnet 32 px": None,
    }


def test_one_draw_has_no_deviation_and_says_so(photos: Path, exported: Path) -> None:
    one, two = (
        probe([str(exported)], str(photos), shots="1", seeds=seeds, readout="mean", **QUICK)
        for seeds in (1, 2)
    )
    assert [row.knn_std for row in one.levels[0].rows] == [None] * 3
    assert all(row.knn_std is not None for row in two.levels[0].rows)
    said = "; one draw says nothing of others: --seeds 3"
    assert one.headlines[1].startswith("after 1 image per class: ")
    assert one.headlines[1].endswith(said)
    assert not any(said in headline for headline in (one.headlines[0], *two.headlines))
    _, _, rows = tables(one)[1]
    assert not any("±" in cell for row in rows for cell in row)


def test_robustness_of_the_linear_probes(photos: Path, exported: Path) -> None:
    result = probe([str(exported)], str(photos), robust=True, readout="mean", **QUICK)
    assert result.robustness is not None
    assert [row.name for row in result.robustness.rows] == [row.name for row in result.rows[:2]]
    assert [row.clean for row in result.robustness.rows] == [row.linear for row in result.rows[:2]]
    assert [row.baseline for row in result.robustness.rows] == [result.rows[1].name, None]
    assert result.robustness.count == 8
    assert result.robustness.plan.epsilons == ()
    text = to_markdown(result)
    assert "robustness on 8 images" in text
    assert "| corrupted | noise | blur | weather | digital |" in text
    assert f"against {result.rows[1].name}, corrupted: " in text
    assert ", relative " in text
    assert result.to_document()["robustness"]["count"] == 8


def test_leaks_are_counted_and_left_out(
    photos: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two validation images are a training image, one of them saved as JPEG."""
    for part, numbers in (("train", range(10)), ("val", range(10, 15))):
        for name in ("red", "blue"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in numbers:
                data = (photos / name / f"{number}.png").read_bytes()
                (tmp_path / part / name / f"{number}.png").write_bytes(data)
    smooth = Image.linear_gradient("L").resize((48, 48)).convert("RGB")
    smooth.paste((200, 30, 30), (5, 25, 20, 40))
    smooth.save(tmp_path / "train" / "red" / "smooth.png")
    smooth.save(tmp_path / "val" / "red" / "smooth.jpg", quality=85)
    copy = (photos / "red" / "0.png").read_bytes()
    (tmp_path / "val" / "red" / "copy.png").write_bytes(copy)
    result = probe([str(exported)], str(tmp_path), console=Console(), **QUICK)
    assert (len(result.leaks.copies), len(result.leaks.near)) == (1, 1)
    assert (
        "1 are in training too and 1 almost are (--exclude-leaks leaves them out)" in capsys.readouterr().err
    )
    clean = probe([str(exported)], str(tmp_path), exclude_leaks=True, **QUICK)
    assert [len(found.rows[0].predictions["knn"]) for found in (result, clean)] == [12, 10]
    assert clean.comparisons[0].difference.count == 10


def test_features_are_kept_and_taken_again(
    photos: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second probe needs no image: they are gone by then."""
    monkeypatch.setenv("SSLKIT_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "data"
    for file in photos.rglob("*.png"):
        (data / file.parent.name).mkdir(parents=True, exist_ok=True)
        (data / file.parent.name / file.name).write_bytes(file.read_bytes())
    options = {**QUICK, "cache": True}
    first = probe([str(exported)], str(data), **options)
    kept = sorted((tmp_path / "cache/features").iterdir())
    assert len(kept) == 6
    times = {file: file.stat() for file in data.rglob("*.png")}
    for file, facts in times.items():
        file.write_bytes(bytes(facts.st_size))
        os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    second = probe([str(exported)], str(data), **options)
    assert second.to_document() == first.to_document()
    with pytest.raises(UserError, match="none of"):
        probe([str(exported)], str(data), **QUICK)
    os.utime(next(iter(times)))  # one was edited since
    with pytest.raises(UserError, match="none of"):
        probe([str(exported)], str(data), **options)


def test_a_newer_probe_takes_the_pictures_of_the_older_away(
    photos: Path, exported: Path, tmp_path: Path
) -> None:
    """What it doesn't draw itself would show figures of other data; what else lies there stays."""
    drawn = tmp_path / "pictures"
    few = probe([str(exported)], str(photos), shots="1", seeds=1, baselines=[], readout="mean", **QUICK)
    write_result(few, tmp_path, drawn)
    assert {file.name for file in drawn.iterdir()} == {"probe.png", "probe-shots.png"}
    for name in ("robust-waves.png", "robust-waves-2.png", "probe-grid.png", "map.png", ".probe-x.png"):
        (drawn / name).touch()
    before = (drawn / "probe.png").stat().st_mtime_ns
    write_result(replace(few, levels=()), tmp_path, drawn)
    left = {".probe-x.png", "map.png", "probe.png", "robust-waves-2.png"}
    assert {file.name for file in drawn.iterdir()} == left
    assert (drawn / "probe.png").stat().st_mtime_ns > before
