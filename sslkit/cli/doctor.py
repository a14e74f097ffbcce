"""sslkit doctor"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from sslkit.cli import options
from sslkit.core.console import Console

EXAMPLES = ("sslkit doctor", "sslkit doctor --train                           # about a minute")


def doctor(
    train: Annotated[
        bool, typer.Option("--train", help="Also train, kill, resume, compare, export: about a minute.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Is this environment fit for training? One line per finding, with the cure; exit code 1 on errors."""
    from sslkit import api

    console = Console(json=json)
    findings = []
    for finding in api.doctor(train=train):
        findings.append(finding)
        if not json:
            cure = f"  → {finding.cure}" if finding.cure else ""
            console.result(f"{finding.state:<8} {finding.name:<12} {finding.text}{cure}")
    errors = sum(finding.state == "error" for finding in findings)
    if json:
        console.result("", {"errors": errors, "findings": [dataclasses.asdict(each) for each in findings]})
    if errors:
        raise typer.Exit(1)
