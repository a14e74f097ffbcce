"""Images that could not be read: listed once each, replaced by others, and too many of them end the run."""

from __future__ import annotations

from sslkit.core.console import visible
from sslkit.core.errors import UserError
from sslkit.training.run.folder import RunFolder


class Skipped:
    """The unreadable images of one run.

    Args:
        count: images in the set.
        share: of them, above which the run stops; one is always allowed.
    """

    def __init__(self, run: RunFolder, count: int, share: float) -> None:
        self._run, self._count = run, count
        self._allowed = max(1, int(share * count))
        self._paths = self._listed()

    def __len__(self) -> int:
        return len(self._paths)

    def add(self, bad: list[tuple[str, str]]) -> None:
        """Note (path, reason) pairs met in a batch, in skipped.tsv.

        Raises:
            UserError: now there are too many.
        """
        shown = {visible(path): visible(reason) for path, reason in bad}
        new = {path: reason for path, reason in shown.items() if path not in self._paths}
        if not new:
            return
        self._paths |= new.keys()
        for path, reason in new.items():
            self._run.append("skipped.tsv", f"{path}\t{reason}")
        if len(self) > self._allowed:
            raise UserError(
                f"{len(self)} of {self._count} images can't be read, more than {self._allowed}",
                f"see {self._run.path / 'skipped.tsv'}; data.max_bad in config.toml allows more",
                code=1,
            )

    def _listed(self) -> set[str]:
        """Paths, made visible, that an earlier part of the run has listed."""
        file = self._run.path / "skipped.tsv"
        if not file.is_file():
            return set()
        return {line.split("\t")[0] for line in file.read_text(encoding="utf-8").splitlines()}
