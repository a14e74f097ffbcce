"""The range of a set: found by a rule that a few numbers show, kept by the run, and the same ever after."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tiffs import png, tiff

import sslkit
from sslkit.core.config.build import read
from sslkit.core.console import SILENT, Console
from sslkit.core.errors import UserError
from sslkit.core.value_range import BYTES, FULL, Range, parse_limits, parse_range
from sslkit.data.audit.audit import audit
from sslkit.data.images.numbers import Numbers
from sslkit.data.images.range_estimate import own_range
from sslkit.data.packs.members import Settings
from sslkit.data.packs.reader import DESCRIPTION
from sslkit.data.packs.writer import pack
from sslkit.data.sources.image_set import open_images
from sslkit.data.sources.set_range import SAMPLE, asked_range, find_range, with_range
from sslkit.evaluation.probe.feature_cache import images_digest

RANDOM = np.random.default_rng(0)


def ramp(low: float, high: float, kind: str = "u2") -> NDArray[Any]:
    """[40, 50] from low to high, both there."""
    values = np.linspace(low, high, 2000).reshape(40, 50)
    return (values if kind[0] == "f" else values.round()).astype(kind)


def limits(*images: NDArray[Any], missing: tuple[float, ...] = ()) -> Any:
    return own_range([Numbers(values, 16, missing=missing) for values in images]).range.limits


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (ramp(0, 4095), (0, 4095)),  # 12 bits
        (ramp(0, 4095, "i4"), (0, 4095)),
        (ramp(0, 4095, "f4").round(), (0, 4095)),
        (ramp(0, 3100), (0, 4095)),  # more than three quarters of them
        (ramp(0, 3000), (0, 3000)),  # reflectances
        (ramp(200, 1000), (0, 1023)),  # black is near 0: 10 bits
        (ramp(7000, 9000), (7000, 9000)),  # a thermal camera
        (ramp(0, 65535), (0, 65535)),
        (ramp(0, 255), (0, 255)),
        (ramp(0, 255, "f4").round(), (0, 255)),
        (ramp(-1024, 3071, "i2"), (-1024, 3071)),  # Hounsfield units
        (ramp(0, 1, "f4"), (0, 1)),
        (ramp(0, 0.5, "f4"), (0, 1)),  # floats in [0, 1] stay what they are
        (ramp(0, 0.0625, "f4"), (0, 0.0625)),  # 12 bits of 16, as shares
        (ramp(5, 5), (5, 6)),
    ],
)
def test_the_rule(values: NDArray[Any], expected: tuple[float, float]) -> None:
    assert limits(values) == expected


def test_few_pixels_far_from_all_others_do_not_set_the_range() -> None:
    values = RANDOM.integers(0, 3000, (200, 200), dtype=np.uint16)
    hot = values.copy()
    hot[0, :3] = 65535  # 3 of 40,000
    low, high = limits(hot)
    assert low == 0
    assert high == pytest.approx(np.percentile(hot, 99.9), abs=1)
    many = values.copy()
    many[:40] = 65535  # a fifth is no accident
    assert limits(many) == (0, 65535)


def test_numbers_of_no_data_do_not_enter_the_range() -> None:
    heights = ramp(10, 800, "f4")
    holes = heights.copy()
    holes[::4] = -9999
    found = own_range([Numbers(holes, 32)])
    assert found.range == Range((0.0, 800.0), (-9999.0,))
    holes[::4] = np.finfo(np.float32).min
    assert own_range([Numbers(holes, 32)]).range.limits == (0, 800)
    holes[::4] = np.nan
    holes[1] = np.inf
    assert own_range([Numbers(holes, 32)]).range == Range((0.0, 800.0))
    tagged = ramp(10, 700, "i2")
    tagged[::4] = -500  # no customary number, but the file names it
    assert limits(tagged, missing=(-500.0,)) == (0, 700)
    assert own_range([Numbers(tagged, 16)], named=(-500.0,)).range == Range((0.0, 700.0), (-500.0,))


def test_a_customary_number_among_others_is_a_number() -> None:
    depths = ramp(-11000, 8800, "f4")
    depths[20, 0] = -9999
    found = own_range([Numbers(depths, 32)]).range
    assert found == Range((-11000.0, 8800.0))


def test_integers_and_shares_of_one_set_have_a_range_each() -> None:
    assert limits(ramp(0, 4095), ramp(0, 1, "f4")) == (0, 4095, 0, 1)
    assert limits(ramp(0, 4095), ramp(0, 4095, "f4").round()) == (0, 4095)
    assert limits(ramp(0, 1), ramp(0, 1, "f4")) == (0, 1)


def write(folder: Path, count: int = 12, top: int = 4095) -> Path:
    """12 bits in files of 16, of several kinds, and plain photos beside them."""
    for number in range(count):
        values = RANDOM.integers(0, top + 1, (40, 48), dtype=np.uint16)
        values[0, :2] = 0, top
        kind = folder / "ab"[number % 2]
        kind.mkdir(parents=True, exist_ok=True)
        content = [tiff(values), png(values), tiff(values.astype(np.float32))][number % 3]
        (kind / f"{number:02}{'.png' if number % 3 == 1 else '.tif'}").write_bytes(content)
    return folder


def photos(folder: Path, count: int = 12) -> Path:
    for number in range(count):
        kind = folder / "ab"[number % 2]
        kind.mkdir(parents=True, exist_ok=True)
        pixels = RANDOM.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(kind / f"{number:02}.{'png' if number % 3 else 'jpg'}")
    return folder


def test_the_range_of_a_set_is_looked_for_in_a_sample_of_it(tmp_path: Path) -> None:
    images = open_images([str(write(tmp_path / "deep"))])
    assert find_range(images).range == Range((0.0, 4095.0))
    assert find_range(images, (0.0, 9.0), (1.0,)).range == Range((0.0, 9.0), (1.0,))
    plain = open_images([str(photos(tmp_path / "photos"))])
    assert find_range(plain).range == BYTES
    both = open_images([str(tmp_path / "deep"), str(tmp_path / "photos")])
    assert find_range(both).range == Range((0.0, 4095.0))
    assert find_range(open_images(["fractal:10"])).range == BYTES


def test_a_sample_is_drawn_over_the_whole_set_and_always_the_same(tmp_path: Path) -> None:
    images = open_images([str(write(tmp_path, 3 * SAMPLE, 1000))])
    first, again = find_range(images), find_range(images)
    assert first == again
    assert f"of {SAMPLE} sampled images" in first.reason


def test_a_wrong_ending_hides_no_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(png(ramp(0, 4095)))
    assert find_range(open_images([str(tmp_path)])).range.limits == (0, 4095)


def test_plain_photos_have_the_same_pixels_and_fingerprint_by_any_range(tmp_path: Path) -> None:
    images = open_images([str(photos(tmp_path))])
    ranged = replace(images, range=Range((0.0, 4095.0), (7.0,)))
    assert ranged.fingerprint == images.fingerprint
    for index in range(len(images)):
        expected = np.asarray(Image.open(images.paths[index]).convert("RGB"))
        assert np.array_equal(np.asarray(ranged.read(index)), expected)
        assert np.array_equal(np.asarray(images.read(index)), expected)


def test_features_of_another_range_are_not_taken_from_the_cache(tmp_path: Path) -> None:
    images = open_images([str(write(tmp_path))])
    digests = {images_digest(replace(images, range=one)) for one in (FULL, BYTES, Range((0.0, 4095.0)))}
    assert len(digests) == 2  # nothing is read otherwise by FULL and BYTES


def test_ranges_survive_json() -> None:
    for one in (FULL, BYTES, Range((0.0, 4095.0), (-9999.0, float(np.finfo(np.float32).min)))):
        assert parse_range(json.loads(json.dumps(one.setting())), list(one.nodata)) == one
    for wrong in ("own", [1], [2, 1], [0, 1, 5, 5], [0, "1"], [0, float("nan")], None, 4095):
        with pytest.raises(ValueError, match="range"):
            parse_range(wrong)


SHORT = {"backbone": "test_vit", "size": 32, "batch_size": 4, "epochs": 1, "workers": 0, "pictures": 0}


def test_a_run_keeps_its_range_and_so_does_all_that_comes_of_it(tmp_path: Path) -> None:
    data = write(tmp_path / "deep")
    run = sslkit.pretrain(data, out=tmp_path / "run", **SHORT)
    own = Range((0.0, 4095.0))
    assert read(str(run / "config.toml"))["data.range"] == [0.0, 4095.0]
    assert json.loads((run / "run.json").read_text())["data"]["range"] == [0.0, 4095.0]
    assert sslkit.load_encoder(run).range == own
    folder = sslkit.export(run, tmp_path / "export").folder
    encoder = sslkit.load_encoder(folder)
    assert encoder.range == own
    # Darker images than the run's are darker for it, and bright by a range of their own.
    dark = open_images([str(write(tmp_path / "dark", top=1000))])
    assert with_range(dark, encoder.range, SILENT).range == own
    assert with_range(dark, sslkit.load_encoder("random/test_vit", 32).range, SILENT).range != own
    image = sslkit.read_image(dark.paths[0], range=encoder.range)
    assert np.asarray(image).max() == round(255 * 1000 / 4095)
    tuned = sslkit.finetune(folder, data, out=tmp_path / "tuned", epochs=1, workers=0, size=32)
    assert sslkit.load_encoder(tuned.folder).range == own
    assert read(str(tuned.folder / "config.toml"))["data.range"] == [0.0, 4095.0]


def test_a_run_of_an_earlier_version_is_read_as_it_was(tmp_path: Path) -> None:
    data = write(tmp_path / "deep")
    run = sslkit.pretrain(data, out=tmp_path / "run", **SHORT)
    file = run / "config.toml"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(one for one in lines if not one.startswith(("range", "nodata"))))
    values = read(str(file))
    assert (values["data.range"], values["data.nodata"]) == ("full", [])
    config = json.loads((run / "config.json").read_text())
    del config["sslkit"]
    (run / "config.json").write_text(json.dumps(config))
    assert sslkit.load_encoder(run).range == FULL
    other = tmp_path / "mine.toml"  # no run's
    other.write_text("[data]\nlimit = 4\n")
    assert "data.range" not in read(str(other))


def test_a_run_of_plain_photos_says_that_it_knows_no_range(tmp_path: Path) -> None:
    run = sslkit.pretrain(photos(tmp_path / "photos"), out=tmp_path / "run", **SHORT)
    assert read(str(run / "config.toml"))["data.range"] == "8-bit"
    assert sslkit.load_encoder(run).range == BYTES


def test_a_damaged_range_in_config_json_is_refused_in_one_line(tmp_path: Path) -> None:
    run = sslkit.pretrain(photos(tmp_path / "photos"), out=tmp_path / "run", **SHORT)
    config = json.loads((run / "config.json").read_text())
    config["sslkit"]["range"] = [4095, 0]
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="range"):
        sslkit.load_encoder(run)


def test_a_pack_made_smaller_has_its_range_and_gives_it_to_the_run(tmp_path: Path) -> None:
    data = write(tmp_path / "deep")
    pack([str(data)], tmp_path / "small", Settings(size=32))
    assert json.loads((tmp_path / "small" / DESCRIPTION).read_text())["range"] == [0.0, 4095.0]
    images = open_images([str(tmp_path / "small")])
    found = find_range(images)
    assert found.range == Range((0.0, 4095.0))
    assert "pack" in found.reason
    brightness = np.asarray(images.read(0)).mean()
    assert 100 < brightness < 155  # even numbers from 0 to 4095; read in full it would be 8
    pack([str(data)], tmp_path / "copy")
    packed = open_images([str(tmp_path / "copy")])
    copy = replace(packed, range=find_range(packed).range)
    files = replace(open_images([str(data)]), range=copy.range)
    assert copy.range == Range((0.0, 4095.0))
    for index in range(len(files)):
        assert np.array_equal(np.asarray(copy.read(index)), np.asarray(files.read(index)))


def test_packs_of_two_ranges_are_refused_with_a_cure_that_works(tmp_path: Path) -> None:
    """The hint is followed: both made again with the same --range can be read together."""
    twelve, ten = write(tmp_path / "twelve"), write(tmp_path / "ten", top=1023)
    for name, data, asked in (
        ("one", twelve, None), ("two", ten, None), ("first", twelve, "0,4095"), ("second", ten, (0, 4095)),
    ):  # fmt: skip
        pack([str(data)], tmp_path / name, Settings(size=32), range=asked)
    with pytest.raises(UserError, match=r"one was made by data.range = \[0, 4095\], .*two by \[0, 1023\]"):
        find_range(open_images([str(tmp_path / "one"), str(tmp_path / "two")]))
    both = find_range(open_images([str(tmp_path / "first"), str(tmp_path / "second")]))
    assert both.range == Range((0.0, 4095.0))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0;4095", "two numbers expected"),
        ("0,1,2", "two numbers expected"),
        ("4095,0", "black must be below white"),
        ("0,inf", "finite numbers expected"),
        ("", "two numbers expected"),
    ],
)
def test_a_range_mistyped_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as error:
        parse_limits(text)
    assert error.value.hint == "--range 0,4095 for twelve bits"


def test_a_range_as_it_is_given() -> None:
    assert parse_limits("0,4095") == parse_limits("[0, 4095]") == parse_limits((0, 4095)) == (0.0, 4095.0)
    assert parse_limits("-1024,3071") == (-1024.0, 3071.0)
    assert parse_limits("full") == "full"


def test_a_range_that_nothing_would_be_read_by_is_refused(tmp_path: Path) -> None:
    data = write(tmp_path / "deep")
    with pytest.raises(UserError, match="copied with the numbers they have"):
        pack([str(data)], tmp_path / "copy", range="0,4095")


def test_vectors_and_probes_by_a_range_that_was_asked_for(tmp_path: Path) -> None:
    """A 12-bit set read by [0, 8192] is as bright as one with half its numbers read by [0, 4096]."""
    for number in range(12):
        values = RANDOM.integers(0, 2048, (40, 48), dtype=np.uint16)
        for name, factor in (("deep", 2), ("halves", 1)):
            kind = tmp_path / name / "ab"[number % 2]
            kind.mkdir(parents=True, exist_ok=True)
            (kind / f"{number:02}.tif").write_bytes(tiff(values * np.uint16(factor)))
    vectors = {}
    for name, data, asked in (
        ("deep", "deep", "0,8192"),
        ("halves", "halves", "0,4096"),
        ("own", "deep", None),
    ):
        out = tmp_path / f"{name}.npz"
        sslkit.embed("random/test_vit", tmp_path / data, out, size=32, range=asked)
        with np.load(out) as file:
            vectors[name] = next(file[key] for key in file.files if file[key].ndim == 2)
    assert np.array_equal(vectors["deep"], vectors["halves"])
    assert not np.allclose(vectors["deep"], vectors["own"])

    result = sslkit.probe("random/test_vit", data=tmp_path / "deep", size=32, range="0,8192", baselines=())
    other = sslkit.probe("random/test_vit", data=tmp_path / "halves", size=32, range="0,4096", baselines=())
    assert result.rows[0].linear == other.rows[0].linear


def test_a_source_with_another_range_warns(capsys: pytest.CaptureFixture[str]) -> None:
    asked = asked_range(Range((0.0, 4095.0)), "0,1023", "runs/one", Console())
    assert asked == Range((0.0, 1023.0))
    assert "runs/one was trained on numbers by data.range = [0, 4095]" in capsys.readouterr().err
    assert asked_range(BYTES, "0,1023", "timm/x", Console()) == Range((0.0, 1023.0))
    assert not capsys.readouterr().err


def test_check_tells_the_range_and_finds_what_shows_little(tmp_path: Path) -> None:
    data = write(tmp_path / "deep")
    steps = np.repeat(np.arange(8, dtype=np.uint16) * 512, 240).reshape(40, 48)
    (data / "a" / "steps.tif").write_bytes(tiff(steps))
    saturated = RANDOM.integers(0, 4095, (40, 48), dtype=np.uint16)
    saturated[:10] = 4095
    (data / "a" / "saturated.tif").write_bytes(tiff(saturated))
    night = RANDOM.integers(0, 20, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(night).save(data / "b" / "night.png")
    found = audit([str(data)], workers=0)
    assert found.numbers.range.limits == (0, 4095)
    rows = {one.kind: {Path(path).name: told for path, told in one.rows} for one in found.findings}
    assert rows["dark"]["00.tif"] == "16-bit, uses 4096 of 65536 levels"
    assert "night.png" in rows["dark"]
    assert "02.tif" not in rows["dark"]  # floats have no levels to leave unused
    assert set(rows["clipped"]) == {"saturated.tif"}
    assert rows["few levels"]["steps.tif"] == "8 levels of brightness"


def test_photos_as_usual_have_no_such_findings(tmp_path: Path) -> None:
    page = np.full((40, 48, 3), 255, np.uint8)  # a thing on white
    page[12:30, 12:30] = RANDOM.integers(0, 256, (18, 18, 3), dtype=np.uint8)
    Image.fromarray(page).save(photos(tmp_path) / "a" / "page.png")
    kinds = {finding.kind for finding in audit([str(tmp_path)], workers=0).findings}
    assert not kinds & {"dark", "clipped", "few levels"}
