"""Fine-tuning as a run: few labels, frozen encoders, the best epoch, stopping and resuming, comparisons."""

from __future__ import annotations

import csv
import json
import signal
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers import STRIPES, export_test_vit, write_stripes
from safetensors.torch import load_file
from torch import nn

from sslkit import api
from sslkit.augmentations.crops import CenterCrop
from sslkit.core.console import Console
from sslkit.core.errors import UserError
from sslkit.data.images.decode import read_image
from sslkit.data.sources.class_samples import count_per_class
from sslkit.data.sources.labels import open_labelled
from sslkit.evaluation.metrics.scores import class_scores, confusion, reliability
from sslkit.finetuning.augmentation import Mixing
from sslkit.finetuning.auto import Facts, resolve
from sslkit.finetuning.classifier import Classifier, build_model
from sslkit.finetuning.comparison import Comparison
from sslkit.finetuning.config import Augment, finetune_config
from sslkit.finetuning.finetune import finetune
from sslkit.finetuning.result import FinetuneResult
from sslkit.finetuning.splits import Splits, open_splits
from sslkit.methods.base import Clock
from sslkit.models.encoder import Encoder
from sslkit.models.weights import write_encoder
from sslkit.training.loop.signals import Interrupted
from sslkit.visualization.figures.confusion import confusion_matrix, draw_confusion, reliability_diagram

QUICK: dict[str, Any] = {
    "device": "cpu",
    "precision": "float32",
    "workers": 0,
    "epochs": 3,
    "batch_size": 8,
    "size": 32,
}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_stripes(tmp_path_factory.mktemp("stripes"), STRIPES))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(export_test_vit(tmp_path_factory.mktemp("exported")))


class Stopper(Console):
    """A console at which something happens when a step of a run in `folder` is reported."""

    def __init__(self, step: int, happens: Callable[[], Any], times: int = 1) -> None:
        super().__init__(quiet=True)
        self.step, self.happens, self.times = step, happens, times

    def event(self, document: Any) -> None:
        if document["step"] == self.step:
            self.times -= 1
            if self.times == 0:
                self.happens()


def crash() -> None:
    raise KeyError("power cut")


def run_json(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("images_per_s", "wait", "saving")} for line in lines]


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


# -------------------------------------------------------------------------------- stopped and resumed


@pytest.fixture(scope="module")
def whole(labelled: str, source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    finetune(source, labelled, out=out, keep="best", **QUICK)
    return out


@pytest.mark.parametrize(
    ("step", "number"), [(6, signal.SIGTERM), (7, signal.SIGINT), (12, signal.SIGTERM), (8, None)]
)
def test_a_stopped_run_ends_bit_for_bit_where_an_undisturbed_one_ends(
    labelled: str, source: str, whole: Path, tmp_path: Path, step: int, number: signal.Signals | None
) -> None:
    """In an epoch, after its last step, after the very last one; and a crash, back to the last checkpoint."""
    run, last = tmp_path / "run", metrics(whole)[-1]["step"]
    assert last == 12
    happens = crash if number is None else lambda: signal.raise_signal(number)
    save_every = "3" if number is None else "10m"
    with pytest.raises((Interrupted, KeyError)) as stopped:
        finetune(
            source,
            labelled,
            out=run,
            keep="best",
            save_every=save_every,
            settings=["run.log_every=1"],
            console=Stopper(step, happens),
            **QUICK,
        )
    saved = [path.name for path in (run / "checkpoints").iterdir()]
    if number is None:
        assert run_json(run)["status"] == "failed"
        assert sorted(saved) == ["step-00000003", "step-00000006"]
    else:
        assert isinstance(stopped.value, Interrupted)
        assert stopped.value.code == 128 + number
        assert run_json(run)["status"] == "interrupted"
        assert saved == [f"step-{step:08d}"]
        assert f"sslkit finetune --resume {run}" in (run / "log.txt").read_text()
    assert not (run / "model.safetensors").exists()
    finetune(resume=run)
    for file in ("model.safetensors", "last/model.safetensors"):
        ours, theirs = load_file(run / file), load_file(whole / file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items()), file
    for file in ("predictions.csv", "confusion.csv", "calibration.csv", "splits.csv"):
        assert (run / file).read_bytes() == (whole / file).read_bytes(), file
    ours_lines = {line["step"]: line for line in metrics(run)}
    assert sorted(ours_lines) == list(range(1, 13))
    for line in metrics(whole):
        assert ours_lines[line["step"]]["grad_norm"] == line["grad_norm"]
        assert ours_lines[line["step"]].get("held_out") == line.get("held_out")
    results = [{**run_json(folder)["result"], "folder": ""} for folder in (run, whole)]
    assert results[0] == results[1]
    assert not (run / "checkpoints").exists()
    with pytest.raises(UserError, match="already complete"):
        finetune(resume=run)


def test_other_images_are_not_resumed(source: str, tmp_path: Path) -> None:
    data, run = write_stripes(tmp_path / "data", STRIPES), tmp_path / "run"
    stopper = Stopper(1, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted):
        finetune(source, str(data), out=run, settings=["run.log_every=1"], console=stopper, **QUICK)
    (data / "rows" / "00.png").unlink()
    with pytest.raises(UserError, match="images have changed"):
        finetune(resume=run)
    assert not (run / "run.lock").exists()


# ------------------------------------------------------------------------------------- the best epoch


def test_the_best_epoch_is_kept_and_the_last_one_beside_it(whole: Path, labelled: str) -> None:
    judged = [line["held_out"] for line in metrics(whole) if "held_out" in line]
    result = FinetuneResult.of_document(run_json(whole)["result"], whole)
    assert len(judged) == 3
    assert result.best is not None
    assert result.best["held_out"] == max(judged)
    assert result.best["epoch"] == 3 - judged[::-1].index(max(judged))
    splits = rows_of(whole / "splits.csv")
    uses = {use: sum(row["use"] == use for row in splits) for use in ("train", "held out", "validation")}
    assert uses == {"train": 32, "held out": 8, "validation": 10}
    held_out = [row for row in splits if row["use"] == "held out"]
    views = torch.stack([CenterCrop(32)(read_image(row["path"])) for row in held_out])
    for folder, percent in ((whole, result.best["held_out"]), (whole / "last", judged[-1])):
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
        with torch.no_grad():
            predicted = model((views / 255 - mean) / std).argmax(dim=1)
        right = [sorted(STRIPES)[i] == row["label"] for i, row in zip(predicted, held_out, strict=True)]
        assert 100 * sum(right) / len(right) == pytest.approx(percent)


# ---------------------------------------------------------------------------------------- few labels


def parts_of(data: str, *settings: str) -> Splits:
    return open_splits(finetune_config("random/test_vit", data, None, settings))


def test_shots_are_drawn_by_class_and_seed_and_fewer_are_among_more(labelled: str) -> None:
    every, validation = open_labelled(labelled)
    two, five = parts_of(labelled, "data.shots=2"), parts_of(labelled, "data.shots=5")
    assert count_per_class(two.training) == [2, 2, 2]
    assert count_per_class(five.training) == [5, 5, 5]
    assert set(two.training.paths) < set(five.training.paths) < set(every.paths)
    other = parts_of(labelled, "data.shots=5", "run.seed=1")
    assert set(other.training.paths) != set(five.training.paths)
    assert list(other.validation.paths) == list(five.validation.paths) == list(validation.paths)
    assert five.unused is not None
    assert sorted([*five.training.paths, *five.unused.paths]) == sorted(every.paths)
    assert not five.notes
    many = parts_of(labelled, "data.shots=10")
    assert count_per_class(many.training) == [8, 10, 10]
    assert many.notes == ("1 of 3 classes have fewer than 10 training images; 'checks' has 8",)


def test_a_share_is_one_of_each_class(labelled: str) -> None:
    assert count_per_class(parts_of(labelled, "data.share=0.5").training) == [4, 6, 10]
    assert count_per_class(parts_of(labelled, "data.share=0.01").training) == [1, 1, 1]


def test_splits_are_data_with_the_same_validation_images(labelled: str, source: str, tmp_path: Path) -> None:
    first = finetune(source, labelled, out=tmp_path / "a", shots=4, **{**QUICK, "epochs": 1})
    assert isinstance(first, FinetuneResult)
    assert first.counts["train"] == 12
    again = parts_of(str(tmp_path / "a" / "splits.csv"), "data.shots=4")
    rows = rows_of(tmp_path / "a" / "splits.csv")
    assert len(rows) == sum(STRIPES.values())
    for use, images in (("train", again.training), ("validation", again.validation)):
        assert sorted(images.paths) == sorted(row["path"] for row in rows if row["use"] == use)


# ------------------------------------------------------------------------------- frozen, and balanced


def test_a_frozen_encoder_keeps_every_tensor(labelled: str, tmp_path: Path) -> None:
    """Statistics of batch norms included."""
    torch.manual_seed(3)
    encoder = Encoder("test_resnet", 32)
    encoder.train()
    encoder.vector(torch.rand(16, 3, 32, 32))  # statistics other than 0 and 1
    write_encoder(encoder, tmp_path, "model.safetensors", {})
    finetune(str(tmp_path), labelled, out=tmp_path / "run", freeze=True, **{**QUICK, "epochs": 1})
    before, after = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "run/model.safetensors")
    assert before.keys() < after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    head = [after[name] for name in after.keys() - before.keys()]
    assert all(tensor.abs().max() > 0.003 for tensor in head)  # it began at a thousandth of timm's


def test_of_a_frozen_vit_the_head_and_its_norm_learn() -> None:
    encoder = Encoder("test_vit", 32)
    model, _, new = build_model(encoder, 4, 32, scratch=False)
    Classifier(model, encoder, torch.arange(4), plain(4), frozen=True).train()
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(new)
    assert not any(module.training for module in model.modules())


def plain(classes: int) -> Mixing:
    return Mixing(Augment((1.0, 1.0), 0.0, "", 0.0, 0.0, 0.0, 0.0, 0.0), classes)


def test_balanced_softmax_is_the_loss_of_logits_with_the_classes_shares() -> None:
    encoder = Encoder("test_vit", 32)
    model, _, _ = build_model(encoder, 3, 32, scratch=True)
    labels = torch.tensor([0, 0, 0, 1, 0, 0, 2, 0])
    batch = {"image": torch.rand(4, 3, 32, 32), "index": torch.tensor([0, 3, 6, 7])}
    logits = Classifier(model, encoder, labels, plain(3)).eval().logits(batch["image"])
    share = torch.tensor([6 / 8, 1 / 8, 1 / 8])
    # Ren et al., equation 4: exp of each logit times the number of the class's images.
    likelihood = (share * logits.exp()) / (share * logits.exp()).sum(dim=1, keepdim=True)
    wanted = -likelihood[range(4), labels[batch["index"]]].log().mean()
    for balance, loss in ((True, wanted), (False, nn.functional.cross_entropy(logits, labels[[0, 3, 6, 7]]))):
        classifier = Classifier(model, encoder, labels, plain(3), balance=balance).eval()
        found = classifier({**batch, "image": batch["image"].clone()}, Clock(0, 1, 1))["loss"]
        assert found.item() == pytest.approx(loss.item(), abs=1e-5)
        assert torch.equal(classifier.logits(batch["image"]), logits)


def test_balanced_softmax_leaves_logits_equal_where_nothing_is_known() -> None:
    """With smoothing too: the gradient over all images of equal logits is 0."""
    encoder = Encoder("test_vit", 32)
    model, _, _ = build_model(encoder, 3, 32, scratch=True)
    for parameter in model.get_classifier().parameters():  # type: ignore[operator]
        nn.init.zeros_(parameter)
    labels = torch.tensor([0, 0, 0, 1, 0, 0, 2, 0])
    mixing = Mixing(Augment((1.0, 1.0), 0.0, "", 0.0, 0.0, 0.0, 0.0, 0.3), 3)
    batch = {"image": torch.rand(8, 3, 32, 32), "index": torch.arange(8)}
    for balance in (True, False):
        model.zero_grad()
        classifier = Classifier(model, encoder, labels, mixing, balance=balance)
        classifier(batch, Clock(0, 1, 1))["loss"].backward()
        gradient = model.get_classifier().bias.grad  # type: ignore[operator]
        assert (gradient.abs().max() < 1e-6) == balance


# ------------------------------------------------------------------------------------- the comparison


def test_a_comparison_pairs_images_and_seeds_and_can_be_resumed(
    labelled: str, source: str, tmp_path: Path
) -> None:
    out, few = tmp_path / "compared", {**QUICK, "epochs": 2}
    with pytest.raises(Interrupted):  # in the third of four runs
        finetune(
            source,
            labelled,
            out=out,
            baseline="scratch",
            seeds=[0, 4],
            shots=6,
            settings=["run.log_every=1"],
            console=Stopper(3, lambda: signal.raise_signal(signal.SIGINT), times=3),
            **few,
        )
    assert sorted(path.name for path in out.glob("*-seed-*")) == [
        "scratch-seed-0",
        "source-seed-0",
        "source-seed-4",
    ]
    assert f"sslkit finetune --resume {out}\n" in (out / "source-seed-4" / "log.txt").read_text()
    done = (out / "scratch-seed-0" / "model.safetensors").stat().st_mtime_ns
    result = finetune(resume=out)
    assert isinstance(result, Comparison)
    assert (out / "scratch-seed-0" / "model.safetensors").stat().st_mtime_ns == done
    configs = [
        {line for line in (run.folder / "config.toml").read_text().splitlines() if not line.startswith("#")}
        for run in result.runs
    ]
    assert [(run.scratch, run.seed) for run in result.runs] == [(False, 0), (False, 4), (True, 0), (True, 4)]
    assert {line.split(" = ")[0] for line in configs[0] ^ configs[2]} == {"scratch", "layer_decay", "out"}
    right = [
        [row["label"] == row["predicted"] for row in rows_of(run.folder / "predictions.csv")]
        for run in result.runs
    ]
    top1 = [100 * sum(row) / len(row) for row in right]
    assert [run.top1 for run in result.runs] == pytest.approx(top1)
    assert result.per_seed == pytest.approx([top1[0] - top1[2], top1[1] - top1[3]])
    assert result.difference is not None
    assert result.difference.points == pytest.approx(statistics.mean(result.per_seed))
    per_image = np.array(right[0], float) + right[1] - np.array(right[2], float) - right[3]
    images = 1.96 * 100 * per_image.std(ddof=1) / 2 / np.sqrt(10)
    seeds = 12.71 * statistics.stdev(result.per_seed) / np.sqrt(2)
    assert result.difference.margin == pytest.approx(np.hypot(images, seeds))
    document = json.loads((out / "comparison.json").read_text())["result"]
    assert document["top1"] == pytest.approx(statistics.mean(top1[:2]))
    assert document["baseline"]["top1_std"] == pytest.approx(statistics.stdev(top1[2:]))
    assert result.verdict in (out / "table.md").read_text()
    assert result.verdict in (out / "log.txt").read_text()
    again = finetune(resume=out)  # nothing is left to do
    assert isinstance(again, Comparison)
    assert again.to_document() == result.to_document()


# ------------------------------------------------------------------------------------------ bad input


def validated(folder: Path, training: dict[str, int], validation: dict[str, int]) -> str:
    write_stripes(folder / "train", training)
    write_stripes(folder / "val", validation)
    return str(folder)


BAD: dict[str, tuple[Callable[[Path], str], dict[str, Any], str]] = {
    "a class only in training": (
        lambda f: validated(f, {"a": 4, "b": 4, "c": 4}, {"a": 2, "b": 2}),
        {},
        "class 'c' is in training but not in the validation part",
    ),
    "a class only in validation": (
        lambda f: validated(f, {"a": 4, "b": 4}, {"a": 2, "b": 2, "c": 2}),
        {},
        "class 'c' is in the validation part but not in training",
    ),
    "an empty class": (
        lambda f: str(write_stripes(f, {"a": 4, "b": 4, "empty": 0})),
        {},
        "class folder 'empty' holds no images",
    ),
    "an empty class in validation": (
        lambda f: validated(f, {"a": 4, "b": 4}, {"a": 2, "b": 2, "empty": 0}),
        {},
        "class folder 'empty' holds no images",
    ),
    "masks": (
        lambda f: str(write_stripes(f, {"images": 4, "masks": 4})),
        {},
        "images/ and masks/, no classes",
    ),
    "one image per class": (
        lambda f: str(write_stripes(f, {"a": 1, "b": 1})),
        {},
        "every class has one image",
    ),
    "one class": (lambda f: str(write_stripes(f, {"a": 9})), {}, "only one class"),
    "a small batch": (
        lambda f: str(write_stripes(f, {"a": 9, "b": 9})),
        {"batch_size": 8, "shots": 2},
        "batch of 8 is larger than the data: 4 training images",
    ),
    "two amounts": (
        lambda f: str(write_stripes(f, {"a": 9, "b": 9})),
        {"shots": 2, "share": 0.1},
        "--shots and --share both",
    ),
    "nothing to hold out": (
        lambda f: str(write_stripes(f, {"a": 9, "b": 9})),
        {"shots": 1, "keep": "best"},
        "--keep best needs two training images",
    ),
    "another baseline": (
        lambda f: str(write_stripes(f, {"a": 9, "b": 9})),
        {"baseline": "pixels"},
        "--baseline pixels: scratch is the only one",
    ),
    "a random source": (
        lambda f: str(write_stripes(f, {"a": 9, "b": 9})),
        {"baseline": "scratch", "scratch": True},
        "random weights, and so would the source be",
    ),
    "seeds twice": (lambda f: str(write_stripes(f, {"a": 9, "b": 9})), {"seeds": [1, 1]}, "--seeds 1,1"),
    "seed and seeds": (
        lambda f: str(write_stripes(f, {"a": 9, "b": 9})),
        {"seeds": [0, 1], "seed": 3},
        "--seed and --seeds both",
    ),
    "an interval": (
        lambda f: str(write_stripes(f, {"a": 9, "b": 9})),
        {"save_every": "often"},
        "'often' is not an interval",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_work_is_one_line_and_writes_nothing(source: str, tmp_path: Path, case: str) -> None:
    make, flags, message = BAD[case]
    data = make(tmp_path / "data")
    with pytest.raises(UserError, match=message) as found:
        finetune(source, data, out=tmp_path / "run", device="cpu", workers=0, **flags)
    assert "\n" not in found.value.message
    assert found.value.hint
    assert found.value.code == 2
    assert not (tmp_path / "run").exists()


def test_a_source_of_another_architecture_is_refused(labelled: str, source: str, tmp_path: Path) -> None:
    config = json.loads((Path(source) / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((Path(source) / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architecture": "test_vit2"}))
    with pytest.raises(UserError, match="does not fit test_vit2"):
        finetune(str(tmp_path), labelled, out=tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()


def test_images_from_memory_give_the_weights_that_files_give(
    labelled: str, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {}
    for cache in ("memory", "off"):
        run = finetune(source, labelled, out=tmp_path / cache, cache=cache, console=Console(), **QUICK)
        assert isinstance(run, FinetuneResult)
        weights[cache] = load_file(run.folder / "model.safetensors")
        assert ("40 images stay decoded" in capsys.readouterr().err) == (cache == "memory")
    for name, tensor in weights["off"].items():
        assert torch.equal(weights["memory"][name], tensor), name


def test_a_table_that_names_missing_files_is_refused(source: str, tmp_path: Path) -> None:
    write_stripes(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "t.csv").write_text("path,label\na/00.png,a\na/07.png,a\nb/00.png,b\n")
    with pytest.raises(UserError, match=r"1 of 3 files are missing, the first is 'a/07\.png'"):
        finetune(source, str(tmp_path / "t.csv"), out=tmp_path / "run", **QUICK)


def test_resume_goes_alone_and_only_with_a_fine_tuning(labelled: str, source: str, tmp_path: Path) -> None:
    for words in ({"source": source}, {"seed": 1}, {"baseline": "scratch"}):
        with pytest.raises(UserError, match="--resume goes alone"):
            finetune(resume=tmp_path, **words)
    with pytest.raises(UserError, match="is not a run"):
        finetune(resume=source)
    with pytest.raises(UserError, match="finetune needs SOURCE and DATA"):
        finetune(source)


def test_a_class_of_one_image_is_trained_on_and_said(tmp_path: Path) -> None:
    parts = parts_of(str(write_stripes(tmp_path, {"a": 5, "b": 5, "c": 1})))
    assert count_per_class(parts.training) == [4, 4, 1]
    assert parts.notes == ("1 class has one image, such as 'c': trained on, not validated",)


# ------------------------------------------------------------------------------------------ the recipe


def test_the_recipe_depends_on_family_size_and_what_learns() -> None:
    def settings(family: str, parameters: float = 5e6, *extra: str) -> Any:
        wanted = finetune_config("run", "data", None, extra)
        return resolve(wanted, Facts(3000, family, 96, False, True, int(parameters)))[0]

    assert [settings(family).optim.layer_decay for family in ("vit", "swin", "cnn")] == [0.8, 0.8, 1.0]
    rates = [settings("vit", parameters).model.drop_path for parameters in (22e6, 86e6, 303e6, 631e6)]
    assert rates == [0.1, 0.1, 0.2, 0.3]
    head = settings("vit", 5e6, "model.freeze=true")
    assert (head.optim.weight_decay, head.optim.layer_decay, head.model.drop_path) == (0.0, 1.0, 0.0)
    assert (head.augment.rand_augment, head.augment.mix_probability) == ("", 0.0)
    peak = head.optim.lr * head.run.batch_size / head.optim.reference_batch
    assert peak == pytest.approx(5e-3)


# ------------------------------------------------------------------------------- tables and pictures


def test_scores_of_classes_and_bins_against_loops() -> None:
    random = np.random.default_rng(1)
    labels, predicted = random.integers(0, 4, 90), random.integers(0, 5, 90)
    found = class_scores(confusion(torch.from_numpy(predicted), torch.from_numpy(labels), 5), tuple("abcde"))
    for number, one in enumerate(found):
        own, called = labels == number, predicted == number
        assert one.count == own.sum()
        assert one.recall == pytest.approx(100 * (own & called).sum() / max(own.sum(), 1))
        assert one.precision == pytest.approx(100 * (own & called).sum() / max(called.sum(), 1))
        lost = [((predicted == other) & own & ~called).sum() for other in range(5)]
        assert one.mistaken_for == ("abcde"[int(np.argmax(lost))] if max(lost) else "")
    confidence, right = random.random(90), random.random(90) < 0.5
    for bin_ in reliability(torch.from_numpy(confidence), torch.from_numpy(right)):
        inside = (confidence > bin_.low) & (confidence <= bin_.high)
        assert bin_.count == inside.sum()
        if bin_.count:
            assert bin_.accuracy == pytest.approx(right[inside].mean())
            assert bin_.confidence == pytest.approx(confidence[inside].mean())


def test_pictures_are_drawn_into_the_run(labelled: str, source: str, tmp_path: Path) -> None:
    result = api.finetune(source, labelled, out=tmp_path / "run", **{**QUICK, "epochs": 1})
    folder = result.folder / "pictures"
    assert sorted(path.name for path in folder.iterdir()) == ["confusion.png", "reliability.png"]
    (folder / "reliability.png").unlink()
    before = (folder / "confusion.png").stat().st_mtime_ns
    assert sorted(draw_confusion(result.folder)) == sorted(
        folder.iterdir()
    )  # what is missing, and nothing twice
    assert (folder / "confusion.png").stat().st_mtime_ns == before
    rows = rows_of(result.folder / "classes.csv")
    assert [row["name"] for row in rows] == sorted(STRIPES)
    assert sum(int(row["count"]) for row in rows) == result.scores.count


def test_of_many_classes_the_picture_shows_those_with_the_most_errors() -> None:
    counts = torch.diag(torch.full((40,), 9))
    counts[7, 8] = counts[8, 7] = counts[39, 3] = 4
    axes = confusion_matrix(counts, tuple(f"class {i:02}" for i in range(40))).axes[0]
    shown = [text.get_text() for text in axes.get_yticklabels()]
    assert len(shown) == 30
    assert {"class 07", "class 08", "class 39"} < set(shown)
    assert axes.get_xticklabels()[-1].get_text() == "others"
    drawn = axes.images[0].get_array()
    assert drawn is not None
    assert np.asarray(drawn).sum(axis=1) == pytest.approx(np.full(30, 100.0))


def test_bins_without_images_are_left_out_of_the_diagram() -> None:
    bins = reliability(torch.tensor([0.9, 0.9, 0.95]), torch.tensor([True, False, True]))
    figure = reliability_diagram(bins)
    assert len(figure.axes[0].patches) == sum(one.count > 0 for one in bins) == 2
