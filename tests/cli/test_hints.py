"""Hints are followed, mechanically, as by somebody who believes every word: what comes then is no refusal."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import fields
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pytest
import typer
from helpers import Called, export_test_vit, write_photos, write_stripes

from sslkit.cli.app import app
from sslkit.core.config import build
from sslkit.finetuning import config
from sslkit.methods import card, names

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]

TINY = "-b test_vit --size 32 --batch-size 8 --epochs 1 --workers 0 --device cpu --precision float32"
DRY = f"pretrain photos {TINY} --dry-run"
BENCH = (
    "bench photos -b test_vit --size 32 --batch-size 8 --workers 0 --device cpu --precision float32 --steps 1"
)
TUNE = "finetune random/test_vit data --size 32 --batch-size 4 --epochs 1 --workers 0 --device cpu -q"
PROBE = "probe model data --baseline pixels --workers 0 --device cpu --precision float32 --no-cache -q"
EMBED = "embed model photos --workers 0 --device cpu --precision float32"

MISTAKES = [
    "pretrain",
    DRY.replace("photos", "phoots"),
    f"{DRY} -m mmf",
    f"{DRY} -b tets_vit",
    f"{DRY} -s optim.l=1",
    f"{DRY} -s optim.lr",
    f"{DRY} --lr -1",
    f"{DRY} --precision bfloat61",
    f"{DRY} --precision tf32",
    f"{DRY} --device tpu9",
    f"{DRY} --save-every often",
    f"{DRY} --save-every 9e",
    f"{DRY} -s schedule.warmup_epochs=3",
    f"{DRY} -s run.log_every=500",
    f"{DRY} --batch-size 17",
    f"{DRY} --size 40",
    f"{DRY} --size 100000",
    f"{DRY} -b resnet10t --batch-size 1",
    f"{DRY} -b resnet10t --micro-batch 1",
    f"{DRY} -m mae -b resnet10t",
    f"{DRY} -m simclr --batch-size 1",
    f"{DRY} -m dino -s method.local_crops=2 -s method.local_size=500",
    f"{DRY} -s method.radius=99",
    f"{DRY} -s model.stem=small",
    f"{DRY} -c broken.toml",
    f"{DRY} -c mfm-vit-b61 --epochs 300",
    f"{DRY.replace('--epochs 1 ', '')} --epochs 3 --max-time 8h",
    f"{DRY.replace('--epochs 1 ', '')} --max-time 30",
    f"{DRY} -m mae -s method.mask_ratio=0",
    f"{DRY} --limit -1",
    f"{DRY} --workers -2",
    f"{DRY} --resume taken",
    f"pretrain photos {TINY} -q --pictures 0 --allow-data-change",
    f"{BENCH} -m mmf",
    f"{BENCH} --steps 0",
    f"{TUNE} --share 2",
    f"{TUNE} --shots 2 --share 0.5",
    f"{TUNE} --seeds a,b",
    f"{TUNE} --keep bets",
    f"{TUNE} --batch-size 99",
    f"{TUNE} --batch-size 3",
    f"{TUNE} -c mfm-vit-b16",
    f"{TUNE} --save-every 500",
    f"{TUNE} --scratch --baseline scratch",
    f"{TUNE} -o taken",
    "finetune random/tets_vit data -q --epochs 1",
    "finetune random/test_vit dta -q --epochs 1 --size 32 --workers 0",
    "probe test_vit data --size 32 --no-cache -q",
    f"{PROBE} --readout men",
    f"{PROBE} --shots ten",
    f"{PROBE} --shots 500",
    f"{PROBE} --seeds 0",
    f"{PROBE} --min-top1 900",
    f"{PROBE} -o taken",
    f"{EMBED} -o photos.np",
    f"{EMBED} -o taken.npz",
    f"{EMBED} --neighbours -1",
    f"{EMBED} --readout clss",
    f"{EMBED} --precision fp16",
    "visualize model photos -k pac",
    "visualize model photos -k masks --count 0",
    "export modle",
    "export model out --format timmm",
    "export model taken",
    "check phoots",
    "check photos -o taken.npz",
    "pack photos",
    "pack photos taken",
    "pack photos packed --shard-size big",
    "pack photos packed --quality 500 --size 32",
    "pack photos packed --size 0",
    "pack photos packed --workers -1",
    "methods mmf",
    "methods mine.py",
    "methods --new mine.txt",
    "methods --new missing/mine.py",
    "methods mfm --test mfm",
    "models resnet81",
    "pretend",
    "pretrain --nonsense",
]
"""Each refused at the door."""


# ------------------------------------------------------------------------------------- how one follows

QUOTED, WORD = r"'([^']+)'", r"[\w./-]+"
COMMAND = r"^(?:sslkit|python -m \S+) ([^,;]+?)(?: (?:prints|writes|lists|compares|tells) .*)?(?:[,;]|$)"
CHEAPER = {"pretrain": shlex.split(DRY)[2:]}


def followed(words: list[str], message: str, hint: str) -> list[str]:
    """The next command line: what the hint says to type, in place of what it is about."""
    if hint.startswith("mkdir"):
        subprocess.run(shlex.split(hint), check=True)
        return words
    if command := re.search(
        r"^sslkit ([^,;]+?)(?: (?:prints|writes|lists|compares|tells) .*)?(?:[,;]|$)", hint
    ):
        typed = shlex.split(command[1])
        return typed + (CHEAPER.get(typed[0], []) if "--help" not in typed else [])
    if guess := re.search(r"did you mean '([^']+)'", hint):
        typed = {part for word in words for part in (word, *re.split(r"[=/]", word))}
        said = [
            set(re.findall(pattern, message)) & typed - {guess[1], words[0]} for pattern in (QUOTED, WORD)
        ]
        known = sorted(said[0] or said[1])
        wrong = max(known, key=lambda word: SequenceMatcher(None, word, guess[1]).ratio())
        return [
            word.replace(wrong, guess[1]) if wrong in (word, *re.split(r"[=/]", word)) else word
            for word in words
        ]
    if (out := re.search(r"leave (?:out )?(-\S+|it)", hint)) or hint.startswith("give one of them"):
        named = out[1] if out and out[1] != "it" else re.findall(r"--[a-z0-9-]+", message)[0]
        return without(words, named)
    if "nothing is overwritten" in hint or hint.startswith("choose another") or ", choose another" in hint:
        return [word.replace("taken", "free").replace("own.py", "other.py") for word in words]
    if value := re.search(r"(?:for example|the default is) (\S+)", hint):
        return given(words, re.findall(r"--[a-z0-9-]+", message)[0], value[1])
    if source := re.search(r"random/\S+", hint):
        return [source[0] if word == source[0].split("/")[1] else word for word in words]
    first = (
        re.split(r", or |; ", hint)[0].removesuffix(" or more").removesuffix(" or less").removeprefix("e.g. ")
    )
    options = re.findall(r"(?:^|[ (])(--?[a-z][a-z0-9-]*)(?: (\S+))?", first)
    for option, value in options:
        words = given(words, option, value)
    return words


def takes_value(verb: str, option: str) -> bool:
    found = [item for item in COMMANDS[verb].params if option in (*item.opts, *item.secondary_opts)]
    assert found, f"sslkit {verb} has no {option}"
    return not found[0].is_flag


def without(words: list[str], option: str) -> list[str]:
    at = len(words) - 1 - words[::-1].index(option)
    return words[:at] + words[at + 1 + takes_value(words[0], option) :]


def given(words: list[str], option: str, value: str) -> list[str]:
    """The option with this value, in place of what it had; a setting in place of its own alone."""
    if not takes_value(words[0], option):
        return [*words, option]
    if option in ("-s", "--set"):
        key = value.partition("=")[0]
        at = [n for n, word in enumerate(words) if word.split("=")[0] == key]
        return [*words[: at[0]], value, *words[at[0] + 1 :]] if at else [*words, option, value]
    return [*words, option, value]  # the last one wins


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos", 16)
    write_stripes(tmp_path / "data", {"checks": 10, "rows": 10})
    (tmp_path / "model").mkdir()
    export_test_vit(tmp_path / "model")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken.npz").touch()
    (tmp_path / "runs").mkdir()
    (tmp_path / "broken.toml").write_text("[optim\nlr=")
    return tmp_path


@pytest.mark.parametrize("line", MISTAKES)
def test_a_hint_that_is_followed(line: str, place: Path, command: Callable[..., Called]) -> None:
    words = shlex.split(line)
    code, _, told = command(*words)
    lines = [one for one in told.splitlines() if one.startswith(("error: ", "hint: "))]
    assert code == 2, told
    print(lines)
    assert len(lines) == 2, told
    again = followed(words, lines[0].removeprefix("error: "), lines[1].removeprefix("hint: "))
    print(shlex.join(again))
    assert again != words or lines[1].startswith("hint: mkdir"), lines
    code, _, told = command(*again)
    assert code != 2, (lines, again, told)


# ------------------------------------------------------------------------------------- all of them, as text

PACKAGE = Path(__file__).parents[2] / "sslkit"
OWNERS = {
    "cli/finetune.py": ("finetune",),
    "cli/info.py": ("info",),
    "cli/methods.py": ("methods",),
    "cli/pack.py": ("pack",),
    "cli/pretrain.py": ("pretrain",),
    "cli/probe.py": ("probe",),
    "data/packs/writer.py": ("pack",),
    "data/packs/reader.py": ("pack", "embed", "probe"),
    "evaluation/embedding/embed.py": ("embed",),
    "evaluation/finetune": ("finetune",),
    "evaluation/embedding/gallery.py": ("embed",),
    "finetuning/auto.py": ("finetune",),
    "evaluation/embedding/vector_files.py": ("embed",),
    "evaluation/": ("probe",),
    "exporting/": ("export",),
    "methods/": ("pretrain", "bench"),
    "training/pretrain/config.py": ("pretrain",),
    "training/loop/acceleration.py": ("pretrain", "bench"),
    "training/": ("pretrain",),
    "visualization/": ("visualize",),
    "core/config/validate.py": ("pretrain", "finetune", "probe", "embed", "visualize"),
    "core/distributed/processes.py": ("pretrain", "finetune"),
    "models/input_size.py": ("pretrain", "bench", "finetune", "probe", "embed"),
}
"""Who can say it, the first that fits; of what is not here, any command."""
CURES = ("cure", "LESS", "LAYOUTS", "_CURE", "_CLEAN", "_REPORT")
OTHERS = {"--shm-size"}  # docker's


def flags_of(verb: str) -> set[str]:
    options = {option for item in COMMANDS[verb].params for option in (*item.opts, *item.secondary_opts)}
    return options | {"--help"}


def texts(node: ast.AST) -> Iterator[str]:
    """The strings below a node; what is filled in is {}."""
    if isinstance(node, ast.JoinedStr):
        yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "command":
        yield " ".join(
            next(texts(word), "") if isinstance(word, ast.Constant) else "{}" for word in node.args
        )
    elif isinstance(node, ast.Constant):
        yield from [node.value] if isinstance(node.value, str) else []
    else:
        for child in ast.iter_child_nodes(node):
            yield from texts(child)


def cures(path: Path) -> Iterator[str]:
    """What a file gives as the second of a UserError, or calls a cure."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("UserError", "OutOfMemory"):
            for argument in node.args[1:]:
                yield from texts(argument)
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in CURES:
            yield from texts(node.value)


def every_cure() -> list[tuple[str, str]]:
    files = sorted(PACKAGE.rglob("*.py"))
    return [(str(file.relative_to(PACKAGE)), cure) for file in files for cure in cures(file)]


def test_there_are_many() -> None:
    assert len(every_cure()) > 250


def test_what_a_hint_names_exists() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    own = [("method", card(name).Config) for name in names()]
    parts = [*build.SECTIONS.items(), *config.SECTIONS.items(), *own]
    keys = {f"{name}.{item.name}" for name, part in parts for item in fields(part)}
    for file, cure in every_cure():
        said = f"{file}: {cure}"
        for verb, rest in re.findall(r"sslkit ([a-z]+)((?: (?!--)\S+)*(?: --[a-z0-9-]+)?)", cure):
            if verb in ("reads", "skips"):  # a sentence
                continue
            assert verb in COMMANDS, said
            assert set(re.findall(r" (--[a-z0-9-]+)", rest)) <= flags_of(verb), said
        for extra in re.findall(r"sslkit\[([a-z]+)\]", cure):
            assert extra in project["optional-dependencies"], said
        for key in re.findall(
            r"(?<![\w-])((?:data|model|optim|schedule|run|augment|method)\.[a-z_]+)\b", cure
        ):
            assert key in keys or key == "run.json", said
        rest = re.sub(r"sslkit [a-z]+ [^,;]*", "", cure)
        verbs = next((value for begin, value in OWNERS.items() if file.startswith(begin)), None)
        for flag in set(re.findall(r"(?<![\w-])(--?[a-z][a-z0-9-]*)", rest)) - OTHERS - {"-p", "-s"}:
            if not flag.startswith("--") and len(flag) != 2:
                continue
            assert any(flag in flags_of(verb) for verb in COMMANDS), said
            for verb in verbs or ():
                assert flag in flags_of(verb), f"{said} ({verb} has none)"
