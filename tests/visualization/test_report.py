"""report.html: safe, valid, readable; and, where there is a browser, on a phone, in the dark and on paper."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sslkit.augmentations.corruptions import CORRUPTIONS
from sslkit.core.config import build as configuration
from sslkit.core.config.build import build_pretrain
from sslkit.core.errors import UserError
from sslkit.data.sources.image_set import open_images
from sslkit.evaluation.robustness.robustness_result import (
    RobustnessResult,
    SourceRobustness,
    against,
    make_robustness_plan,
)
from sslkit.methods import card
from sslkit.methods.base import Info
from sslkit.training.run import checkpoint
from sslkit.training.run.folder import RunFolder, build_method, describe
from sslkit.visualization.figures.seeds import read_seeds, seed_plot
from sslkit.visualization.report import html as page_made
from sslkit.visualization.report import results_section, run_section
from sslkit.visualization.report.html import drawn, picture, shown
from sslkit.visualization.report.report import write_report

HOSTILE = "$\\x$<script>alert('x')</script>&\"quoted\"\n\x1b[31m\u202e"
VISIBLE = "$\\x$<script>alert('x')</script>&\"quoted\"\\n\\x1b[31m\\u202e"
PROBE = {
    "data": HOSTILE,
    "k": 20,
    "counts": {"train": 8, "validation": 2, "classes": 2},
    "headlines": [f"nothing can be claimed: {HOSTILE}"],
    "rows": [{"name": HOSTILE, "knn": 51.25, "knn_interval": 4.0, "linear": 60.0, "linear_interval": 3.0}],
    "verdicts": [{"sentence": "above raw pixels: linear", "unknown": [1]}],
    "leaks": {"count": 3, "copies": [1, 2], "near": [5], "excluded": False},
    "shots": [{"shots": 5, "seeds": [0, 1, 2], "rows": [{"name": "r", "knn": 1.0, "knn_std": 0.5}]}],
    "from a later version": {"anything": None},
}
FINETUNE = {"top1": 71.234, "top5": None, "worst": [[HOSTILE, 0.0, 3]], "counts": {"train": 8}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, not trained, on ten generated images; its data have a hostile name."""
    found = open_images(["fractal:10"])
    values = {"model.backbone": "test_vit", "data.size": 32, "data.sources": ("fractal:10",), "run.seed": 5}
    values |= {"run.batch_size": 5, "run.device": "cpu"}
    resolved = {"method.radius": 4.5, "method.low_share": 0.5, "schedule.epochs": 2, "model.patch_size": 0}
    config = build_pretrain("mfm", card("mfm").Config, {**values, **resolved})
    folder = RunFolder.create(tmp_path_factory.mktemp("runs") / "mfm\x07-test-1")
    (folder.path / "config.toml").write_text(configuration.dump(config), encoding="utf-8")
    info = Info(10, 32, 128)
    facts = describe(found, info, torch.device("cpu"))
    folder.update(status="completed", step=4, **{**facts, "data": {**facts["data"], "name": HOSTILE}})
    method = build_method(config, info)
    checkpoint.write(folder.path / "checkpoints", 4, method, torch.optim.AdamW(method.parameters()), {})
    for step in range(1, 5):
        folder.log({"step": step, "epoch": step / 2, "loss": 1 / step, "loss_low": None, "rank": 2.0})
        picture = np.random.default_rng(step).integers(0, 256, (8 * 32, 4 * 32, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder.path / "pictures" / f"step-{step:08}.png")
    Image.fromarray(np.zeros((30, 40, 4), dtype=np.uint8)).save(folder.path / "pictures" / "map-2.png")
    (folder.path / "pictures" / "broken.png").write_text("not a picture")
    return folder.path


@pytest.fixture
def bare(made: Path, tmp_path: Path) -> Path:
    """The run on another machine: figures and settings, but no images, no pictures and no weights."""
    copy = tmp_path / "bare"
    copy.mkdir()
    for name in ("run.json", "config.toml", "metrics.jsonl"):
        text = (made / name).read_text(encoding="utf-8").replace("fractal:10", "gone-folder")
        (copy / name).write_text(text, encoding="utf-8")
    return copy


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that every element is closed where it was opened."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute of <{tag}> twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data.replace("\N{NO-BREAK SPACE}", " ")

    def all(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]


def read(run: Path, extra: dict[str, Any] | None = None) -> Reader:
    return Reader(write_report(run, extra).read_text(encoding="utf-8"))


def robust(count: int = 40) -> dict[str, Any]:
    """A document as `probe --robust` writes it, of made-up figures."""
    plan = make_robustness_plan(32, severities=(1, 5), radii=(2.0, 8.0), heat_map=1, epsilons=(1.0,))

    def row(name: str, level: float) -> SourceRobustness:
        accuracies = dict.fromkeys(CORRUPTIONS, (level, level / 2))
        share = torch.linspace(0, 1.5 * level / 100, count).double()[None]
        error = ((50.0,) * 3,) * 3
        return SourceRobustness(
            name, level, accuracies, (10.0, level), (9.0, 8.0), error, (20.0,), (15.0,), share
        )

    base = row("random", 40.0)
    rows = (against(row(HOSTILE, 60.0), base), against(base, base))
    document: dict[str, Any] = json.loads(json.dumps(RobustnessResult(rows, plan, count, 32).to_document()))
    document["rows"][0]["unknown"] = document["unknown"] = 1
    return document


@pytest.fixture(scope="module")
def page(made: Path) -> Path:
    """With everything that can be in it, under a name that other tests' reports of this run leave alone."""
    written = write_report(made, {"probe": {**PROBE, "robustness": robust()}, "finetune": FINETUNE})
    return written.rename(made / "page.html")


# -------------------------------------------------------------------------------------------- the page


def test_it_is_one_safe_page(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = Reader(text)
    assert {"script", "link", "iframe", "object"}.isdisjoint(tag for tag, _ in found.tags)
    for tag, attributes in found.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "srcset", "action", "data", "poster"):
                assert (tag, (value or "")[:11]) == ("img", "data:image/")
            if name == "href":
                assert (value or "").startswith("#")
    assert "url(" not in text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]", text)
    # in run.json, thrice; the probe's data, row, verdict; the worst class; a row of the robustness
    assert found.text.count(VISIBLE) == 8
    assert "mfm\\x07-test-1" in found.text


def comparison(seeds: int, scratch: bool = True) -> dict[str, Any]:
    """A document as `finetune --seeds` writes it."""
    top1 = [40.0, 44.0, 42.0][:seeds], [38.0, 37.0, 39.0][:seeds]
    document: dict[str, Any] = {
        "top1": 42.0, "top5": 90.0, "top1_std": 2.0 if seeds > 1 else None, "worst": [["cat", 0.0, 3]],
        "folder": "away", "seeds": [*range(5, 5 + seeds)], "verdict": "better with every seed",
        "runs": [{"top1": value} for arm in top1[: 1 + scratch] for value in arm],
    }  # fmt: skip
    if scratch:
        differences = [first - second for first, second in zip(*top1, strict=True)]
        document["baseline"] = {"name": "random weights", "top1": 38.0, "top1_std": 1.0}
        document["difference"] = {"points": 4.0, "margin": 6.2, "per_seed": differences}
    return document


def test_a_comparison_shows_every_seed_and_the_difference(made: Path) -> None:
    found = read(made, {"finetune": comparison(3)})
    for told in (
        "better with every seed",
        "seed 6",
        "44.0",
        "+7.0",
        "42.0 ± 2.0",
        "38.0 ± 1.0",
        "+4.0 ± 6.2",
    ):
        assert told in found.text
    assert "42.0, mean over 3 seeds" in found.text
    assert "The classes with the lowest recall, with seed 5" in found.text
    assert "90.0" not in found.text  # top-5 is the first run's alone
    assert any((picture["alt"] or "").startswith("Above: top-1") for picture in found.all("img"))


@pytest.mark.parametrize("seeds", [1, 3])
def test_seeds_without_a_baseline_have_no_differences(made: Path, seeds: int) -> None:
    found = read(made, {"finetune": comparison(seeds, scratch=False)})
    assert "seed 5" in found.text
    assert "From random weights" not in found.text
    assert ("42.0 ± 2.0" in found.text) == (seeds > 1)


def test_the_plot_of_seeds_holds_its_figures() -> None:
    figure = seed_plot(read_seeds(comparison(3)))
    above, below = figure.axes
    runs = [found.get_offsets().tolist() for found in above.collections]
    assert runs[0] == [[40, 0], [44, 1], [42, 2]]
    assert runs[1] == [[42, 3]]
    assert runs[2] == [[38, 0], [37, 1], [39, 2]]
    assert below.collections[0].get_offsets().tolist() == [[2, 0], [7, 1], [3, 2]]
    low, high = below.get_xlim()
    assert low == -high < 4 - 6.2
    assert 'class="wide"' not in drawn(figure, "")  # a phone shows it whole
    ink, page = figure.get_tightbbox(), figure.bbox_inches
    assert page.x0 <= ink.x0 < ink.x1 <= page.x1
    assert page.y0 <= ink.y0 < ink.y1 <= page.y1


def test_its_structure_can_be_read_aloud(page: Path) -> None:
    found = Reader(page.read_text(encoding="utf-8"))
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(cell.get("scope") in ("row", "col") for cell in found.all("th"))
    pictures = found.all("img")
    assert len(pictures) > 10
    assert all(len(picture["alt"] or "") > 5 for picture in pictures)
    names = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(names) == len(set(names))
    links = [(link["href"] or "")[1:] for link in found.all("a")]
    assert links == [name for name in names if name in links]
    assert len(links) == len(found.all("section"))


def test_what_was_trained_and_what_came_of_it(page: Path) -> None:
    text = Reader(page.read_text(encoding="utf-8")).text
    for told in (
        "10 from $\\x$<script>",
        "test_vit, 32 px",
        "started from random weights",
        "51.2 ± 4.0",
        "above raw pixels: linear",
        "3 validation images are, or almost are, in the training images too; they are counted in.",
        "With 5 labelled images per class, top-1 in %, ± deviation of 3 draws",
        "1.0 ± 0.5",
        "71.2",
        "45.0",  # corrupted: (60 + 30) / 2
        "78.6",  # mCE: (40 + 70) / (60 + 80), in percent
        "Step 4, epoch 2.0: image, corrupted, prediction, composite",
        "map-2.png",
        "model.backbone",
        f"sslkit pretrain -c '{shown(page.parent)}".replace("&#x27;", "'"),
        "torch",
    ):
        assert told in text, told
    assert "broken.png" not in text


def test_what_is_not_there_is_absent(bare: Path) -> None:
    page = read(bare)
    assert len(page.all("img")) == 1  # the curves need no images
    assert page.text.count("Not drawn: ") == 3
    for title in ("Did it help?", "Fine-tuned", "Robustness", "On the way", "More pictures"):
        assert title not in page.text
    (bare / "metrics.jsonl").unlink()
    assert "Speed" not in read(bare).text


def test_it_reads_the_documents_of_the_run_and_is_made_anew(bare: Path) -> None:
    first = write_report(bare)
    (bare / "probe.json").write_text(
        '{"verdicts": [{"sentence": "it helped"}], "rows": []}', encoding="utf-8"
    )
    assert write_report(bare) == first
    assert "it helped" in first.read_text(encoding="utf-8")
    assert [path.name for path in bare.glob("*report*")] == ["report.html"]
    (bare / "probe.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"probe\.json can't be read"):
        write_report(bare)


@pytest.mark.parametrize(
    "document",
    [[1], "text", {"rows": 3}, {"rows": [3]}, {"verdicts": [{}]}, {"robustness": [1]}, {"shots": {"a": 1}}],
)
def test_another_versions_documents_do_no_harm(bare: Path, document: Any) -> None:
    page = read(bare, {"probe": document, "finetune": document})
    assert "Commands" in page.text


def test_a_robustness_without_all_its_parts(bare: Path) -> None:
    whole = robust()
    part = {**whole, "plan": {**whole["plan"], "radii": [], "epsilons": []}}
    assert results_section.robustness_section(whole).count("<img") == 4
    assert results_section.robustness_section(part).count("<img") == 2
    assert results_section.robustness_section({**whole, "plan": {}}).count("<img") == 0


def test_the_class_that_images_are_mistaken_for(bare: Path) -> None:
    folder = bare.parent / "finetune-1"
    (folder / "pictures").mkdir(parents=True)
    rows = ["path,label,predicted,confidence", "1,hat,shoe,1", "2,hat,shoe,1", "3,hat,coat,1", "4,hat,hat,1"]
    (folder / "predictions.csv").write_text("\n".join(rows))
    Image.new("RGB", (20, 20)).save(folder / "pictures" / "confusion.png")
    text = results_section.finetune_section(
        {"folder": "elsewhere/finetune-1", "worst": [["hat", 25.0, 4]]}, bare
    )
    assert "<td>25</td><td>4</td><td>shoe (2)</td>" in text
    assert "Confusion matrix" in text


def test_what_is_of_one_seed_says_so_and_half_the_classes_are_not_the_worst(bare: Path) -> None:
    folder = bare.parent / "finetune-1"
    (folder / "pictures").mkdir(parents=True)
    for name in ("confusion", "reliability"):
        Image.new("RGB", (20, 20)).save(folder / "pictures" / f"{name}.png")
    worst = [[name, percent, 4] for percent, name in enumerate(("hat", "shoe", "coat", "dress", "sock"))]
    document = {"folder": "elsewhere/finetune-1", "counts": {"classes": 5}, "worst": worst}
    alone = results_section.finetune_section(document, bare)
    assert "seed" not in alone
    assert [name for _, _, name in ((0, 0, name) for name, *_ in worst) if name in alone] == ["hat", "shoe"]
    runs = comparison(3)
    runs["runs"][0]["folder"] = runs["folder"] = "elsewhere/finetune-1"
    of_seeds = results_section.finetune_section(runs, bare)
    assert "Confusion matrix, with seed 5: of each class (row), what percentage" in of_seeds
    assert "Reliability, with seed 5: " in of_seeds


def test_pictures_on_the_way_show_both_tasks(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    rows = np.repeat(np.arange(8, dtype=np.uint8) * 30, 16)  # eight images of 16 px, each of one grey
    grid = np.broadcast_to(rows[:, None], (128, 64))
    Image.fromarray(grid).convert("RGB").save(tmp_path / "pictures" / "step-00000004.png")

    def greys(tasks: dict[int, str]) -> tuple[str, list[int]]:
        text = run_section.over_time(tmp_path, 16, ["image"], 2.0, tasks)
        (data,) = re.findall(r'src="data:image/png;base64,(.*?)"', text)
        with Image.open(io.BytesIO(base64.b64decode(data))) as opened:
            column = np.asarray(opened.convert("L"))[:, 0]
        return text, (column[:: len(column) // 4] // 30).tolist()

    both, shown = greys({0: "lows given", 1: "highs given"})
    assert shown == [0, 1, 4, 5]
    assert "Upper rows: lows given; lower rows: highs given." in both
    one, shown = greys({1: "highs given"})
    assert shown == [4, 5, 6, 7]
    assert "Every row: highs given." in one
    assert greys({})[1] == [0, 1, 2, 3]


def test_the_verdict_stands_before_the_facts(bare: Path) -> None:
    text = read(bare, {"probe": PROBE}).text
    assert text.index("nothing can be claimed: ") < text.index("Status") < text.index("above raw pixels")
    assert text.count("nothing can be claimed: ") == 1
    title = text[: text.index(":root")]
    assert f"mfm on test_vit, 10 images of {VISIBLE}: bare" in title


def test_large_pictures_are_made_smaller(bare: Path) -> None:
    (bare / "pictures").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (1500, 3000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(bare / "pictures" / "map.png")
    page = read(bare)
    (large,) = [picture for picture in page.all("img") if (picture["alt"] or "").startswith("map.png")]
    assert (large["width"], large["height"]) == ("1600", "800")
    assert (bare / "report.html").stat().st_size < 3_500_000 < (bare / "pictures" / "map.png").stat().st_size


def test_pictures_are_those_of_the_probe_that_is_told(bare: Path) -> None:
    (bare / "pictures").mkdir()
    files = ("probe.png", "probe-shots.png", "probe-grid.png", "robust-waves.png", "robust-waves-2.png")
    for name in files:
        Image.new("RGB", (20, 20)).save(bare / "pictures" / name)
    page = read(bare, {"probe": {**PROBE, "robustness": robust()}})
    captions = [picture["alt"] or "" for picture in page.all("img")]
    assert sum(alt.startswith("Accuracies of the probe") for alt in captions) == 1
    assert sum("labelled images per class" in alt for alt in captions) == 1
    assert not any("sizes and normalisations" in alt for alt in captions)
    assert sum("noise of one frequency" in alt for alt in captions) == 1
    assert "More pictures" not in page.text
    page = read(bare, {"probe": {**PROBE, "shots": []}})
    assert not any("labelled" in (picture["alt"] or "") for picture in page.all("img"))


def test_photos_in_grey_become_jpeg_where_that_is_smaller() -> None:
    """They have few colours; a plot of as few is smaller as PNG."""
    levels = np.random.default_rng(0).normal(128, 20, (600, 800)).clip(0, 255).astype(np.uint8)
    found = picture(Image.fromarray(levels), "grey")
    assert "data:image/jpeg" in found
    whole = io.BytesIO()
    Image.fromarray(levels).convert("RGB").save(whole, "png")
    assert len(found) < 4 / 3 * len(whole.getvalue())
    assert "data:image/png" in picture(Image.new("L", (800, 600)), "flat")


def test_both_read_outs_are_told(bare: Path) -> None:
    row = {"name": "r", "knn": 1.0, "linear": 2.0, "knn_readout": "cls", "linear_readout": "last4"}
    text = results_section.probe_section({"rows": [row]}, bare)
    assert re.findall('<th scope="col">(.*?)</th>', text) == [
        "Features", "kNN, k = 20", "kNN reads", "Linear", "Linear reads",
    ]  # fmt: skip
    assert "<td>1.0</td><td>class token</td><td>2.0</td><td>last 4</td>" in text


def test_one_image_and_one_draw_are_no_plural(bare: Path) -> None:
    text = results_section.probe_section(
        {"shots": [{"shots": 1, "seeds": [0], "rows": [{"name": "r", "knn": 1.0}]}]}, bare
    )
    assert "With 1 labelled image per class, top-1 in %, one draw" in text


# ----------------------------------------------------------------------------------------------- words


def line(step: int, **figures: float) -> dict[str, float]:
    return {"step": step, "epoch": step / 10, **figures}


@pytest.mark.parametrize(
    ("figures", "told"),
    [
        ({"loss": (2.0, 1.0)}, "2 → 1</td><td>it fell"),
        ({"loss": (1.0, 1.0)}, "it did not fall"),
        ({"std": (0.1, 0.0001)}, "<td>yes</td><td>all images get nearly the same features"),
        ({"std": (0.1, 0.1)}, "no sign of it"),
        ({"rank": (9.0, 2.0)}, "few directions"),
        ({"rank": (9.0, 30.0)}, "varied"),
        ({"nonfinite": (0, 3)}, "<td>3</td><td>their updates were left out"),
    ],
)
def test_health_in_plain_words(figures: dict[str, tuple[float, float]], told: str) -> None:
    lines = [line(n + 1, **{name: pair[n] for name, pair in figures.items()}) for n in range(2)]
    assert told in run_section.health(lines, 64, 1.0, 64)


def test_a_rank_is_judged_by_what_so_few_images_can_have() -> None:
    lines = [line(step, rank=22.5) for step in (4, 8)]
    text = run_section.health(lines, 512, 1.0, 8)
    assert "<td>22.5 among 32 images in 512 dimensions</td><td>varied</td>" in text
    assert "<td>few directions" in run_section.health(lines, 512, 1.0, 500)  # 25.6 are a twentieth
    assert "among 512 images" in run_section.health(lines, 512, 1.0, 500)  # no more are kept
    assert "<td>few directions" in run_section.health([line(4, rank=1.5)], 512, 1.0, 8)


def test_a_task_that_is_not_learned_is_told() -> None:
    lines = [line(1, loss=2.0, loss_low=4.0), line(2, loss=1.0, loss_low=4.125)]
    text = run_section.health(lines, 64, 1.0, 8)
    assert "Loss</th><td>2 → 1</td><td>it fell" in text
    assert "Loss, low frequencies predicted</th><td>4 → 4.125</td><td>it did not fall" in text
    assert "high frequencies" not in text


def test_a_number_and_its_unit_stay_on_a_line() -> None:
    told = "+1.5 ± 2.1 points of 40.0 % at 32 px"
    assert page_made.paragraph(told).replace("\N{NO-BREAK SPACE}", "_") == f"<p>{told}</p>".replace(
        "+1.5 ± 2.1 points", "+1.5_±_2.1_points"
    ).replace("40.0 %", "40.0_%").replace("32 px", "32_px")


def test_settings_that_differ() -> None:
    known = card("mfm")
    values = {**known.facts["defaults"], "data.sources": ["photos"]}
    usual = build_pretrain("mfm", known.Config, {**values, "schedule.epochs": 7})
    assert "Every setting is the default" in run_section.settings_section(usual)
    other = build_pretrain("mfm", known.Config, {**values, "optim.clip": 1.5})
    assert '<th scope="row">optim.clip</th><td>1.5</td><td>3.0</td>' in run_section.settings_section(other)


def test_waiting_has_a_cure() -> None:
    slow, fast = ([line(1, images_per_s=10.0, wait=share)] for share in (0.5, 0.1))
    assert "50.0\N{NO-BREAK SPACE}% of the time: more --workers" in run_section.speed(slow, {"step": 5}, 4)
    assert "--workers" not in run_section.speed(fast, {"step": 5}, 4)


# --------------------------------------------------------------------------------------------- browser

MEASURE = """<!DOCTYPE html><title>?</title><body style="margin:0">
<iframe id="f" style="border:0;width:WIDTHpx;height:20000px" srcdoc="PAGE"></iframe>
<script>onload = () => {
  const page = document.getElementById("f").contentWindow, root = page.document.documentElement;
  const loads = page.performance.getEntriesByType("resource").map(e => e.name.slice(0, 5));
  const broken = [...page.document.images].filter(i => !i.naturalWidth).length;
  const torn = [];
  for (const cell of page.document.querySelectorAll("th")) {
    const walk = page.document.createTreeWalker(cell, 4), range = page.document.createRange();
    while (walk.nextNode()) for (const word of walk.currentNode.data.matchAll(/[^\\s\\u00a0]+/g)) {
      range.setStart(walk.currentNode, word.index);
      range.setEnd(walk.currentNode, word.index + word[0].length);
      if (word[0].length < 12 && range.getClientRects().length > 1) torn.push(word[0]);
    }
  }
  document.title = JSON.stringify([root.scrollWidth, root.clientWidth, loads, broken, torn]);
}</script>"""


@pytest.fixture(scope="module")
def browse(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Opens a file in Chromium, without a window; what it prints."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium here; Debian: apt install chromium")
    profile = tmp_path_factory.mktemp("profile")

    def call(file: Path, *options: str) -> str:
        words = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-pdf-header-footer"]
        line = [program, *words, f"--user-data-dir={profile}", *options, file.as_uri()]
        done = subprocess.run(line, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return call


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_hangs_over_and_nothing_is_loaded(
    width: int, page: Path, browse: Callable[..., str], tmp_path: Path
) -> None:
    from html import escape

    frame = MEASURE.replace("WIDTH", str(width)).replace("PAGE", escape(page.read_text(encoding="utf-8")))
    (tmp_path / "frame.html").write_text(frame, encoding="utf-8")
    shown = re.search("<title>(.*?)</title>", browse(tmp_path / "frame.html", "--dump-dom"))
    assert shown is not None
    scrolled, visible, loads, broken, torn = json.loads(shown[1])
    assert (scrolled, visible) == (width, width)
    assert set(loads) <= {"data:"}
    assert broken == 0
    assert torn == []


@pytest.mark.slow
def test_it_is_light_or_dark_as_people_like(page: Path, browse: Callable[..., str], tmp_path: Path) -> None:
    corners = {}
    for name, option in (("light", "0"), ("dark", "1")):
        picture = tmp_path / f"{name}.png"
        scheme = f"--blink-settings=preferredColorScheme={1 - int(option)}"
        browse(page, f"--screenshot={picture}", "--window-size=1000,800", scheme)
        with Image.open(picture) as opened:
            corners[name] = opened.convert("L").getpixel((2, 2))
    assert corners == {"light": 255, "dark": 25}


@pytest.mark.slow
def test_it_prints(page: Path, browse: Callable[..., str], tmp_path: Path) -> None:
    browse(page, f"--print-to-pdf={tmp_path / 'page.pdf'}")
    content = (tmp_path / "page.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert 5 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 20
