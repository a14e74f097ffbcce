"""The dense probe: mosaics and masks against slow loops, intervals over images, refusals in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import Called
from PIL import Image

from sslkit.data.sources.labels import open_labelled
from sslkit.evaluation.dense.cells import Reader, Scenes, Tally, between, fit_cells, raw_patches
from sslkit.evaluation.dense.mosaics import Mosaics, arrange, edges, tile_of, tilings_of
from sslkit.evaluation.dense.segmentation import majority, overlap, upsampled
from sslkit.evaluation.probe.linear import fit_best, fit_split
from sslkit.evaluation.probe.probe import probe
from sslkit.evaluation.probe.table import to_markdown
from sslkit.models.encoder import Encoder
from sslkit.visualization.report import results_section

QUICK: dict[str, Any] = {"device": "cpu", "precision": "float32", "workers": 0, "cache": False}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of noise, one reddish and one bluish, wider than high."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for channel, name in ((2, "blue"), (0, "red")):
        (folder / name).mkdir()
        for number in range(40):
            picture = random.integers(0, 100, (36, 50, 3), dtype=np.uint8)
            picture[..., channel] += 120
            Image.fromarray(picture).save(folder / name / f"{number}.png")
    return folder


def write_masked(folder: Path, count: int, kind: str = "P", values: tuple[int, int] = (3, 7)) -> None:
    """Red left of a random edge, blue right of it, a frame of no class; masks with two numbers."""
    random = np.random.default_rng(count)
    for name in ("images", "masks"):
        (folder / name / "deeper").mkdir(parents=True)
    for number in range(count):
        edge = int(random.integers(15, 45))
        picture = random.integers(0, 100, (48, 60, 3), dtype=np.uint8)
        picture[:, :edge, 0] += 120
        picture[:, edge:, 2] += 120
        mask = np.full((48, 60), values[1], dtype=np.uint8)
        mask[:, :edge] = values[0]
        mask[:2] = mask[-2:] = 255
        Image.fromarray(picture).save(folder / "images" / "deeper" / f"{number}.v2.png")
        image = Image.fromarray(mask)
        if kind == "P":
            image.putpalette([255 - i // 3 for i in range(768)])
        image.save(folder / "masks" / "deeper" / f"{number}.v2.png")


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Called]:
    """call("data", "--grid") probes a small ViT locally, in tmp_path → (exit code, stdout, stderr)."""
    torch.manual_seed(0)
    return helpers.probing(tmp_path, Encoder("test_vit", 64), monkeypatch, capsys, ("--out", "new"))


def refused(done: Called, message: str) -> None:
    helpers.refused(done, message)
    assert not Path("new").exists()


@pytest.mark.parametrize(("size", "grid"), [(224, 14), (224, 7), (96, 3), (64, 4), (80, 5), (32, 2), (32, 1)])
@pytest.mark.parametrize("tiles", [2, 3])
def test_a_cell_is_of_the_tile_that_all_its_pixels_are_of(size: int, grid: int, tiles: int) -> None:
    at = edges(size, tiles)
    owner = [max(i for i in range(tiles) if at[i] <= pixel) for pixel in range(size)]
    cell = size // grid
    found = tile_of(size, grid, tiles)
    for row in range(grid):
        for column in range(grid):
            rows = set(owner[row * cell : (row + 1) * cell])
            columns = set(owner[column * cell : (column + 1) * cell])
            whole = len(rows) == len(columns) == 1
            assert found[row, column] == (rows.pop() * tiles + columns.pop() if whole else -1)


def test_tilings_need_a_cell_in_every_tile() -> None:
    assert [tilings_of(32 * g, g) for g in (1, 2, 3, 4, 5, 7)] == [(), (2,), (2, 3), (2,), (2, 3), (2, 3)]


def test_every_photo_is_in_one_mosaic_at_most() -> None:
    order = arrange(40, (2, 3), 0, "x")
    assert [len(members) for members in order] == [4, 9, 4, 9, 4, 9]
    assert [len(members) for members in arrange(12, (2, 3), 0, "x")] == [4, 4, 4]
    members = [member for mosaic in order for member in mosaic]
    assert len(set(members)) == len(members) == 39
    assert order == arrange(40, (2, 3), 0, "x") != arrange(40, (2, 3), 1, "x")
    assert arrange(3, (2, 3), 0, "x") == []


def test_cells_have_the_class_that_is_seen_in_them(photos: Path) -> None:
    """50 pixels have no equal thirds: the tiles are 16 and 17 pixels wide."""
    train, validation = open_labelled(str(photos))
    training, scenes = Mosaics(train, validation, (2, 3), 0, 0).scenes(50, 5)
    assert training.images.shape == (11, 3, 50, 50)
    assert len(scenes.images) == 2
    cells = scenes.images.float().reshape(2, 3, 5, 10, 5, 10).mean((3, 5)).flatten(2)
    red = (cells[:, 0] > cells[:, 2]).long()  # classes: blue, red
    known = scenes.cells >= 0
    assert torch.equal(red[known], scenes.cells[known])
    assert set(scenes.cells[known].tolist()) == {0, 1}
    assert known.sum(1).tolist() == [16, 9]


def test_raw_patches_are_mean_and_thumbnail_of_each_cell() -> None:
    images = torch.rand(2, 3, 64, 64)
    found = raw_patches(4)(images)
    assert found.shape == (2, 195, 4, 4)
    cell = images[1, :, 16:32, 48:64]
    expected = torch.cat([cell.mean((1, 2)), F.avg_pool2d(cell, 2).flatten()])
    torch.testing.assert_close(found[1, :, 1, 3], expected)


def test_mean_iou_and_accuracy_by_hand() -> None:
    seen = torch.tensor([0, 0, 1, 1, 0, 2])
    truth = torch.tensor([0, 1, 1, 1, 3, 3])  # two pixels of no class
    hits, union = overlap(seen, truth, 3)
    assert (hits.tolist(), union.tolist()) == ([1, 2, 0], [2, 3, 0])
    tally = Tally(torch.stack([hits, hits]), torch.stack([union, union]))
    assert tally.value == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)  # the third class is nowhere
    weights = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    uneven = Tally(torch.tensor([[1.0], [0.0]]).double(), torch.tensor([[2.0], [4.0]]).double())
    assert uneven.percent(weights).item() == pytest.approx(100 * 1 / 14)


def test_the_interval_is_that_of_images_not_of_cells() -> None:
    """All 50 cells of an image fail together: 400 images tell no more than 400 cells, not as 20 000."""
    right = (torch.arange(400) % 5 > 0).double()[:, None]
    tally = Tally(50 * right, torch.full_like(right, 50))
    assert tally.value == 80
    assert tally.interval(0) == pytest.approx(196 * (0.8 * 0.2 / 400) ** 0.5, rel=0.1)
    same = between(tally, tally, 0)
    assert (same.points, same.margin, same.outcome, same.count) == (0, 0, "open", 400)
    other = Tally(50 * (1 - right), torch.full_like(right, 50))
    assert between(tally, other, 0).margin == pytest.approx(2 * tally.interval(0))
    assert between(other, tally, 0).outcome == "worse"


@pytest.mark.parametrize("shape", [(48, 60), (50, 47), (5, 3)])
def test_the_majority_of_a_cell_by_a_slow_loop(shape: tuple[int, int]) -> None:
    truth = torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(0))  # 3: of no class
    found = majority(truth, 6, 3).view(6, 6)
    for row in range(6):
        for column in range(6):
            inside = [
                int(truth[y, x])
                for y in range(shape[0])
                for x in range(shape[1])
                if (y * 6 // shape[0], x * 6 // shape[1]) == (row, column)
            ] or [int(truth[row * shape[0] // 6, column * shape[1] // 6])]
            if min(shape) >= 6:
                best = max(range(4), key=lambda value: (inside.count(value), -value))
                assert found[row, column] == (-1 if best == 3 else best)
    if min(shape) < 6:
        near = truth[(torch.arange(6) * shape[0] // 6)][:, torch.arange(6) * shape[1] // 6]
        assert torch.equal(found, torch.where(near == 3, -1, near))


def test_enlarged_is_bilinear_interpolation_and_the_largest() -> None:
    logits = torch.randn(5, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(logits[None], (31, 45), mode="bilinear").argmax(1)[0]
    assert torch.equal(upsampled(logits, 31, 45), expected)


def test_the_penalty_is_chosen_on_images_that_were_not_fitted_to() -> None:
    """Cells tell their image apart and no class: on other images the strongest penalty is as good as any."""
    random = torch.Generator().manual_seed(0)
    colours = torch.rand(30, 3, 1, 1, generator=random)
    images = (255 * colours.expand(30, 3, 16, 16)).to(torch.uint8)
    labels = (torch.arange(30) % 3)[:, None].expand(30, 16)
    scenes = Scenes(images, labels, torch.arange(30))
    reader = Reader(raw_patches(4), None, CPU, "float32")
    vectors = torch.cat(list(reader.vectors(images))).flatten(0, 1)
    _, by_cells = fit_best({"": vectors}, labels.flatten(), classes=3)
    assert fit_cells(reader, scenes, 3, 0).strength > by_cells.strength


def test_uneven_classes_do_not_end_in_a_constant_guess() -> None:
    """Two in three are of one class and features say little: the three strongest penalties name it alone."""
    random = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 8 + [1, 2, 3, 4]).repeat(150)
    vectors = torch.randn(1800, 20, generator=random)
    vectors[torch.arange(1800), labels] += 0.6
    rows = torch.randperm(1800, generator=random)
    head = fit_split(vectors, labels, (rows[:1440], rows[1440:]), classes=5)
    assert head.strength < 0.1
    assert len(head.predict(vectors).unique()) == 5


def test_patches_of_mosaics_beside_baselines(photos: Path, tmp_path: Path) -> None:
    result = probe(["random/test_vit"], str(photos), size=64, local=True, seed=3, **QUICK)
    local = result.local
    assert local is not None
    assert [(row.kind, row.grid) for row in local.rows] == [("source", 4), ("random", 4), ("pixels", 4)]
    assert local.rows[2].scores == {"patches of mosaics": (100, 0)}
    assert local.rows[0].scores == local.rows[1].scores  # the same seed, the same weights
    assert local.counts == {"train": 16, "validation": 4, "classes": 2}
    assert 0 < local.constant < 100
    assert local.comparisons == ()  # random weights are nobody's pre-training
    document = json.loads(json.dumps(result.to_document()))
    assert document["local"]["task"] == "mosaics"
    assert document["local"]["rows"][2]["scores"] == {"patches of mosaics": [100, 0]}
    assert "| raw pixels, cells of 16 px at 64 | 4 x 4 | 100.0 ± 0.0 |" in to_markdown(result)
    page = results_section.probe_section(document, tmp_path).replace("\N{NO-BREAK SPACE}", " ")
    assert "<td>100.0 ± 0.0</td>" in page


def test_segmentation_with_masks(call: Callable[..., Called]) -> None:
    write_masked(Path("data"), 15)
    code, out, err = call("data", "--local", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["counts"] == {"train": 12, "validation": 3, "classes": 2, "unreadable": 0}
    assert found["rows"] == []
    rows = found["local"]["rows"]
    assert [row["kind"] for row in rows] == ["source", "random", "pixels"]
    assert list(rows[0]["scores"]) == ["mean IoU", "mean IoU of cells"]
    assert rows[2]["scores"]["mean IoU"][0] > 80  # the edge is somewhere in a cell of 15 pixels
    assert [verdict["baseline"] for verdict in found["local"]["verdicts"]] == ["random", "pixels"]
    assert len(found["headlines"]) == 1
    assert json.loads(Path("new/probe.json").read_text(encoding="utf-8")) == found
    assert "mean IoU of cells %" in Path("new/table.md").read_text(encoding="utf-8")


def test_masks_of_a_training_and_a_validation_part(call: Callable[..., Called]) -> None:
    write_masked(Path("data/train"), 8, kind="L", values=(0, 1))
    write_masked(Path("data/val"), 4, kind="L", values=(1, 2))  # 2 is unknown, and not scored
    code, out, err = call("data", "--local", "--baseline", "pixels")
    assert code == 0, err
    assert out.startswith(("better: ", "worse: ", "no difference can be claimed: "))
    assert "8 training and 4 validation images with masks" in err
    assert "class 2 is in no training mask" in err


def test_masks_whose_parts_lie_below_images(call: Callable[..., Called]) -> None:
    """images/Training beside masks/Training: a pool once, of which a random fifth was held out."""
    write_masked(Path("written/train"), 8, kind="L", values=(0, 1))
    write_masked(Path("written/val"), 4, kind="L", values=(0, 1))
    for name in ("images", "masks"):
        for part, renamed in (("train", "Training"), ("val", "valid")):
            shutil.copytree(Path("written", part, name), Path("data", name, renamed))
    code, _, err = call("data", "--local", "--baseline", "pixels")
    assert code == 0, err
    assert "8 training and 4 validation images with masks" in err
    assert "not used" not in err

    shutil.rmtree("new")
    shutil.copytree("data/images/valid", "data/images/unlabelled")
    code, _, err = call("data", "--local", "--baseline", "pixels")
    assert code == 0, err
    assert "data/images: 4 images of neither part not used" in err

    shutil.rmtree("new")
    shutil.rmtree("data/masks/valid")
    code, _, err = call("data", "--local", "--baseline", "pixels")
    assert code == 2
    assert "has no mask" in err
    assert "masks/valid" in err


def missing() -> None:
    Path("data/masks/deeper/3.v2.png").unlink()


def other_size() -> None:
    Image.new("L", (60, 47), 3).save("data/masks/deeper/3.v2.png")


def a_photo() -> None:
    Image.new("RGB", (60, 48)).save("data/masks/deeper/3.v2.png")


def no_png() -> None:
    Image.new("L", (60, 48)).save("data/masks/deeper/3.v2.png", format="JPEG")


def cut_off() -> None:
    file = Path("data/masks/deeper/3.v2.png")
    file.write_bytes(file.read_bytes()[:60])


def one_class() -> None:
    for file in Path("data/masks").rglob("*.png"):
        Image.new("L", (60, 48), 3).save(file)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing, "3.v2.png has no mask"),
        (other_size, "3.v2.png has 60 x 47 pixels, its image 60 x 48"),
        (a_photo, "3.v2.png is no mask of class numbers: its mode is RGB"),
        (no_png, "3.v2.png can't be read as a PNG"),
        (cut_off, "3.v2.png can't be read as a PNG"),
        (one_class, "the training masks hold one class only (3)"),
    ],
)
def test_masks_that_can_not_be_used(
    call: Callable[..., Called], spoil: Callable[[], None], message: str
) -> None:
    write_masked(Path("data"), 10)
    spoil()
    refused(call("data", "--local"), message)


def test_flags_that_masks_and_mosaics_can_not_serve(call: Callable[..., Called], photos: Path) -> None:
    write_masked(Path("data"), 5)
    refused(call("data"), "data: images/ and masks/, no classes")
    refused(call("data", "--local", "--shots", "1"), "--shots: data has masks")
    refused(call("data", "--local", "--min-top1", "5"), "--min-top1: data has masks")
    refused(call("data", "--local", "--size", "16"), "test_vit makes one cell of 16 px, 2 x 2 expected")
    refused(call(str(photos), "--local", "--size", "16"), "makes 1 x 1 cells of 16 px, too few for mosaics")
    refused(few := call("fractal:30", "--local"), "validation images, --local needs 8 of them")
    assert "hint: add images to that part" in few[2]
