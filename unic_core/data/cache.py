"""Node-local cache of shards from a remote store, shared by all processes of a node.

A file is fetched once, under a lock; it appears under its name only when it is complete and verified. Locks belong to
open files, so a killed process leaves none behind, and its partial download is removed by the next one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from unic_core.errors import UnicError
from unic_core.storage import Store, join

_PIECE = 8 * 2**20  # bytes asked for at once: an outage costs one piece, a process holds one in memory
_PART = ".part"


class CacheError(UnicError):
    """The cache can't take a file; what it holds and the store itself are fine."""


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class FileCache:
    """At most `capacity` bytes of files in `directory`, named by their sha256; the longest unused go first.

    Names in `keep` are not evicted: when a data set is read over and over and does not fit, a fixed part of it in the
    cache serves better than one that changes all the time. An evicted file stays readable through open descriptors.
    """

    directory: Path
    capacity: int
    keep: frozenset[str] = frozenset()

    def open(self, name: str, size: int) -> int | None:
        """A descriptor of a file that is here in full length, else None."""
        try:
            descriptor = os.open(self.directory / name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        if os.fstat(descriptor).st_size != size:
            os.close(descriptor)
            return None
        with suppress(OSError):
            os.utime(self.directory / name)  # the clock of the eviction
        return descriptor

    def has(self, name: str, size: int) -> bool:
        """Whether a file is here in full length."""
        try:
            return (self.directory / name).stat().st_size == size
        except OSError:
            return False

    def drop(self, name: str) -> None:
        """Remove a file that turned out to be damaged."""
        with suppress(OSError):
            (self.directory / name).unlink()

    def fetch(self, store: Store, key: str, sha256: str, size: int, wait: bool = True) -> bool:
        """Download a file unless it is here; False when another process is at it and `wait` is not set.

        Raises:
            CacheError: the file does not fit, or the disk does not take it. Nothing is left of it.
            UnicError: the file is missing on the store or differs from its hash.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with self._lock(f"{sha256}.lock", wait) as locked:
                if not locked:
                    return False
                if not self.has(sha256, size):
                    part = self._reserve(sha256, size)
                    try:
                        _download(store, key, part, sha256, size)
                        with self._lock("evict.lock", wait=True):  # or a listing could see neither of the names
                            os.replace(part, self.directory / sha256)
                    finally:
                        part.unlink(missing_ok=True)
        except OSError as error:
            raise CacheError(
                f"cannot keep shards in the cache {self.directory} ({error.strerror or error}): they are read in parts "
                "from the store, which is slower; free some space or set data.cache to a directory with room"
            ) from error
        return True

    def _reserve(self, name: str, size: int) -> Path:
        """An empty file of `size` bytes for a download, after evicting what has to go for it."""
        with self._lock("evict.lock", wait=True):
            self._remove_abandoned(name)
            files = [(status.st_mtime_ns, status.st_size, path) for path, status in self._files() if path.name != name]
            loose = sorted(file for file in files if file[2].name not in self.keep and file[2].suffix != _PART)
            status = os.statvfs(self.directory)
            on_disk = status.f_bavail * status.f_frsize
            room = self.capacity - sum(bytes_ for _, bytes_, _ in files)
            if room + sum(bytes_ for _, bytes_, _ in loose) < size:
                raise CacheError(
                    f"the shard cache {self.directory} is full at data.cache_bytes = {self.capacity}: the other shards "
                    "are read in parts from the store, which is slower; raise it if the disk has room"
                )
            for _, bytes_, path in loose:
                if min(room, on_disk) >= size:
                    break
                path.unlink(missing_ok=True)
                room, on_disk = room + bytes_, on_disk + bytes_
            if on_disk < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            part = self.directory / f"{name}{_PART}"
            try:
                with part.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, max(size, 1))  # counts from now on
            except OSError:
                part.unlink(missing_ok=True)
                raise
            return part

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.directory.iterdir():
            if path.suffix in ("", _PART):
                with suppress(FileNotFoundError):
                    yield path, path.stat()

    def _remove_abandoned(self, name: str) -> None:
        """Delete partial downloads of processes that are gone: nobody holds their locks."""
        for part in self.directory.glob(f"*{_PART}"):
            if part.stem == name:
                part.unlink(missing_ok=True)
                continue
            with self._lock(f"{part.stem}.lock", wait=False) as locked:
                if locked:
                    part.unlink(missing_ok=True)

    @contextmanager
    def _lock(self, name: str, wait: bool) -> Iterator[bool]:
        with (self.directory / name).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True


def _download(store: Store, key: str, part: Path, sha256: str, size: int) -> None:
    for _ in range(2):  # a second time, should the first copy have been damaged on its way
        digest = hashlib.sha256()
        with part.open("r+b") as file:
            for start in range(0, size, _PIECE):
                try:
                    data = store.get(key, start, min(_PIECE, size - start))
                except FileNotFoundError:
                    raise UnicError(
                        f"{join(store.uri, key)} is missing; prepare the data set again or restore the file"
                    ) from None
                digest.update(data)
                file.write(data)
            complete = file.tell() == size
        if complete and digest.hexdigest() == sha256:
            return
    raise UnicError(
        f"{join(store.uri, key)} differs from the sha256 in dataset.json: it is damaged and its images are checked one "
        "by one; delete its data set and prepare it again"
    )
