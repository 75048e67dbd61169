"""Reading a prepared data set: the index in memory (24 bytes per sample), encoded images by random access."""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from unic_core.data.cache import FileCache
from unic_core.data.shards import BLOCK, FORMAT, INFO_NAME, ShardInfo, parse_index
from unic_core.data.subset import Indices
from unic_core.errors import UnicError
from unic_core.storage import LocalStore, Store, join, open_store

_OPEN_SHARDS = 32  # handles per process; an open handle also holds an evicted shard's disk space


def default_cache() -> Path:
    """Where shards of remote data sets are kept unless the config names a directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "unic" / "shards"


class ShardedDataset:
    """One split of a prepared data set.

    Samples are numbered as they lie in the shards. Local shards are read in place, remote ones through a
    node-local cache. Safe to fork and to pickle: files and connections are opened where they are used.

    Attributes:
        name, fingerprint, license, classes: as in dataset.json.
        labels: int64 [n], -1 without a label.
    """

    def __init__(self, uri: str, split: str, cache: Path | None = None, cache_bytes: int = 200 * 2**30) -> None:
        """Load the index.

        Raises:
            UnicError: there is no finished data set at `uri`, no such split, or an index is missing or damaged.
        """
        self.uri, self.split = uri, split
        store = open_store(uri)
        info = _read_info(store)
        if split not in info["splits"]:
            raise UnicError(f"the data set at {uri} has no split {split!r}; it has {', '.join(sorted(info['splits']))}")
        self.name: str = info["name"]
        self.fingerprint: str = info["fingerprint"]
        self.license: str = info["license"]
        self.classes: tuple[str, ...] = tuple(info["classes"])
        self._shards = [ShardInfo(**shard) for shard in info["splits"][split]["shards"]]
        self._index = np.concatenate([_read_index(store, shard) for shard in self._shards])
        self._ends = np.cumsum([shard.count for shard in self._shards])
        self._cache = FileCache(cache or default_cache(), cache_bytes)
        self._files = _Files()

    def __len__(self) -> int:
        return len(self._index)

    @property
    def labels(self) -> Indices:
        """int64 [n]."""
        return self._index[:, 2]

    def read(self, index: int) -> bytes:
        """The encoded image; UnicError when its shard is missing or damaged."""
        return self._read(index)[1]

    def key(self, index: int) -> str:
        """`<shard>/<key>`: names the sample in messages and, in that tar, for any other tool."""
        return self._read(index)[0]

    def _read(self, index: int) -> tuple[str, bytes]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        shard = self._shards[int(np.searchsorted(self._ends, index, side="right"))]
        offset, length, _ = (int(value) for value in self._index[index])
        record = os.pread(self._file(shard), BLOCK + length, offset - BLOCK)  # with the tar header before the image
        header, data = record[:BLOCK], record[BLOCK:]
        if len(data) != length or header[257:262] != b"ustar" or int(header[124:135], 8) != length:
            raise UnicError(f"{self._where(shard)} is damaged; delete its data set and prepare it again")
        name = header[:100].rstrip(b"\0").decode(errors="replace")
        return f"{shard.name}/{name.rpartition('.')[0]}", data

    def _file(self, shard: ShardInfo) -> int:
        """A descriptor of the shard's tar, opened once per process."""
        descriptor = self._files.get(shard.name)
        return self._files.put(shard.name, self._open(shard)) if descriptor is None else descriptor

    def _open(self, shard: ShardInfo) -> int:
        store = self._files.store(self.uri)
        name = f"{shard.name}.tar"
        if isinstance(store, LocalStore):
            path = store.root / name
        else:
            path = self._cache.fetch(store, name, shard.sha256, shard.bytes)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise UnicError(f"{self._where(shard)} is missing; prepare the data set again") from None
        if os.fstat(descriptor).st_size != shard.bytes:
            os.close(descriptor)
            raise UnicError(
                f"{self._where(shard)} is damaged: its size is wrong; delete its data set and prepare it again"
            )
        return descriptor

    def _where(self, shard: ShardInfo) -> str:
        return join(self.uri, f"{shard.name}.tar")


class _Files:
    """What belongs to one process: open descriptors, the most recently used, and the store. Pickles as empty."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._store: Store | None = None
        self._open: OrderedDict[str, int] = OrderedDict()

    def get(self, name: str) -> int | None:
        descriptor = self._open.get(name)
        if descriptor is not None:
            self._open.move_to_end(name)
        return descriptor

    def put(self, name: str, descriptor: int) -> int:
        self._open[name] = descriptor
        if len(self._open) > _OPEN_SHARDS:
            os.close(self._open.popitem(last=False)[1])
        return descriptor

    def store(self, uri: str) -> Store:
        """A store of this process: connections must not be shared after a fork (descriptors may: `pread`)."""
        if self._store is None or self._process != os.getpid():
            self._store, self._process = open_store(uri), os.getpid()
        return self._store

    def __reduce__(self) -> tuple[type[_Files], tuple[()]]:
        return _Files, ()

    def __del__(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


def _read_info(store: Store) -> dict[str, Any]:
    try:
        info: dict[str, Any] = json.loads(store.get(INFO_NAME))
    except FileNotFoundError:
        raise UnicError(
            f"no finished data set at {store.uri} ({INFO_NAME} is missing); run `unic prepare` first"
        ) from None
    except ValueError:
        raise UnicError(
            f"{join(store.uri, INFO_NAME)} is not readable; delete the data set and prepare it again"
        ) from None
    if info.get("format") != FORMAT:
        raise UnicError(f"the data set at {store.uri} has format {info.get('format')}, not {FORMAT}; prepare it again")
    return info


def _read_index(store: Store, shard: ShardInfo) -> Indices:
    where = join(store.uri, f"{shard.name}.npy")
    try:
        data = store.get(f"{shard.name}.npy")
    except FileNotFoundError:
        raise UnicError(f"{where} is missing; prepare the data set again") from None
    if hashlib.sha256(data).hexdigest() != shard.index_sha256:
        raise UnicError(f"{where} differs from its sha256 in {INFO_NAME}; delete the data set and prepare it again")
    return parse_index(data, where)
