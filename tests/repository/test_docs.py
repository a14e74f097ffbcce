"""What the documents say is true: every command runs, every path and setting exists."""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslkit import frequency
from sslkit.cli import app
from sslkit.core.config import build
from sslkit.data.sources import fractal
from sslkit.methods import card, load
from sslkit.training.run.folder import load_method

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]
RUN = "runs/mfm-vit_tiny_patch16_224-1"

CHEAPER = {
    "pretrain": [
        "--epochs",
        "1",
        "--limit",
        "48",
        "--size",
        "32",
        "--batch-size",
        "8",
        "--workers",
        "0",
        "--pictures",
        "1",
        "--save-every",
        "1e",
        "-s",
        "schedule.warmup_epochs=0.1",  # a recipe's is longer than such a run
    ],
    "finetune": ["--epochs", "1", "--batch-size", "2", "--workers", "0"],  # a share of 0.1 leaves 2 images
    "probe": ["--workers", "0"],
}
"""Added at the end of a documented command: the same work, less of it. The last value of an option wins."""


def documented(page: str) -> list[str]:
    """The `sslkit …` lines of a page's code blocks, without prompt, comment and line continuation."""
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^```(?:\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in lines if re.match(r"sslkit [a-z]", line)]


def call(line: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run one command line in this process; its exit code."""
    words = shlex.split(line)[1:]
    if words[0] in CHEAPER and "--resume" not in words and "--help" not in words:
        words += CHEAPER[words[0]]
        if words[0] == "finetune" and "--seeds" in words:
            words[words.index("--seeds") + 1] = "0"
    monkeypatch.setattr(sys, "argv", ["sslkit", *words])
    with pytest.raises(SystemExit) as ended:
        app.main()
    return int(ended.value.code or 0)


def write_images(folder: Path, systems: int, variants: int) -> None:
    """Class folders of small generated photographs."""
    for system in range(systems):
        (folder / f"class-{system}").mkdir(parents=True)
        for variant in range(variants):
            pixels = np.asarray(fractal.render(system, variant, 48))
            Image.fromarray(pixels).save(folder / f"class-{system}" / f"{variant}.jpg", quality=90)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages' commands name: photos, labelled images and a finished run."""
    place = tmp_path_factory.mktemp("documents")
    write_images(place / "photos", 2, 8)
    write_images(place / "more-photos", 1, 4)
    write_images(place / "labelled" / "train", 2, 8)
    write_images(place / "labelled" / "validation", 2, 4)
    (place / "clothing224").symlink_to(place / "labelled")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert call("sslkit pretrain photos/ --out runs/first -q", patch) == 0
    (place / "runs/first").rename(place / RUN)
    return place


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if documented(page)])
def test_documented_commands_run(page: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sslkit.cli import demo

    monkeypatch.chdir(workplace)
    monkeypatch.setattr(demo, "IMAGES", 64)
    for line in documented(page):
        if "--resume" in line:  # the run is complete by now: refused with the cure
            assert call(line, monkeypatch) == 2, line
            continue
        for made in ("exported", "my-backbone", "runs/fractals"):
            if made in line and (workplace / made).exists():
                (workplace / made).rename(workplace / f"{made}-{len(list(workplace.iterdir()))}-before")
        assert call(line, monkeypatch) == 0, line


def test_pages_hold_commands() -> None:
    assert sum(len(documented(page)) for page in PAGES) > 20


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) + re.findall(r'src="([^"]+)"', text):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), target


def settings_table() -> str:
    """The rows of docs/configuration.md, from the dataclasses."""
    rows = ["| setting | default | meaning |", "| --- | --- | --- |"]
    built = build.PretrainConfig("mfm", card("mfm").Config())
    for item in dataclasses.fields(built):
        section = getattr(built, item.name)
        if dataclasses.is_dataclass(section):
            for key, value, metadata in build.settings(section, item.name):
                rows.append(f"| `{key}` | `{build.toml_value(value)}` | {metadata['help']} |")
    return "\n".join(rows)


def test_settings_table_is_current() -> None:
    text = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    shown = text.split("<!-- settings: begin -->")[1].split("<!-- settings: end -->")[0].strip()
    assert shown == settings_table(), "paste the output of: python tests/repository/test_docs.py"


def test_worked_example_is_the_template_and_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/add-a-method.md shows what `sslkit methods --new` writes, and that is a method."""
    page = (ROOT / "docs/add-a-method.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert call("sslkit methods --new sharpen.py", monkeypatch) == 0
    source = (tmp_path / "sharpen.py").read_text(encoding="utf-8")
    assert page.split("```python\n")[1].split("```")[0] == source
    assert load("sharpen.py").__name__ == "Sharpen"
    assert call("sslkit pretrain fractal:16 -m sharpen.py -b test_resnet -q --out run", monkeypatch) == 0
    monkeypatch.chdir("/")
    trained = load_method(tmp_path / "run")  # found again from anywhere
    assert type(trained) is load(str(tmp_path / "sharpen.py"))


def test_frequency_page_computes_what_it_says() -> None:
    """docs/frequency.md: its Python blocks run, one after the other, and its table names every function."""
    page = (ROOT / "docs/frequency.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) > 5
    exec("\n".join(blocks), {})
    table = page.split("## All functions")[1]
    assert set(frequency.__all__) <= set(re.findall(r"`(\w+)", table))


if __name__ == "__main__":
    print(settings_table())
