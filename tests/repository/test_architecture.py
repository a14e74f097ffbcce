"""The house keeps its shape: imports go down, the command line stays light, the README's tree is true."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sslkit"
MODULES = sorted(PACKAGE.rglob("*.py"))

FLOORS = [
    {"version", "core"},
    {"data", "frequency", "losses", "models"},
    {"augmentations"},
    {"methods", "evaluation"},
    {"exporting", "training"},
    {"finetuning"},
    {"visualization", "testing"},
    {"api"},
    {"cli"},
]
"""From the ground up. A room imports from the floors below, never from above, and from none beside it."""
BESIDE = {("losses", "frequency")}
"""But for these: spectral losses are losses."""

FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
ENTRANCE = {"__init__", "__main__"}
"""The package's own two files open the doors to all floors, but only late, inside functions."""

HEAVY = {"torch", "torchvision", "timm", "PIL", "numpy", "matplotlib", "safetensors"}


def part(module: str) -> str:
    """sslkit.data.images.decode → data; sslkit itself → its __init__."""
    return module.split(".")[1] if "." in module else "__init__"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imported(nodes: Iterator[ast.AST]) -> set[str]:
    """Dotted names of what is imported; `from sslkit.core import rng` is sslkit.core.rng."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the floor"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: not function bodies, not `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        late = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not late and not typing_only:
            yield node
            yield from at_import(node)


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def own(names: set[str]) -> set[str]:
    return {name for name in names if name == "sslkit" or name.startswith("sslkit.")}


def test_public_names_are_defined_once() -> None:
    """A name is one thing, but for the sections that two trainings have."""
    places: dict[str, list[str]] = {}
    for path in MODULES:
        if path.parent.name == "cli" or path.name in ("api.py", "_template.py"):
            continue
        for node in tree_of(path).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            for name in [getattr(node, "name", "_"), *names]:
                if not name.startswith("_"):
                    places.setdefault(name, []).append(path.relative_to(PACKAGE).as_posix())
    twice = {name: found for name, found in places.items() if len(found) > 1}
    siblings = {"Data", "Model", "Optim", "Run", "Schedule", "USUAL_WARMUP", "resolve", "prepare", "job_of"}
    assert len(set(twice) - siblings - {"dry_run"}) <= 10, twice


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    here = part(module_name(path))
    if here in ENTRANCE:
        return
    for target in own(imported(ast.walk(tree_of(path)))):
        there = part(target)
        assert there in FLOOR, f"{path.name} imports {target}, which has no floor"
        below = here == there or FLOOR[there] < FLOOR[here] or (here, there) in BESIDE
        assert below, f"{path.name} imports {target}, not from below"
        if here == there == "methods" and path.stem not in ("__init__", "base"):
            assert target.startswith("sslkit.methods.base"), f"{path.name} imports its neighbour {target}"


def test_every_part_has_a_floor() -> None:
    parts = {part(module_name(path)) for path in MODULES} - ENTRANCE
    assert parts <= set(FLOOR)


LIGHT = (
    "__init__.py", "__main__.py", "version.py", "api.py", "cli/*.py",
    "core/__init__.py", "core/allocator.py", "core/cards.py", "core/console.py", "core/errors.py",
    "core/files.py", "core/moved.py", "core/paths.py", "core/user_modules.py", "core/value_range.py",
    "core/config/*.py",
    "core/distributed/__init__.py", "core/distributed/environment.py",
    "data/__init__.py", "methods/__init__.py", "training/__init__.py", "training/pretrain/__init__.py",
    "training/pretrain/config.py", "finetuning/__init__.py", "finetuning/config.py",
    "augmentations/__init__.py", "augmentations/settings.py",
    "augmentations/batch/__init__.py", "augmentations/curricula/__init__.py",
)  # fmt: skip
"""What must not import torch or anything of its weight: the command line's way to --help."""


def light_modules() -> list[Path]:
    return sorted(path for pattern in LIGHT for path in PACKAGE.glob(pattern))


@pytest.mark.parametrize("path", light_modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_light_modules_import_nothing_heavy(path: Path) -> None:
    names = imported(at_import(tree_of(path)))
    assert not {name.split(".")[0] for name in names} & HEAVY
    light = {module_name(light) for light in light_modules()} | {"sslkit"}
    for name in own(names):
        parents = {name, name.rpartition(".")[0]}  # a module, or a name in a module
        assert parents & light, f"{path.name} imports {name}, which is not light"


def test_help_leaves_torch_out() -> None:
    program = (
        "import sys\n"
        "from sslkit.cli.app import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit as stop:\n    assert not stop.code\n"
        f"print(sorted(set(sys.modules) & {HEAVY!r}))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pretrain" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_holds_one_idea(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_the_root_is_small() -> None:
    inside = [path for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert sum(path.is_dir() for path in inside) <= 14
    assert sorted(path.name for path in inside if path.is_file()) == FACE


FACE = ["__init__.py", "__main__.py", "api.py", "version.py"]
COMMANDS = {path.stem for path in (PACKAGE / "cli").glob("*.py")}
SIBLINGS = {"auto", "config", "prepare", "result", "session"}
"""Parts that one training has as the other has."""


def test_names_of_modules_are_names_of_one() -> None:
    """A name found by a search is the thing: no two modules share one, but a command and what it runs."""
    places: dict[str, list[str]] = {}
    for path in MODULES:
        if path.stem not in {"__init__", "__main__"} | SIBLINGS:
            places.setdefault(path.stem, []).append(path.relative_to(PACKAGE).as_posix())
    twice = {
        name: found
        for name, found in places.items()
        if len(found) > (2 if name in COMMANDS and any(place.startswith("cli/") for place in found) else 1)
    }
    assert not twice


def readme_tree() -> dict[str, str]:
    """Path → what the README says of it, from the code block that begins with `sslkit/`."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^```\w*\n(sslkit/.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert block, "README.md has no annotated tree"
    found, folders = {}, []
    for line in block[1].splitlines():
        if not line.strip():
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, note = line.strip().partition(" ")
        folders = [*folders[:depth], name.rstrip("/")]
        found["/".join(folders)] = note.strip()
    return found


def test_readme_tree_is_true() -> None:
    tree = readme_tree()
    for path in tree:
        assert list(ROOT.glob(path)), f"the README's tree names {path}, which does not exist"
    there = {p.relative_to(ROOT).as_posix() for p in PACKAGE.iterdir() if p.suffix == ".py" or p.is_dir()}
    assert there - {"sslkit/__pycache__"} <= set(tree), "the README's tree leaves something out"
    assert all(tree[path] for path in tree if path != "sslkit"), "every line of the tree says what is there"


def test_a_stranger_finds_the_file() -> None:
    """docs/architecture.md answers where things are: every file is there and defines what the row names."""
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .*\? \| `(.*?)` \| `(\w+)` \|$", page, re.MULTILINE)
    assert len(rows) >= 10
    for file, name in rows:
        top = {getattr(node, "name", "") for node in tree_of(PACKAGE / file).body}
        assert name in top, f"{file} does not define {name}"


def test_the_page_names_what_exists() -> None:
    """docs/architecture.md: every file and `room.module.name` is there, and decisions are few."""
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    words = set(re.findall(r"`([\w./]+)`", page))
    files = {word for word in words if word.endswith(".py")}
    names = {word for word in words - files if word.split(".")[0] in FLOOR and word.count(".") > 1}
    assert len(files) > 15
    assert names
    for file in files:
        assert (ROOT / file).is_file() or list(PACKAGE.rglob(file)), f"no file {file}"
    for word in names:
        module, _, name = word.rpartition(".")
        tree = tree_of(PACKAGE / f"{module.replace('.', '/')}.py")
        assert name in {getattr(node, "name", "") for node in tree.body}, f"no {word}"
    assert page.split("## Decisions")[1].count("\n- **") <= 40, "the reason for one line belongs to that line"


def committed() -> list[Path]:
    """Text that belongs to the project, wherever it was unpacked."""
    folders = ("sslkit", "tests", "docs", "benchmarks", "examples", ".ci")
    inside = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    files = [*ROOT.glob("*"), ROOT / ".pre-commit-config.yaml", ROOT / ".gitignore", *inside]
    endings = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".json", ".cfg", ""}
    return [f for f in files if f.is_file() and f.suffix in endings and "__pycache__" not in f.parts]


def test_nothing_tells_of_the_place_it_was_written_in() -> None:
    # Put together here, so that this file does not contain them.
    nowhere = [
        "/".join(("", "work", "")),
        "pypi" + ".org",
        "python" + "hosted.org",
        "download." + "pytorch.org",
    ]
    shared = "../" + "shared"
    for path in committed():
        text = path.read_text(encoding="utf-8", errors="replace")
        for word in nowhere:
            assert word not in text, f"{path.relative_to(ROOT)} contains {word}"
        if path.relative_to(ROOT).parts[0] not in ("tests", "benchmarks"):
            assert shared not in text, f"{path.relative_to(ROOT)} contains {shared}"
