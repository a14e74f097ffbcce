"""Versions against what sslkit asks for, read from metadata: works where torch itself can't be imported."""

from __future__ import annotations

import platform
import re
import tomllib
from collections.abc import Iterator
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path

from sslkit.core.errors import UserError, first_line
from sslkit.testing.doctor.finding import Finding

PACKAGES = ("torch", "torchvision", "timm", "Pillow", "safetensors", "numpy")

NEWEST_TESTED = {
    "torch": "2.14.1",
    "torchvision": "0.29.1",
    "timm": "1.0.31",
    "Pillow": "13.0.0",
    "safetensors": "0.8.0",
    "numpy": "2.4.6",
}
"""With these the suite passed on 2026-11-30 (`make test`)."""

OLDEST_TESTED = {
    "torch": "2.6.0",
    "torchvision": "0.21.0",
    "timm": "1.0.26",
    "Pillow": "10.3.0",
    "safetensors": "0.4.5",
    "numpy": "1.26.0",
}
"""And with these, the lower bounds of pyproject.toml (`make test-oldest`)."""

_MODULES = ("torch", "torchvision", "timm", "PIL.Image", "safetensors.torch", "numpy")
"""What is imported to see that the packages work together."""


_PAIR_CURE = "install both in one command, from one index: pip install --force-reinstall torch torchvision"


def package_findings() -> Iterator[Finding]:
    """Python, each package, whether torch and torchvision are one build, and whether all can be imported."""
    wanted = bounds()
    yield _version("python", platform.python_version(), wanted.get("python", ""))
    for name in PACKAGES:
        bound = wanted.get(name.lower(), "")
        if version := _installed(name):
            yield _version(name, version, bound)
        else:
            yield Finding(name, "error", "not installed", f"pip install '{name}{bound}'")
    yield _tested()
    yield from _pair()
    yield _imports()


def bounds() -> dict[str, str]:
    """Package, lower case → what sslkit asks for (">=2.6"), from its metadata or its pyproject.toml."""
    try:
        python = metadata.metadata("sslkit")["Requires-Python"]
        lines = metadata.requires("sslkit") or []
    except metadata.PackageNotFoundError:
        file = Path(__file__).parents[3] / "pyproject.toml"
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"] if file.is_file() else {}
        python, lines = project.get("requires-python", ""), project.get("dependencies", [])
    found = (re.match(r"([\w.-]+)\s*([<>=!~][^;]*)?", line) for line in lines if "extra ==" not in line)
    return {"python": python, **{match[1].lower(): match[2] or "" for match in found if match}}


def within(version: str, wanted: str) -> bool:
    """Whether a version keeps every bound of ">=2.6,<3"; signs other than >=, >, < and <= are skipped."""
    for sign, bound in re.findall(r"([<>]=?)\s*([\d.]+)", wanted):
        own, limit = numbers(version), numbers(bound)
        kept = {">=": own >= limit, ">": own > limit, "<": own < limit, "<=": own <= limit}
        if not kept[sign]:
            return False
    return True


def numbers(version: str) -> tuple[int, ...]:
    """ "2.15.0+cu132" → (2, 15): the release, without zeros at its end."""
    release = re.match(r"\d+(\.\d+)*", version)
    parts = [int(part) for part in release[0].split(".")] if release else []
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def mismatch(torch: str, torchvision: str, wants: str) -> str:
    """Why these builds of torch and torchvision do not work together; "" if they do.

    Args:
        wants: the version of torch that torchvision was built for, or "".
    """
    own, other = (version.partition("+")[2] for version in (torch, torchvision))
    if wants and numbers(wants) != numbers(torch):
        return f"torchvision {torchvision} was built for torch {wants}, and this is torch {torch}"
    if own and other and own != other:
        return f"torch {torch} and torchvision {torchvision} are different builds ({own} and {other})"
    return ""


def broken_import(problem: BaseException) -> UserError | None:
    """The error where torch and torchvision do not fit together; None for other problems."""
    text = str(problem)
    if not re.search(
        r"torchvision(::|/|\.|\\)|undefined symbol|partially initialized module 'torchvision'", text
    ):
        return None
    try:
        reason = mismatch(*_builds())
    except metadata.PackageNotFoundError:
        reason = ""
    return UserError(f"{reason or 'torch and torchvision do not fit'}: {first_line(problem)}", _PAIR_CURE)


def _version(name: str, version: str, wanted: str) -> Finding:
    text = f"{version} ({wanted} wanted)" if wanted else version
    cure = (
        f"pip install '{name}{wanted}'"
        if name != "python"
        else f"make a new environment with Python {wanted}"
    )
    return Finding.judged(name, within(version, wanted), text, cure, "error")


def _tested() -> Finding:
    """The versions that the suite was seen to pass with, and what is newer here, which no bound forbids."""
    newest, oldest = (
        ", ".join(f"{name} {version}" for name, version in versions.items())
        for versions in (NEWEST_TESTED, OLDEST_TESTED)
    )
    text = f"the suite passed with {newest}, and with {oldest}"
    newer = [
        f"{name} {version}"
        for name, known in NEWEST_TESTED.items()
        if (version := _installed(name)) and numbers(version) > numbers(known)
    ]
    return Finding("tested", "ok", f"{text}; newer here: {', '.join(newer)}" if newer else text)


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _pair() -> Iterator[Finding]:
    """Whether torch and torchvision are of one build."""
    try:
        reason = mismatch(*_builds())
    except metadata.PackageNotFoundError:
        return
    yield Finding.judged("torch pair", not reason, reason or "one build", _PAIR_CURE, "error")


def _builds() -> tuple[str, str, str]:
    """(torch, torchvision, the torch that torchvision names as its own)."""
    lines = metadata.requires("torchvision") or []
    wants = next((match[1] for line in lines if (match := re.match(r"torch\s*\(?==\s*([\d.]+)", line))), "")
    return _build("torch"), _build("torchvision"), wants


def _build(name: str) -> str:
    """A package's version with its build, such as +cpu, from its version.py: metadata may leave it out."""
    found = find_spec(name)
    for folder in (found and found.submodule_search_locations) or ():
        file = Path(folder) / "version.py"
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        if match := re.search(r"^__version__.*?=\s*['\"]([^'\"]+)", text, re.MULTILINE):
            return match[1]
    return metadata.version(name)


def _imports() -> Finding:
    """Whether the packages can be imported, all of them."""
    for name in _MODULES:
        try:
            import_module(name)
        except Exception as problem:  # a broken build raises what it likes
            known = broken_import(problem)
            return Finding(
                "imports",
                "error",
                f"{name}: {first_line(problem)}",
                known.hint if known else f"reinstall {name}",
            )
    return Finding("imports", "ok", "all of them")
