"""Tar files as WebDataset reads them, written so that the same images give the same bytes."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from sslkit.data.packs.reader import shard_name

OVERHEAD = 2 * tarfile.BLOCKSIZE
"""Bytes that a member takes beside its content, at most: a header, and zeros to the next block."""


class Shards:
    """Writes members one behind the other, into a next shard when one would become longer than `limit`.

    Headers are plain USTAR without time and owner. After `finish`, `written` holds name, bytes and SHA-256 of
    every shard.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.written: list[dict[str, Any]] = []
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self._position = 0

    def add(self, members: Sequence[tuple[str, bytes]]) -> tuple[int, int]:
        """Write members that stay in one shard; (shard, offset) of the first one's content."""
        length = sum(OVERHEAD + len(content) for _, content in members)
        if self._position and self._position + length > self.limit:
            self.finish()
        offset = self._position + tarfile.BLOCKSIZE
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            self._write(header.tobuf(tarfile.USTAR_FORMAT))
            self._write(content)
            self._write(bytes(-len(content) % tarfile.BLOCKSIZE))
        return len(self.written), offset

    def finish(self) -> None:
        """End the shard that is being written, if there is one, and bring it to the disk."""
        if self._file is None:
            return
        end = self._position + 2 * tarfile.BLOCKSIZE  # two empty blocks, then up to what tar reads at once
        self._write(bytes(-(-end // tarfile.RECORDSIZE) * tarfile.RECORDSIZE - self._position))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.close()
        name = shard_name(len(self.written))
        self.written.append({"name": name, "bytes": self._position, "sha256": self._digest.hexdigest()})
        self._digest, self._position = hashlib.sha256(), 0

    def close(self) -> None:
        """Let go of the file, whole or not."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, content: bytes) -> None:
        if self._file is None:
            self._file = (self.folder / shard_name(len(self.written))).open("xb")
        self._file.write(content)
        self._digest.update(content)
        self._position += len(content)
