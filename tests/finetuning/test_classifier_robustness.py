"""finetune --robust: fine-tuned classifiers with their own heads, against timm, predictions.csv and NumPy."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers import STRIPES, called, export_test_vit, write_stripes

from sslkit import api
from sslkit.augmentations.corruptions import CORRUPTIONS
from sslkit.core.config.build import read
from sslkit.core.console import Console
from sslkit.core.errors import UserError
from sslkit.evaluation.metrics.significance import STUDENT
from sslkit.evaluation.robustness.robustness_result import RobustnessResult, SourceRobustness, mean_row
from sslkit.finetuning.classifier_files import OpenedClassifier
from sslkit.finetuning.classifier_robustness import FILE, measure_classifiers
from sslkit.finetuning.comparison import SCRATCH, Comparison
from sslkit.finetuning.config import from_values
from sslkit.finetuning.finetune import finetune
from sslkit.visualization.report import results_section

QUICK: dict[str, Any] = {
    "device": "cpu",
    "precision": "float32",
    "workers": 0,
    "epochs": 4,
    "batch_size": 8,
    "size": 32,
    "robust": True,
}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_stripes(tmp_path_factory.mktemp("stripes"), STRIPES))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(export_test_vit(tmp_path_factory.mktemp("exported"), mean=0.4))


@pytest.fixture(scope="module")
def comparison(labelled: str, source: str, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    out = tmp_path_factory.mktemp("compared") / "both"
    found = finetune(source, labelled, out=out, baseline="scratch", seeds=[0, 3], **QUICK)
    assert isinstance(found, Comparison)
    return found


def robust(found: Any) -> RobustnessResult:
    assert isinstance(found.robustness, RobustnessResult)
    return found.robustness


# ------------------------------------------------------------------------------------- the classifier


def test_opened_classifier_is_timms_own(comparison: Comparison) -> None:
    folder = comparison.pretrained[0].folder
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    made = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    mean, std = (torch.tensor(made[name])[:, None, None] for name in ("mean", "std"))
    opened = OpenedClassifier(folder)
    assert float(opened.mean.mean()) == pytest.approx(0.4)
    with torch.no_grad():
        assert torch.equal(opened(images), model((images - mean) / std))
        smaller = opened(torch.full((1, 3, 20, 20), 0.5))  # a constant image stays one when resized
        assert torch.allclose(smaller, opened(torch.full((1, 3, 32, 32), 0.5)), atol=1e-5)


def test_classifier_that_does_not_fit_its_config_is_refused(comparison: Comparison, tmp_path: Path) -> None:
    folder = shutil.copytree(comparison.pretrained[0].folder, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_classes": 5}))
    with pytest.raises(UserError, match=r"does not fit config.json: head"):
        OpenedClassifier(folder)


# --------------------------------------------------------------------------------------- what is measured


def test_clean_accuracy_is_that_of_the_predictions(comparison: Comparison) -> None:
    """The validation images are fewer than the limit, so all of them are looked at: at 32 px as before."""
    rows = {row.name: row for row in robust(comparison).rows}
    assert list(rows) == [comparison.source, SCRATCH]
    for name, runs in ((comparison.source, comparison.pretrained), (SCRATCH, comparison.baseline)):
        hits = []
        for run in runs:
            with (run.folder / "predictions.csv").open(newline="") as table:
                hits += [line["label"] == line["predicted"] for line in csv.DictReader(table)]
        assert rows[name].clean == pytest.approx(100 * float(np.mean(hits)))
    assert (robust(comparison).count, robust(comparison).seeds, robust(comparison).side) == (10, 2, 32)


def test_rows_are_means_of_the_seeds_and_differences_cover_them(comparison: Comparison) -> None:
    """Against each classifier measured alone, put together by NumPy."""
    wanted = from_values(read(str(comparison.pretrained[0].folder / "config.toml")))
    singles = {}
    for name, runs in ((comparison.source, comparison.pretrained), (SCRATCH, comparison.baseline)):
        singles[name] = [
            measure_classifiers({"one": [run.folder]}, wanted, Console()).rows[0] for run in runs
        ]
    for row in robust(comparison).rows:
        own = singles[row.name]
        for corruption in CORRUPTIONS:
            expected = np.mean([one.corruptions[corruption] for one in own], axis=0)
            assert row.corruptions[corruption] == pytest.approx(expected.tolist())
        assert np.allclose(row.heat_map, np.mean([one.heat_map for one in own], axis=0))
        assert row.low_pass == pytest.approx(np.mean([one.low_pass for one in own], axis=0).tolist())
    shares = {name: np.stack([one.share[0].numpy() for one in own]) for name, own in singles.items()}
    gaps = 100 * (shares[comparison.source] - shares[SCRATCH])  # [seeds, images]
    found = robust(comparison).rows[0].difference
    assert found is not None
    assert found.points == pytest.approx(gaps.mean())
    images = 1.96 * gaps.mean(0).std(ddof=1) / gaps.shape[1] ** 0.5
    seeds = STUDENT[0] * gaps.mean(1).std(ddof=1) / 2**0.5
    assert found.margin == pytest.approx(np.hypot(images, seeds))
    errors = {
        row.name: {c: sum(100 - a for a in row.corruptions[c]) for c in CORRUPTIONS}
        for row in robust(comparison).rows
    }
    ratios = [errors[comparison.source][c] / errors[SCRATCH][c] for c in CORRUPTIONS]
    assert robust(comparison).rows[0].mean_corruption_error == pytest.approx(100 * float(np.mean(ratios)))
    assert robust(comparison).rows[1].mean_corruption_error == pytest.approx(100)


def test_mean_row_of_figures_that_differ() -> None:
    share = torch.tensor([[0.0, 1.0]])
    one = SourceRobustness(
        "a", 50.0, {"fog": (10.0, 20.0)}, (1.0,), (2.0,), ((5.0, 7.0),), (3.0,), (4.0,), share
    )
    two = SourceRobustness(
        "b", 70.0, {"fog": (30.0, 50.0)}, (3.0,), (6.0,), ((6.0, 9.0),), (5.0,), (8.0,), share
    )
    mean = mean_row("both", [one, two])
    figures = {field.name: getattr(mean, field.name) for field in dataclasses.fields(mean)}
    assert torch.equal(figures.pop("share"), torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    assert figures == {
        "name": "both",
        "clean": 60.0,
        "corruptions": {"fog": (20.0, 35.0)},
        "low_pass": (2.0,),
        "high_pass": (4.0,),
        "heat_map": ((5.5, 8.0),),
        "fgsm": (4.0,),
        "pgd": (6.0,),
        "baseline": None,
        "mean_corruption_error": None,
        "relative_corruption_error": None,
        "difference": None,
    }
    assert mean.corrupted == 27.5


# ----------------------------------------------------------------------------------- files and resuming


def test_file_holds_all_but_the_shares(comparison: Comparison) -> None:
    document = json.loads((comparison.folder / FILE).read_text())
    assert RobustnessResult.of_document(document) == robust(comparison)
    assert not any("share" in row for row in document["rows"])
    assert comparison.to_document()["robustness"] == robust(comparison).to_document()


def test_comparison_is_measured_again_only_if_its_file_is_gone(
    comparison: Comparison, tmp_path: Path
) -> None:
    folder = shutil.copytree(comparison.folder, tmp_path / "copy")
    first = (folder / FILE).read_bytes()
    changed = json.loads(first)
    changed["rows"][0]["clean"] = 12.5
    (folder / FILE).write_text(json.dumps(changed))
    assert robust(finetune(resume=folder)).rows[0].clean == 12.5
    assert (folder / "table.md").read_text().count("## Robustness") == 1
    (folder / FILE).unlink()
    finetune(resume=folder)
    assert (folder / FILE).read_bytes() == first
    (folder / FILE).write_text("{}")
    with pytest.raises(UserError, match=r"robustness\.json can't be read"):
        finetune(resume=folder)


def test_run_that_was_stopped_before_its_robustness_is_resumed(
    labelled: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal in the middle of the measurement; the training is not done again."""

    class Stopper(Console):
        said = ""

        def bar(self, title: str, *rest: Any, **more: Any) -> Any:
            if title == "robustness":
                raise KeyboardInterrupt
            return super().bar(title, *rest, **more)

        def say(self, text: str) -> None:
            self.said += text

    console, out = Stopper(quiet=True), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        finetune(source, labelled, out=out, console=console, **QUICK)
    assert f"sslkit finetune --resume {out}" in console.said
    weights = (out / "model.safetensors").stat()
    found = finetune(resume=out)
    assert (out / "model.safetensors").stat() == weights
    assert robust(found).rows[0].clean == pytest.approx(
        json.loads((out / "run.json").read_text())["result"]["top1"]
    )
    with pytest.raises(UserError, match="already complete"):
        finetune(resume=out)


def test_pictures_are_drawn_and_the_page_tells_it(comparison: Comparison, tmp_path: Path) -> None:
    folder = shutil.copytree(comparison.folder, tmp_path / "copy")
    for _ in range(2):
        api.finetune(resume=folder)
    drawn = sorted(path.name for path in (folder / "pictures").iterdir())
    assert drawn == ["robust-corruptions.png", "robust-filters.png", "robust-waves.png"]
    page = results_section.finetune_section(comparison.to_document(), tmp_path)
    assert "Accuracy on changed images" in page
    assert "means over 2 seeds" in page
    without = dataclasses.replace(comparison, robustness=None)
    assert "changed images" not in results_section.finetune_section(without.to_document(), tmp_path)


# --------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("words", [["--attacks"], ["--robust-limit", "50"]])
def test_options_of_the_measurement_need_it(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, err = called(["finetune", "random/test_vit", str(tmp_path), *words], monkeypatch, capsys)
    assert (code, err) == (2, f"error: {words[0]} belongs to --robust\nhint: add --robust\n")


def test_one_validation_image_is_too_few(source: str, tmp_path: Path) -> None:
    write_stripes(tmp_path / "data/train", {"a": 4, "b": 4})
    write_stripes(tmp_path / "data/val", {"a": 1, "b": 1})
    shutil.rmtree(tmp_path / "data/val/b")
    (tmp_path / "data/train/b").rename(tmp_path / "b")
    write_stripes(tmp_path / "data/train", {"b": 1})
    with pytest.raises(UserError, match="--robust needs two validation images"):
        finetune(source, str(tmp_path / "data"), out=tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()
