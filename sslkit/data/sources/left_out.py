"""What lies in the folders of an image set and is no part of it, in one line each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from sslkit.core.console import counted
from sslkit.data.images import formats
from sslkit.data.sources.listing import Listing
from sslkit.data.sources.names import Names

_KINDS, _FOLDERS = 8, 3  # that are named


@dataclass(frozen=True)
class LeftOut:
    """Files of the same folders that are not read.

    Attributes:
        passed: (ending, "" for none; number of files), the most frequent first.
        written: what sslkit has written there, below the folder; folders end in "/".
    """

    passed: tuple[tuple[str, int], ...] = ()
    written: tuple[str, ...] = ()

    @classmethod
    def of(cls, found: Iterable[Listing]) -> LeftOut:
        """Of several folders together."""
        parts = list(found)
        passed = sum((one.passed for one in parts), Counter[str]())
        written = dict.fromkeys(name for one in parts for name in one.written)
        return cls(tuple(sorted(passed.items(), key=lambda item: (-item[1], item[0]))), tuple(written))

    def __add__(self, other: LeftOut) -> LeftOut:
        passed = Counter(dict(self.passed)) + Counter(dict(other.passed))
        return LeftOut.of([Listing(Names(), passed, [*self.written, *other.written])])

    @property
    def count(self) -> int:
        """Files that were passed over."""
        return sum(number for _, number in self.passed)

    @property
    def kinds(self) -> str:
        """ "20 .avif, 5 .heic, 1 without ending" """
        named = [f"{number:,} {ending or 'without ending'}" for ending, number in self.passed]
        more = len(named) - _KINDS
        return ", ".join(named[:_KINDS] + ([f"{more} other kinds"] if more > 0 else []))

    @property
    def cure(self) -> str:
        """What would make images of some of them; "" where nothing does."""
        return ", ".join(dict.fromkeys(filter(None, (formats.cure(ending) for ending, _ in self.passed))))

    def lines(self) -> list[str]:
        """For people; none where nothing is left out."""
        return list(filter(None, [self._passed(), self.own]))

    def _passed(self) -> str:
        if not self.passed:
            return ""
        cure = f" ({self.cure})" if self.cure else ""
        return f"{counted(self.count, 'file was', 'files were')} passed over: {self.kinds}{cure}"

    @property
    def own(self) -> str:
        """The line about what sslkit has written."""
        more = len(self.written) - _FOLDERS
        named = ", ".join(self.written[:_FOLDERS]) + (f" and {more:,} more" if more > 0 else "")
        return f"left out, as sslkit wrote it: {named}" if named else ""
