"""What in the environment could spoil a run, and a minute's proof that nothing does.

    for finding in examine(train=True): print(finding.state, finding.text)

Packages are looked at through their metadata first, so that this works where torch can't be imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sslkit.testing.doctor.finding import Finding, State
from sslkit.testing.doctor.packages import broken_import, package_findings

__all__ = ["Finding", "State", "broken_import", "examine"]


def examine(train: bool = False, runs: Path = Path("runs")) -> Iterator[Finding]:
    """Each finding as soon as it is made.

    Args:
        train: also train, kill, resume, compare, export and reload a small run; about a minute.
        runs: where runs would be written.
    """
    broken = False
    for finding in package_findings():
        broken |= finding.state == "error" and finding.name == "imports"
        yield finding
    if broken:
        return
    from sslkit.testing.doctor.machine import machine_findings

    yield from machine_findings(runs)
    if train:
        from sslkit.testing.doctor.selftest import selftest_findings

        yield from selftest_findings()
