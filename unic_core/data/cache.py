"""Node-local cache of whole files from a remote store, shared by all processes of a node.

A file is fetched once, under a lock; it appears under its name only when it is complete. Locks belong to open
files, so a killed process leaves none behind, and the next one overwrites its partial download.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from unic_core.errors import UnicError
from unic_core.storage import Store, join

_BLOCK = 2**20


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class FileCache:
    """At most about `capacity` bytes of files in `directory`; the longest unused go first.

    A file in use may be evicted: on POSIX it stays readable through open handles. One file is always kept,
    so a capacity below the size of a file slows reading down but does not break it.
    """

    directory: Path
    capacity: int

    def fetch(self, store: Store, key: str, sha256: str | None = None, size: int | None = None) -> Path:
        """The local path of a remote file, downloaded if it is not here.

        Args:
            sha256: expected hash; it also names the file, so equal content is stored once.
            size: expected bytes; room is made for them before the download.

        Raises:
            UnicError: the file is missing or differs from its hash, or the disk is full.
        """
        where = join(store.uri, key)
        name = sha256 or hashlib.sha256(where.encode()).hexdigest()
        path = self.directory / name
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with self._lock(f"{name}.lock"):
                if path.is_file() and (size is None or path.stat().st_size == size):
                    os.utime(path)  # the clock of the eviction
                    return path
                self._make_room(size or 0, keep=name)
                self._download(store, key, path, sha256)
                self._make_room(0, keep=name)
        except FileNotFoundError:
            raise UnicError(f"{where} is missing; prepare the data set again or restore the file") from None
        except OSError as error:
            raise UnicError(
                f"cannot keep {where} in the cache {self.directory}: {error.strerror or error}; "
                "free some space, or set data.cache to a directory with room"
            ) from error
        return path

    def _download(self, store: Store, key: str, path: Path, sha256: str | None) -> None:
        part = path.with_suffix(".part")
        try:
            store.download(key, part)
            if sha256 is not None and file_sha256(part) != sha256:
                raise UnicError(
                    f"{join(store.uri, key)} differs from the sha256 in dataset.json: it is damaged; "
                    "delete its data set and prepare it again"
                )
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, size: int, keep: str) -> None:
        """Evict least recently fetched files until `size` more bytes fit."""
        with self._lock("evict.lock"):
            files = []
            for path in self.directory.iterdir():
                if path.suffix == "" and path.name != keep:
                    status = path.stat()
                    files.append((status.st_mtime_ns, status.st_size, path))
            kept = self.directory / keep
            total = sum(bytes_ for _, bytes_, _ in files) + (kept.stat().st_size if kept.is_file() else 0) + size
            for _, bytes_, path in sorted(files):
                if total <= self.capacity:
                    break
                path.unlink(missing_ok=True)
                total -= bytes_

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        with (self.directory / name).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
