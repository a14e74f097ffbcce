"""What --help says: defaults that are those of the code, examples that work, and nothing heavy for it."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from sslkit.cli.app import app
from sslkit.core.config import build
from sslkit.data.packs.members import Settings
from sslkit.evaluation.embedding.embed import embed
from sslkit.evaluation.probe.probe import probe
from sslkit.finetuning import config
from sslkit.finetuning.config import FLAGS
from sslkit.methods import card, names
from sslkit.training.pretrain.config import METHOD, PRETRAIN_FLAGS, pretrain_config
from sslkit.visualization.visualize import visualize

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
WITHOUT = {
    *("config", "settings", "resume", "help"),  # nothing is taken, and nothing chosen
    *("against", "query", "beside", "min_top1", "new", "test", "shots"),
}
"""Options with a value that have no default."""


def examples() -> list[str]:
    return [line for command in COMMANDS.values() for line in command.examples]


def shown(name: str, monkeypatch: pytest.MonkeyPatch, columns: int = 80) -> str:
    """A command's help on a terminal of so many columns."""
    monkeypatch.setenv("COLUMNS", str(columns))
    with COMMANDS[name].make_context(f"sslkit {name}", [], resilient_parsing=True) as context:
        text: str = COMMANDS[name].get_help(context)
    return text


def told(text: str) -> dict[str, str]:
    """Option's long name → its lines as one."""
    options = text.partition("\nOptions:\n")[2].partition("\n\n")[0]
    entries = re.split(r"\n  (?=-)", "\n" + options)[1:]
    lines = [" ".join(entry.split()) for entry in entries]
    return {match[1]: line for line in lines if (match := re.search(r"--([a-z0-9-]+)", line))}


# ------------------------------------------------------------------------------------------- examples


@pytest.mark.parametrize("line", examples())
def test_an_example_is_a_command(line: str) -> None:
    sslkit, name, *words = shlex.split(line, comments=True)
    assert sslkit == "sslkit"
    context = COMMANDS[name].make_context(name, words)
    given = {key: value for key, value in context.params.items() if value is not None}
    if name == "pretrain":  # names, recipes and settings exist
        flags = {key: value for key, value in given.items() if key in PRETRAIN_FLAGS}
        pretrain_config(
            given["data"], given.get("method"), given.get("config"), given["settings"] or (), flags
        )
    if name == "finetune":
        flags = {key: value for key, value in given.items() if key in FLAGS and value is not False}
        config.finetune_config(given["source"], given["data"], flags=flags)


@pytest.mark.parametrize("columns", [80, 120])
def test_help_fits_its_terminal_and_ends_with_examples(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, command in COMMANDS.items():
        text = shown(name, monkeypatch, columns)
        assert 1 <= len(command.examples) <= 3
        assert text.rstrip().endswith("\n".join(f"  {line}" for line in command.examples)), name
        assert max(map(len, text.splitlines())) <= columns, name
        assert text == shown(name, monkeypatch, columns)


# ------------------------------------------------------------------------------------------- defaults


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_with_a_value_says_what_it_is_else(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = told(shown(name, monkeypatch))
    for item in COMMANDS[name].params:
        long = max(item.opts, key=len)
        if long.startswith("--") and not item.is_flag and item.name not in WITHOUT:
            if (name, item.name) in {("finetune", "baseline"), ("export", "backbone"), ("check", "out")}:
                continue
            assert re.search(r"\[(default|auto): [^\]]+\]", lines[long[2:]]), (name, long)


@pytest.mark.parametrize(
    ("name", "flags", "built"),
    [
        ("pretrain", PRETRAIN_FLAGS, build.PretrainConfig(METHOD, None)),
        ("bench", PRETRAIN_FLAGS, build.PretrainConfig(METHOD, None)),
        ("finetune", FLAGS, config.FinetuneConfig()),
    ],
)
def test_defaults_are_those_of_the_settings(
    name: str, flags: dict[str, str], built: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = told(shown(name, monkeypatch))
    options = {item.name: max(item.opts, key=len)[2:] for item in COMMANDS[name].params}
    assert (name == "finetune") or "[default: mfm]" in lines["method"]
    for flag, key in flags.items():
        section, _, field = key.partition(".")
        value = getattr(getattr(built, section), field)
        if flag not in options or isinstance(value, bool):
            continue
        shown_as = {"auto": "[auto: ", "": "[default: ", "()": "[default: none"}
        expected = shown_as.get(str(value), f"[default: {value}")
        assert expected in lines[options[flag]], (flag, lines[options[flag]])


def parameters(function: Any) -> Iterator[tuple[str, Any]]:
    for name, item in inspect.signature(function).parameters.items():
        yield name, item.default


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("probe", parameters(probe)),
        ("embed", parameters(embed)),
        ("visualize", parameters(visualize)),
        ("pack", ((item.name, item.default) for item in dataclasses.fields(Settings))),
    ],
)
def test_fixed_defaults_are_those_of_the_functions(
    name: str, taken: Iterator[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, compared = told(shown(name, monkeypatch)), 0
    for parameter, value in taken:
        if (line := lines.get(parameter.replace("_", "-"))) and type(value) in (int, float):
            compared += 1
            text = "256MB" if parameter == "shard_size" else f"{value:g}"
            assert f"[default: {text}]" in line, line
        if parameter == "baselines":
            assert f"[default: {', '.join(value)}]" in lines["baseline"]
    assert compared


def test_what_is_left_to_the_tool_says_how_it_is_chosen() -> None:
    sections = [
        *build.SECTIONS.values(),
        *config.SECTIONS.values(),
        *(card(n).Config for n in names()),
    ]
    for section in sections:
        for field in dataclasses.fields(section):
            if field.metadata["default"] == "auto":
                assert "auto: " in field.metadata["help"], f"{section.__name__}.{field.name}"
            elif field.metadata["auto"]:
                assert "auto" in field.metadata["help"], f"{section.__name__}.{field.name}"


# ------------------------------------------------------------------------------------------------ cost


def test_no_help_imports_anything_heavy() -> None:
    program = f"""
import sys
from sslkit.cli import app
for name in {[*COMMANDS]!r}:
    sys.argv = ["sslkit", name, "--help"]
    try:
        app.main()
    except SystemExit as stop:
        assert not stop.code
print(sorted({{"torch", "torchvision", "timm", "numpy", "PIL", "matplotlib"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stdout.count("\nExamples:\n") == len(COMMANDS)
