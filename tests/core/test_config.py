"""Settings: written and read back, checked, layered; and the recipes against the paper."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslkit.core.config import build as config
from sslkit.core.config.build import build_pretrain, dump, loads, parse_set
from sslkit.core.config.setting import AUTO
from sslkit.core.errors import UserError, nearest_path
from sslkit.methods import card
from sslkit.training.pretrain.config import PRETRAIN_FLAGS, pretrain_config

MFM = card("mfm").Config


def build(**values: Any) -> config.PretrainConfig:
    return build_pretrain("mfm", MFM, values)


def message(**values: Any) -> str:
    with pytest.raises(UserError) as error:
        build(**values)
    assert error.value.code == 2
    return error.value.message


# ------------------------------------------------------------------------------------------- round trip

texts = st.text(st.characters(exclude_categories=["Cs"]))  # TOML can't say half a surrogate pair
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
SHARE = st.floats(0, 1)
VALUES = st.fixed_dictionaries(
    {
        "data.sources": st.lists(texts).map(tuple),
        "data.max_bad": SHARE,
        "data.size": st.just(AUTO) | st.integers(8, 4096),
        "model.init": texts,
        "model.backbone": texts,
        "model.stem": st.sampled_from(["standard", "small"]),
        "optim.lr": st.just(AUTO) | POSITIVE,
        "optim.betas": st.tuples(st.floats(0, 0.99999), st.floats(0, 0.99999)),
        "schedule.min_lr": st.just(0.0) | POSITIVE,
        "run.seed": st.integers(0),
        "run.precision": st.sampled_from([AUTO, "float32", "bfloat16"]),
        "method.crop_scale": st.tuples(SHARE, SHARE).map(sorted).map(tuple),
        "method.radius": st.just(AUTO) | POSITIVE,
    }
)


@given(VALUES, texts)
def test_what_is_written_is_read_back(values: dict[str, Any], header: str) -> None:
    built = build(**values)
    assert {key: config.flat(built)[key] for key in values} == values
    read = loads(dump(built, header))
    assert read.pop("method.name") == "mfm"
    assert build(**read) == built


def test_a_written_file_says_what_each_setting_means() -> None:
    lines = dump(build(), "one\ntwo").splitlines()
    assert lines[:2] == ["# one", "# two"]
    assert "clip = 0.0  # norm to which gradients are clipped; 0: never" in lines
    assert [line for line in lines if line.startswith("[")] == [
        "[method]",
        "[data]",
        "[model]",
        "[optim]",
        "[schedule]",
        "[run]",
    ]


def test_every_setting_has_a_sentence() -> None:
    built = build()
    apart = ("method_name", "around")
    sections = [item.name for item in dataclasses.fields(built) if item.name not in apart]
    for section in sections:
        for key, _, metadata in config.settings(getattr(built, section), section):
            assert len(metadata["help"]) > 8, key


# -------------------------------------------------------------------------------------------- the check


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("optim.lr", -1, "optim.lr: -1.0 is not > 0"),
        ("optim.lr", 0, "optim.lr: 0.0 is not > 0"),
        ("optim.lr", float("nan"), "optim.lr: nan is not a finite number"),
        ("optim.lr", float("inf"), "optim.lr: inf is not a finite number"),
        ("optim.lr", "fast", "optim.lr: 'fast' is not a number"),
        ("optim.lr", True, "optim.lr: True is not a number"),
        ("optim.clip", AUTO, "optim.clip: 'auto' is not a number"),
        ("optim.betas", [0.9], "optim.betas: [0.9] is not a list of 2 numbers"),
        ("optim.betas", [0.9, 1.5], "optim.betas: 1.5 is not <= 0.99999"),
        ("data.size", 7, "data.size: 7 is not >= 8"),
        ("data.size", 32.0, "data.size: 32.0 is not a whole number"),
        ("data.sources", "photos", "data.sources: 'photos' is not a list of texts"),
        ("data.sources", [1.5], "data.sources: 1.5 is not a text"),
        ("data.max_bad", 1.01, "data.max_bad: 1.01 is not <= 1"),
        ("schedule.epochs", 0, "schedule.epochs: 0 is not >= 1"),
        (
            "run.precision",
            "float64",
            "run.precision: 'float64' is not one of auto, float32, tf32, bfloat16, float16",
        ),
        ("method.low_share", 2, "method.low_share: 2.0 is not <= 1"),
        ("method.radius", 0, "method.radius: 0.0 is not > 0"),
        ("model.init", "caf\udce9", "model.init: 'caf\\udce9' is not Unicode, which TOML needs"),
    ],
)
def test_a_wrong_value_is_told_with_key_value_and_expectation(key: str, value: Any, said: str) -> None:
    assert message(**{key: value}) == said


def test_whole_numbers_serve_as_numbers_and_bounds_are_allowed() -> None:
    built = build(**{"optim.clip": 3, "data.max_bad": 1, "data.size": 8, "optim.betas": [0, 0.5]})
    assert (built.optim.clip, built.data.max_bad, built.optim.betas) == (3.0, 1.0, (0.0, 0.5))
    assert type(built.optim.clip) is float


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("optim.l", "did you mean 'optim.lr'?"),
        ("schedule.epoch", "did you mean 'schedule.epochs'?"),
        ("method.raduis", "did you mean 'method.radius'?"),
        ("optimm.clip", "did you mean 'optim.clip'?"),
    ],
)
def test_an_unknown_key_gets_the_nearest(key: str, hint: str) -> None:
    with pytest.raises(UserError) as error:
        build(**{key: 1})
    assert error.value.message == f"unknown setting {key!r}"
    assert error.value.hint == hint


def test_a_setting_of_an_earlier_version_is_dropped_or_refused_by_name() -> None:
    assert build(**{"optim.layer_decay": 1.0, "optim.lr": 1e-3}) == build(**{"optim.lr": 1e-3})
    with pytest.raises(UserError, match=r"optim\.layer_decay: 0\.8 was a setting of an earlier version"):
        build(**{"optim.layer_decay": 0.8})


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("runs/resnt-1", "did you mean 'runs/resnet-1'?"),
        ("rns/resnet-1", "did you mean 'runs/resnet-1'?"),
        ("runs/zebra", "otherwise"),
        ("quite/else/where", "otherwise"),
        ("run/zebra", "otherwise"),
        ("photo/", "did you mean 'photos'?"),
        ("", "otherwise"),
    ],
)
def test_a_mistyped_path_gets_the_nearest_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/resnet-1", "runs/resnet-1.old/.hidden", "photos"):
        Path(folder).mkdir(parents=True)
    assert nearest_path(typed, "otherwise") == hint
    whole = nearest_path(tmp_path / "photoss")
    assert whole == f"did you mean {str(tmp_path / 'photos')!r}?"


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("optim.lr=3e-4", ("optim.lr", 3e-4)),
        ("run.seed = 7", ("run.seed", 7)),
        ("run.save_every=5e", ("run.save_every", "5e")),
        ("model.init=a=b", ("model.init", "a=b")),
        ("optim.betas=[0.9, 0.95]", ("optim.betas", [0.9, 0.95])),
        ('data.sources=["a", "b"]', ("data.sources", ["a", "b"])),
        ("model.init=", ("model.init", "")),
    ],
)
def test_set_takes_toml_or_a_bare_text(text: str, pair: tuple[str, Any]) -> None:
    assert parse_set(text) == pair


@pytest.mark.parametrize("text", ["optim.lr", "lr=1", "=1", ""])
def test_set_needs_key_and_value(text: str) -> None:
    with pytest.raises(UserError, match=r"is not section\.key=value"):
        parse_set(text)


# ----------------------------------------------------------------------------------------------- layers


def test_later_layers_win(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"

    def weight_decay(*settings: str, **flags: Any) -> tuple[float, float, float]:
        built = pretrain_config(["photos"], None, str(file), settings, flags)
        return built.optim.clip, built.optim.lr, built.optim.eps

    file.write_text("")
    assert weight_decay() == (3.0, AUTO, 1e-8)  # the method's clip over the default 0; the default eps
    file.write_text("[optim]\nclip = 4.0\nlr = 1e-3\neps = 1e-6\n")
    assert weight_decay() == (4.0, 1e-3, 1e-6)
    assert weight_decay("optim.clip=5", "optim.lr=2e-3") == (5.0, 2e-3, 1e-6)
    assert weight_decay("optim.clip=5", "optim.lr=2e-3", lr=0.5) == (5.0, 0.5, 1e-6)


def test_named_data_win_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('[data]\nsources = ["theirs"]\n')
    assert pretrain_config([], config=tmp_path / "own.toml").data.sources == ("theirs",)
    assert pretrain_config(["mine"], config=tmp_path / "own.toml").data.sources == ("mine",)
    with pytest.raises(UserError, match="no images given"):
        pretrain_config([])


def test_every_flag_stands_for_a_setting() -> None:
    known = config.flat(build())
    assert set(PRETRAIN_FLAGS.values()) <= set(known)


def test_a_file_for_another_method_loses_its_method_section(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('[method]\nname = "other"\nangle = 3\n[optim]\nclip = 7.0\n')
    built = pretrain_config(["photos"], "mfm", str(tmp_path / "own.toml"))
    assert (built.method_name, built.optim.clip) == ("mfm", 7.0)
    with pytest.raises(UserError, match="unknown method 'other'"):
        pretrain_config(["photos"], config=str(tmp_path / "own.toml"))


@pytest.mark.parametrize("content", [b"[optim\nlr = 1", b"\xc3\x28", b"lr = 1"])
def test_an_unreadable_file_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "own.toml").write_bytes(content)
    with pytest.raises(UserError, match=r"not readable TOML|outside a section"):
        config.read(str(tmp_path / "own.toml"))


def test_a_configuration_that_is_not_there_gets_the_nearest_recipe() -> None:
    with pytest.raises(UserError) as error:
        config.read("mfm-vit-b61")
    assert error.value.hint == "did you mean 'mfm-vit-b16'?"


def test_putting_it_together_needs_no_torch() -> None:
    program = (
        "import sys; from sslkit.training.pretrain.config import pretrain_config;"
        "pretrain_config(['photos'], config='mfm-vit-b16', settings=['run.seed=1'], flags={'epochs': 2});"
        "print(sorted({'torch', 'timm', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_range_begins_with_its_smaller_end() -> None:
    with pytest.raises(UserError) as error:
        build(**{"method.crop_scale": [0.9, 0.2]})
    assert error.value.message == "method.crop_scale: 0.9 is not <= 0.2"
    assert build(**{"optim.betas": [0.95, 0.9]}).optim.betas == (0.95, 0.9)  # a pair, and no range


# ---------------------------------------------------------------------------------------------- recipes

PAPER = {  # the official pre-training configuration: the same for all
    "data.size": 224,
    "method.name": "mfm",
    "method.gamma": 1.0,
    "method.crop_scale": [0.2, 1.0],
    "method.flip": 0.5,
    "optim.lr": 3e-4,
    "optim.reference_batch": 512,
    "optim.weight_decay": 0.05,
    "optim.betas": [0.9, 0.95],
    "optim.eps": 1e-8,
    "optim.clip": 3.0,
    "schedule.epochs": 300,
    "schedule.warmup_epochs": 20,
    "schedule.warmup_lr": 2.5e-7,
    "schedule.min_lr": 2.5e-6,
    "run.batch_size": 2048,
    "run.micro_batch": 128,
    "run.seed": 0,
    "run.save_every": "10e",
}
MASKED = {"method.radius": 16.0, "method.reduction": "pooled", "method.clamp": "official"}
VIT_B = {"model.backbone": "vit_base_patch16_224", "method.initialization": "official"}
VIT_S = {"model.backbone": "vit_small_patch16_224", "method.initialization": "official"}
RECIPES = {
    "mfm-vit-b16": ({**VIT_B, **MASKED, "method.low_share": 0.5}, ["83.1"]),
    "mfm-vit-s16": ({**VIT_S, **MASKED, "method.low_share": 0.5}, []),
    "mfm-resnet50": ({"model.backbone": "resnet50", **MASKED, "method.low_share": 0.3}, ["78.5", "80.1"]),
    "mfm-sr-vit-b16": ({**VIT_B, "method.corruption": "sr", "method.factor": 8}, ["82.4"]),
    "mfm-deblur-vit-b16": ({**VIT_B, "method.corruption": "deblur", "method.sigma": 5.0}, ["81.7"]),
    "mfm-denoise-vit-b16": ({**VIT_B, "method.corruption": "denoise", "method.noise": 75 / 255}, ["82.7"]),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_the_paper_s(name: str) -> None:
    own, numbers = RECIPES[name]
    assert config.read(name) == {**PAPER, **own}
    header = (config.RECIPES / f"{name}.toml").read_text().split("[method]")[0]
    assert f"sslkit pretrain imagenet/train -c {name}" in header
    assert "arxiv.org/abs/2206.07706" in header
    assert all(number in header for number in numbers)
    built = pretrain_config(["imagenet/train"], config=name)
    ablations = ("mask", "radius_range", "stratified", "teacher_weight")
    assert [getattr(built.method, setting) for setting in ablations] == ["disc", (1.0, 1.0), False, 0.0]
    assert built.optim.lr * built.run.batch_size / built.optim.reference_batch == pytest.approx(1.2e-3)


def test_every_recipe_of_mfm_is_listed_here() -> None:
    files = {file.stem for file in config.RECIPES.glob("mfm-*.toml")}
    assert files - {"mfm-cifar10"} == set(RECIPES)  # the paper has no small images


@pytest.mark.parametrize("file", sorted(config.RECIPES.glob("*.toml")), ids=lambda file: str(file.stem))
def test_a_recipe_says_where_it_is_from_and_builds(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    values = config.loads(text)
    method = values["method.name"]
    assert file.stem.startswith(f"{method}-")
    header = text.split("[method]")[0]
    for word in (
        "# Paper ",
        "# Table ",
        "# Expected ",
        "# Command ",
        f"-c {file.stem}\n",
        card(method).facts["link"],
    ):
        assert word in header, word
    built = pretrain_config(["imagenet/train"], config=file.stem)
    assert built.method_name == method
    assert AUTO not in (built.optim.lr, built.model.backbone, built.data.size, built.schedule.epochs)


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("data.size", 7, "a whole number from 8 to 4096, or auto; the default is auto"),
        ("data.size", 100_000, "a whole number from 8 to 4096, or auto; the default is auto"),
        ("optim.lr", -1, "a number above 0, or auto; the default is auto"),
        ("run.micro_batch", "many", "a whole number of 0 or more, or auto; the default is 0"),
        ("run.precision", "fp16", "did you mean 'float16'?"),
        ("data.cache", "on", "known: auto, memory, off"),
    ],
)
def test_a_refusal_says_what_may_be_given(key: str, value: Any, hint: str) -> None:
    with pytest.raises(UserError) as error:
        build(**{key: value})
    assert error.value.hint == hint


def test_an_option_that_was_typed_is_named_beside_its_setting() -> None:
    with pytest.raises(UserError) as error:
        build_pretrain("mfm", MFM, {"run.batch_size": 0}, {"batch_size": "run.batch_size"})
    assert error.value.message == "--batch-size (run.batch_size): 0 is not >= 1"


def test_a_folder_that_is_there_is_not_offered_again(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    assert nearest_path(tmp_path / "photos", "the cure") == "the cure"
    assert nearest_path(tmp_path / "fotos", "the cure") == f"did you mean {str(tmp_path / 'photos')!r}?"


def test_a_whole_number_is_a_text_too() -> None:
    """run.save_every=500 is typed without the quotes that TOML wants."""
    assert parse_set("run.save_every=500") == ("run.save_every", 500)
    assert config.build_pretrain("mfm", card("mfm").Config, {"run.save_every": 500}).run.save_every == "500"
    with pytest.raises(UserError, match="True is not a text"):
        config.build_pretrain("mfm", card("mfm").Config, {"run.save_every": True})
