"""Where things lie: one small interface over a local directory and, through plug-ins, object stores.

A location is a URI: a local path or `s3://bucket/prefix`. Backends for other schemes are found by the entry
point group `unic.stores` (scheme -> class), so that this package needs none of their libraries.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from unic_core.errors import UnicError


class Store(Protocol):
    """Objects below one URI. Keys are relative and '/'-separated; a write is whole or absent.

    A key that does not exist raises FileNotFoundError; a place that can't be reached or refuses access raises
    UnicError with a sentence.
    """

    uri: str

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes: ...
    def put(self, key: str, data: bytes) -> None: ...
    def upload(self, source: Path, key: str) -> None: ...
    def download(self, key: str, target: Path) -> None: ...
    def list(self, prefix: str = "") -> dict[str, int]:
        """Size in bytes of every object whose key starts with `prefix`, in key order."""
        ...

    def exists(self, key: str) -> bool: ...
    def delete(self, keys: Iterable[str]) -> None: ...
    def sweep(self) -> int:
        """Remove what interrupted writes left behind; returns how many. Only for the single writer of a place."""
        ...

    def child(self, prefix: str) -> Store: ...


class LocalStore:
    """A directory. Writes go to a temporary name beside the target and are renamed."""

    def __init__(self, uri: str) -> None:
        self.root = Path(uri.removeprefix("file://")).expanduser().absolute()
        self.uri = str(self.root)

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        try:
            with (self.root / key).open("rb") as file:
                file.seek(start)
                return file.read(-1 if length is None else length)
        except NotADirectoryError as error:  # a file stands where the key has a folder
            raise FileNotFoundError(error.errno, error.strerror, error.filename) from error

    def put(self, key: str, data: bytes) -> None:
        target = self._make_room(key)
        handle, name = tempfile.mkstemp(prefix=".part-", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(name, target)
        except OSError as error:
            Path(name).unlink(missing_ok=True)
            raise _cannot_write(target, error) from error

    def upload(self, source: Path, key: str) -> None:
        target = self._make_room(key)
        self._copy(source, target)

    def download(self, key: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        self._copy(self.root / key, target)

    def list(self, prefix: str = "") -> dict[str, int]:
        if not self.root.is_dir():
            return {}
        # only the directory part of the prefix is walked
        start = self.root / prefix.rpartition("/")[0]
        files = (path for path in start.rglob("*") if path.is_file() and not path.name.startswith(".part-"))
        sizes = {path.relative_to(self.root).as_posix(): path.stat().st_size for path in files}
        return {key: sizes[key] for key in sorted(sizes) if key.startswith(prefix)}

    def exists(self, key: str) -> bool:
        return (self.root / key).is_file()

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            path = self.root / key
            path.unlink(missing_ok=True)
            if path.parent != self.root and path.parent.is_dir() and not any(path.parent.iterdir()):
                path.parent.rmdir()

    def sweep(self) -> int:
        parts = [path for path in self.root.rglob(".part-*") if path.is_file()]
        for part in parts:
            part.unlink(missing_ok=True)
        return len(parts)

    def child(self, prefix: str) -> LocalStore:
        return LocalStore(str(self.root / prefix))

    def _make_room(self, key: str) -> Path:
        target = self.root / key
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_write(target.parent, error) from error
        return target

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        handle, name = tempfile.mkstemp(prefix=".part-", dir=target.parent)
        os.close(handle)
        try:
            shutil.copyfile(source, name)
            os.replace(name, target)
        except OSError as error:
            Path(name).unlink(missing_ok=True)
            if isinstance(error, FileNotFoundError):
                raise
            raise _cannot_write(target, error) from error


def _cannot_write(target: Path, error: OSError) -> UnicError:
    return UnicError(f"cannot write {target}: {error.strerror}; free some space or choose another place")


def open_store(uri: str) -> Store:
    """The store at `uri`; UnicError when no installed package serves its scheme."""
    scheme, separator, _ = uri.partition("://")
    if not separator or scheme == "file":
        return LocalStore(uri)
    for point in entry_points(group="unic.stores", name=scheme):
        store: Store = point.load()(uri)
        return store
    raise UnicError(f"cannot open {uri}: nothing installed serves {scheme}://; use a local path or an s3:// URI")


def read_uri(uri: str) -> bytes:
    """The bytes of the single object at `uri`; FileNotFoundError when there is none."""
    parent, _, name = uri.rpartition("/")
    return open_store(parent or ".").get(name)


def join(uri: str, *parts: str) -> str:
    """`uri` with path parts appended."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])
