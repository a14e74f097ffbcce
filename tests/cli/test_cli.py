"""The command line as people and scripts meet it: what is refused, where text goes, which flags exist."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from sslkit import __version__
from sslkit.cli import app
from sslkit.cli.app import app as commands
from sslkit.core.config import build
from sslkit.core.config.build import PretrainConfig

HEAVY = {"torch", "torchvision", "timm", "numpy", "PIL", "matplotlib", "safetensors"}
SMALL = ["-b", "test_vit", "--size", "32", "--batch-size", "8", "--epochs", "1"]
SMALL += ["--workers", "0", "--device", "cpu", "--pictures", "0"]

Called = tuple[int, str, str]
Call = Callable[..., Called]


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, photos: Path
) -> Call:
    """call("pretrain", "photos", …) in tmp_path, in this process → (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Called:
        monkeypatch.setattr(sys, "argv", ["sslkit", *words])
        with pytest.raises(SystemExit) as ended:
            app.main()
        return (int(ended.value.code or 0), *capsys.readouterr())

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


# -------------------------------------------------------------------------------------------- bad input

BAD = [
    (["pretrain", "missing"], "missing", ""),
    (["pretrain", "empty"], "empty: no images found", ".jpg"),  # the endings that were looked for
    (["pretrain", "texts"], "texts: no images found", ".png"),
    (["pretrain"], "no images given", "fractal:2000"),
    (["pretrain", "photos", "-m", "mmf"], "unknown method 'mmf'", "did you mean 'mfm'?"),
    (["pretrain", "photos", "-b", "resnet81"], "unknown backbone 'resnet81'", "did you mean 'resnet"),
    (["pretrain", "photos", "-s", "optim.l=1"], "unknown setting 'optim.l'", "did you mean 'optim.lr'?"),
    (["pretrain", "photos", "-s", "optim.lr"], "is not section.key=value", "optim.lr=3e-4"),
    (["pretrain", "photos", "--lr", "-1"], "--lr (optim.lr): -1.0 is not > 0", "above 0"),
    (["pretrain", "photos", "--lr", "fast"], "--lr", "pretrain --help"),
    (
        ["pretrain", "photos", "--precision", "int4"],
        "--precision (run.precision): 'int4' is not one of auto",
        "",
    ),
    (["pretrain", "photos", "--save-every", "often"], "'often' is not an interval", "10m"),
    (["pretrain", "photos", "--max-time", "30"], "--max-time (run.max_time): '30' is not a time", "30s"),
    (["pretrain", "photos", "-b", "resnet18", "--size", "100000"], "--size (data.size): 100000", "8 to 4096"),
    (
        ["finetune", "random/resnet10t", "fractal:40", "--share", "2"],
        "--share (data.share)",
        "the default is 1",
    ),
    (["probe", "resnet10t", "fractal:40"], "resnet10t is not a run", "random/resnet10t"),
    (
        ["probe", "random/resnet10t", "fractal:40", "--size", "99968"],
        "--size: 99968 is not <= 4096",
        "8 to 4096",
    ),
    (
        ["embed", "random/resnet10t", "fractal:4", "--size", "32", "--precision", "fp16"],
        "--precision: 'fp16'",
        "float16",
    ),
    (["pretrain", "photos", "--device", "tpu9"], "no device 'tpu9' here", "--device"),
    (["pretrain", "photos", *SMALL, "--size", "40"], "can't take images of 40 px", "try --size"),
    (["probe", "random/resnet10t", "fractal:40", "--seed", "-1"], "--seed: -1 is not >= 0", "0 or more"),
    (["embed", "random/resnet10t", "fractal:40", "--seed", "-1"], "--seed: -1 is not >= 0", "0 or more"),
    (["visualize", "random/resnet10t", "fractal:40", "--seed", "-1"], "--seed: -1 is not >= 0", "0 or more"),
    (["info", "gone.safetensors"], "no file gone.safetensors", "the folder that holds runs"),
    (
        ["pretrain", "photos", *SMALL, "-b", "resnet18", "--size", "72"],
        "can't take images of 72 px",
        "--size 64",
    ),
    (["pretrain", "photos", *SMALL, "--batch-size", "17"], "larger than the data: 16 images", "16"),
    (["pretrain", "photos", *SMALL, "-o", "taken"], "taken exists", "choose another"),
    (["pretrain", "photos", "-c", "broken.toml"], "broken.toml is not readable TOML", "--toml"),
    (["pretrain", "photos", "-c", "mfm-vit-b61"], "no configuration 'mfm-vit-b61'", "mfm-vit-b16"),
    (["pretrain", "photos", *SMALL, "--init", "photos"], "photos is not a run", ""),
    (["pretrain", "--resume", "photos"], "photos is not a run", ""),
    (["pretrain", "photos", "--resume", "taken"], "--resume goes alone", "pretrain --resume taken"),
    (["probe", "photos", "photos"], "photos is not a run", ""),
    (["probe", "photos"], "probe needs SOURCE and DATA", ""),
    (["finetune", "photos", "fractal:40"], "photos is not a run", ""),
    (["export", "photos"], "photos is not a run", ""),
    (["visualize", "photos"], "photos", ""),
    (["info", "photos"], "photos is not a run", ""),
    (["info", "missing.safetensors"], "missing.safetensors", ""),
    (["methods", "mmf"], "unknown method 'mmf'", "did you mean 'mfm'?"),
    (["methods", "./mine.py"], "no method file ./mine.py", "--new mine.py"),
    (["methods", "--test", "mine.py"], "no method file mine.py", "--new mine.py"),
    (["methods", "--new", "mine.txt"], "a file that ends in .py expected", "--new mine.py"),
    (["methods", "--new", "missing/mine.py"], "there is no folder missing", ""),
    (["methods", "--new", "own.py"], "own.py exists", "another name"),
    (["methods", "own.py"], "own.py: no class derived from Method", "docs/add-a-method.md"),
    (["methods", "mfm", "--test", "mfm"], "NAME and --test do not go together", "--help"),
    (["pretrain", "photos", "-m", "./mine.py"], "no method file", "--new mine.py"),
    (["models", "resnet81"], "no timm model fits 'resnet81'", "did you mean 'resnet"),
    (["pretend"], "pretend", "--help"),
    (["pretrain", "--nonsense"], "--nonsense", "sslkit pretrain --help"),
]


@pytest.mark.parametrize(
    ("words", "message", "hint"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_input_is_one_line_and_writes_nothing(
    call: Call, tmp_path: Path, words: list[str], message: str, hint: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no image")
    (tmp_path / "broken.toml").write_text("[optim\nlr=")
    (tmp_path / "own.py").write_text("import this\n")
    before = contents(tmp_path)
    code, out, err = call(*words)
    assert code == 2, err
    assert out == ""
    lines = err.splitlines()
    assert len(lines) <= 2, err
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    if hint:
        assert lines[1].startswith("hint: ")
        assert hint in lines[1]
    assert contents(tmp_path) == before


# ---------------------------------------------------------------------------------------------- streams


def test_stdout_is_the_path_alone(call: Call, tmp_path: Path) -> None:
    code, out, err = call("pretrain", "photos", *SMALL, "-o", "run", "-q")
    assert (code, out, err) == (0, "run\n", "")
    for file in ("encoder.safetensors", "config.json", "config.toml", "report.html", "metrics.jsonl"):
        assert (tmp_path / "run" / file).is_file(), file

    code, out, _ = call("info", "run")
    assert code == 0
    facts = dict(line.split(maxsplit=1) for line in out.splitlines() if len(line.split()) == 2)
    assert (facts["status"], facts["step"]) == ("completed", "2")
    code, out, _ = call("info", ".", "--json")
    assert json.loads(out)["run"].startswith("completed, step 2, loss ")
    code, out, _ = call("info", "run/encoder.safetensors", "--json")
    facts = json.loads(out)
    assert facts["method"] == "mfm"
    assert facts["bytes"] == (tmp_path / "run/encoder.safetensors").stat().st_size
    assert facts["weights"] > 100_000

    code, out, err = call("pretrain", "--resume", "run")
    assert (code, out) == (2, "")
    assert err.startswith("error: run is already complete\nhint: ")


def test_text_is_for_stderr_and_has_no_control_codes(call: Call) -> None:
    code, out, err = call("pretrain", "photos", *SMALL, "-o", "run")
    assert (code, out) == (0, "run\n")
    assert "16 images from photos" in err
    assert "sslkit export run" in err
    assert not [letter for letter in err if not letter.isprintable() and letter != "\n"]


def test_json_is_events_and_a_result(call: Call) -> None:
    code, out, err = call("pretrain", "photos", *SMALL, "-o", "run", "-q", "--json")
    documents = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert [document["step"] for document in documents[:-1]] == [1, 2]
    assert documents[-1] == {"run": "run"}


@pytest.mark.slow
def test_a_process_gives_only_the_path(tmp_path: Path, photos: Path) -> None:
    line = [sys.executable, "-m", "sslkit", "pretrain", str(photos), *SMALL, "-q"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "runs/mfm-test_vit-1\n"), done.stderr
    assert done.stderr == ""


def test_too_many_unreadable_images_end_with_1_and_the_list(call: Call, photos: Path) -> None:
    for file in sorted(photos.glob("*.png"))[:4]:
        file.write_bytes(b"no picture")
    code, out, err = call("pretrain", "photos", *SMALL, "--epochs", "3", "-o", "run", "-q")
    assert (code, out) == (1, "")
    assert "images can't be read" in err
    assert "hint: see run/skipped.tsv" in err
    code, out, _ = call("info", "run", "--json")
    assert json.loads(out)["status"] == "failed"


def test_flags_win_over_settings_over_file_over_method(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.toml").write_text(
        "[optim]\nclip = 1.0\neps = 1e-7\n[run]\nseed = 1\n[method]\nradius = 5\n"
    )
    words = ["-c", "own.toml", "-s", "optim.eps=1e-6", "-s", "run.seed=2", "--seed", "3"]
    assert call("pretrain", "photos", *SMALL, *words, "-o", "run", "-q")[0] == 0
    written = build.read(str(tmp_path / "run/config.toml"))
    assert (written["optim.clip"], written["optim.eps"], written["run.seed"]) == (1.0, 1e-6, 3)
    assert (written["method.radius"], written["optim.betas"]) == (5.0, [0.9, 0.95])


# ------------------------------------------------------------------------------------ listing, start-up


def test_methods(call: Call, tmp_path: Path) -> None:
    code, out, err = call("methods")
    assert (code, err) == (0, "")
    assert any(line.startswith("mfm ") and "2023" in line for line in out.splitlines())
    listed = json.loads(call("methods", "--json")[1])["methods"]
    (mfm,) = [entry for entry in listed if entry["name"] == "mfm"]
    assert (mfm["needs"], mfm["backbones"]) == (["image"], ["vit", "cnn", "swin", "transformer"])
    assert {"family", "paper", "year", "link", "lines", "status"} <= set(mfm)
    assert "https://arxiv.org/abs/2206.07706" in call("methods", "mfm")[1]
    assert json.loads(call("methods", "mfm", "--json")[1])["year"] == 2023


def test_a_method_s_toml_is_a_configuration(call: Call, tmp_path: Path) -> None:
    from sslkit.training.pretrain.config import pretrain_config

    (tmp_path / "mfm.toml").write_text(call("methods", "mfm", "--toml")[1])
    built = pretrain_config(["photos"], config=tmp_path / "mfm.toml")
    assert build.flat(built) == build.flat(pretrain_config(["photos"]))


def test_models(call: Call) -> None:
    assert "resnet18\n" in call("models", "resnet1*")[1]
    found = json.loads(call("models", "vit_small_patch16", "--json")[1])["models"]
    assert "vit_small_patch16_224" in found


def test_no_words_are_a_question(call: Call) -> None:
    code, out, err = call()
    assert (code, err) == (0, "")
    assert "pretrain" in out
    assert call("--help")[1] == out
    assert call("-h")[1] == out
    assert call("--version") == (0, f"sslkit {__version__}\n", "")


@pytest.mark.parametrize(
    "words", [["--help"], ["pretrain", "--help"], ["--version"], ["methods"], ["methods", "mfm", "--toml"]]
)
def test_light_commands_leave_torch_out(words: list[str]) -> None:
    program = (
        "import sys\nfrom sslkit.cli import app\n"
        f"sys.argv = ['sslkit', *{words!r}]\n"
        "try:\n    app.main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        f"print(sorted(set(sys.modules) & {HEAVY!r}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert done.stdout


# ------------------------------------------------------------------------------------------------ flags

TRAINING = "--epochs -e --batch-size --lr --size --workers --device --precision --out -o --seed"
SETTINGS = "--config -c --set -s"
OUTPUT = "--quiet -q --json"
FLAGS = {
    "pretrain": f"{TRAINING} {SETTINGS} {OUTPUT} --method -m --backbone -b --init --micro-batch --limit "
    "--resume --save-every --pictures --allow-data-change --overwrite --dry-run --compile --cache --devices "
    "--max-time --augment --curriculum",
    "finetune": f"{TRAINING} {SETTINGS} {OUTPUT} --scratch --baseline --seeds --shots --share "
    "--cache --freeze --balance --keep --resume --save-every --robust --robust-limit --attacks "
    "--micro-batch --devices --max-time --dry-run --compile",
    "probe": f"--size --device --precision --workers --seed --out -o {OUTPUT} --baseline --readout --shots "
    "--seeds --exclude-leaks --grid --robust --robust-limit --attacks --local --min-top1 --no-cache "
    "--range",
    "visualize": f"--kind -k --count --with --limit --radius --size --seed --out -o {OUTPUT}",
    "export": f"--format --backbone -b --trust {OUTPUT}",
    "embed": f"--out -o --readout --neighbours --query --size --device --precision --workers --seed {OUTPUT} "
    "--range",
    "check": f"--against --out -o --workers {OUTPUT}",
    "pack": f"--size --shard-size --quality --workers --limit --range {OUTPUT}",
    "bench": f"--method -m --backbone -b --size --batch-size --micro-batch --workers --device --precision "
    f"--compile --steps {SETTINGS} {OUTPUT}",
    "info": "--json",
    "doctor": "--train --json",
    "methods": "--toml --new --test --json",
    "models": "--json",
    "demo": "--out -o --quiet -q",
}


def test_flags_are_these_and_no_others() -> None:
    group = typer.main.get_command(commands)
    found = {
        name: {option for item in command.params for option in item.opts if option.startswith("-")}
        for name, command in group.commands.items()  # type: ignore[attr-defined]
    }
    assert found == {name: set(flags.split()) for name, flags in FLAGS.items()}
    for name, flags in FLAGS.items():
        assert len([flag for flag in flags.split() if flag.startswith("--")]) <= 32, name


def test_an_option_that_stands_for_a_setting_is_declared_in_its_field() -> None:
    """The command's option, the word in Python and the key of config.toml come from one place."""
    from sslkit.finetuning.config import FLAGS as OF_FINETUNING
    from sslkit.finetuning.config import SECTIONS
    from sslkit.training.pretrain.config import PRETRAIN_FLAGS

    group = typer.main.get_command(commands)
    for name, words, sections in (
        ("pretrain", PRETRAIN_FLAGS, build.SECTIONS), ("finetune", OF_FINETUNING, SECTIONS),
    ):  # fmt: skip
        options = {item.name: item for item in group.commands[name].params}  # type: ignore[attr-defined]
        for word, key in words.items():
            section, _, field = key.partition(".")
            declared = sections[section].__dataclass_fields__[field].metadata["flag"]
            if declared is not None:
                assert set(options[word].opts) == {one.partition("/")[0] for one in declared.names}
                assert options[word].default is None  # the setting's own default, or what a file says
    assert set(OF_FINETUNING) - {"layer_decay"} <= {item.name for item in group.commands["finetune"].params}  # type: ignore[attr-defined]


def test_every_flag_says_what_it_does() -> None:
    group = typer.main.get_command(commands)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        assert command.help, name
        for item in command.params:
            assert getattr(item, "help", None), f"{name} {item.name}"


def test_flags_of_pretrain_reach_their_settings(
    call: Call, tmp_path: Path, tiny: Callable[..., PretrainConfig]
) -> None:
    words = {
        "--method": ("mfm", "method.name", "mfm"),
        "--backbone": ("test_vit", "model.backbone", "test_vit"),
        "--epochs": ("2", "schedule.epochs", 2),
        "--batch-size": ("3", "run.batch_size", 3),
        "--micro-batch": ("2", "run.micro_batch", 2),
        "--lr": ("0.25", "optim.lr", 0.25),
        "--size": ("32", "data.size", 32),
        "--limit": ("6", "data.limit", 6),
        "--workers": ("0", "data.workers", 0),
        "--cache": ("off", "data.cache", "off"),
        "--device": ("cpu", "run.device", "cpu"),
        "--precision": ("float32", "run.precision", "float32"),
        "--out": ("run", "run.out", "run"),
        "--save-every": ("2e", "run.save_every", "2e"),
        "--pictures": ("0", "run.pictures", 0),
        "--seed": ("5", "run.seed", 5),
    }
    line = [part for flag, (text, _, _) in words.items() for part in (flag, text)]
    assert call("pretrain", "photos", *line, "-q")[0] == 0
    written = build.read(str(tmp_path / "run/config.toml"))
    for flag, (_, key, value) in words.items():
        assert written[key] == value, flag


def test_an_interruption_while_modules_are_imported_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    package = str(Path(__file__).parents[2])
    paths = os.pathsep.join([str(tmp_path), package])
    done = subprocess.run(
        [sys.executable, "-m", "sslkit", "info", "."],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


def test_info_of_a_stopped_run_says_where_it_goes_on(call: Call, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 10, "loss": 1.5}\n')
    for status, step in (("interrupted", 14), ("running", 10)):
        facts = {"status": status, "step": 14}
        (tmp_path / "run" / "run.json").write_text(json.dumps(facts))
        told = json.loads(call("info", "run", "--json")[1])
        assert (told["step"], told["resumes at step"], told["loss"]) == (step, 14, 1.5)


def test_an_interruption_inside_a_command_is_one_line(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sslkit.api.doctor", stop)
    assert call("doctor")[0::2] == (130, "error: interrupted\n")
