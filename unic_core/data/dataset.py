"""Reading a prepared data set: the index in memory (32 bytes per sample), encoded images by random access."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unic_core.data.cache import FileCache
from unic_core.data.decode import BrokenImageError
from unic_core.data.listing import Target
from unic_core.data.reading import Block, ShardFiles
from unic_core.data.shards import BLOCK, COLUMNS, FORMAT, INFO_NAME, ShardInfo, parse_index
from unic_core.data.subset import Indices
from unic_core.errors import UnicError
from unic_core.storage import Store, join, open_store

_INDEX_THREADS = 8  # small objects: each takes one round trip
_LARGEST_REQUEST = 8 * 2**20  # bytes of neighbors that are worth asking for together


def default_cache() -> Path:
    """Where shards of remote data sets are kept unless the config names a directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "unic" / "shards"


class ShardedDataset:
    """One split of a prepared data set.

    Samples are numbered as they lie in the shards. Local shards are read in place. Remote ones come into a cache on
    the node; as long as a shard is not there, and where it does not fit, parts of it are read. Every image is
    compared with its checksum in the index. Safe to fork and to pickle: files and connections are opened where they
    are used.

    Attributes:
        name, fingerprint, license, classes: as in dataset.json.
        labels: int64 [n], -1 without a label.
        target: what `read_target` gives: "mask", "depth", or "none".
    """

    def __init__(self, uri: str, split: str, cache: Path | None = None, cache_bytes: int = 200 * 2**30) -> None:
        """Load the index. `cache_bytes` = 0 means no cache.

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
        self.target: Target = info.get("target", "none")
        self._shards = [ShardInfo(**shard) for shard in info["splits"][split]["shards"]]
        with ThreadPoolExecutor(_INDEX_THREADS) as pool:
            files = list(pool.map(partial(_fetch_index, store), self._shards))
        # parsed in one thread: in several at a time Python 3.11's parser of literals, which numpy uses, breaks
        self._index = np.concatenate([parse_index(data, where) for where, data in files])
        self._ends = np.cumsum([shard.count for shard in self._shards])
        self._chunk = 32
        local = FileCache(cache or default_cache(), cache_bytes, self.cached_names) if cache_bytes else None
        self._files = ShardFiles(uri, self._shards, local)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def labels(self) -> Indices:
        """int64 [n]."""
        return self._index[:, 2]

    @property
    def index_bytes(self) -> int:
        """Memory that the index takes."""
        return int(self._index.nbytes)

    @property
    def cached_names(self) -> frozenset[str]:
        """What the shards are called in a cache."""
        return frozenset(shard.sha256 for shard in self._shards)

    def plan(self, chunk: int, together: Sequence[ShardedDataset]) -> None:
        """Adapt to a loader: `chunk` neighbors are read at about the same time, `together` share the cache."""
        self._chunk = chunk
        if self._files.cache is not None:
            keep = frozenset[str]().union(*(dataset.cached_names for dataset in together))
            self._files.cache = replace(self._files.cache, keep=keep)

    def announce(self, indices: Indices) -> None:
        """Start to fetch what `read` will be asked for soon, in this order; returns at once."""
        if self._files.is_local:
            return
        shards = np.searchsorted(self._ends, indices, side="right").tolist()
        blocks = [self._around(index, shard) for index, shard in zip(indices.tolist(), shards, strict=True)]
        self._files.announce(list(dict.fromkeys(shards)), list(dict.fromkeys(blocks)))

    def read(self, index: int) -> bytes:
        """The encoded image.

        Raises:
            UnicError: its shard is missing or not the one that the index describes.
            BrokenImageError: its bytes differ from their checksum, on the store as well.
        """
        block, around = self._place(index)
        record = self._files.read(block, around)
        if not self._is_intact(index, record):
            record = self._files.read_again(block, around())
            if not _is_header(record, block.length - BLOCK):
                raise self._damaged(block.shard)
            if not self._is_intact(index, record):
                raise BrokenImageError("its bytes differ from their checksum")
        return record[BLOCK:]

    def read_target(self, index: int) -> bytes:
        """The PNG of a sample's mask or depth; errors as in `read`, and UnicError where the data set has none."""
        if self.target == "none":
            raise UnicError(f"{self.uri} has neither masks nor depths; prepare it from a dense source")
        shard = self._place(index)[0].shard
        offset, length, checksum = self._index[index, COLUMNS:].tolist()
        block = Block(shard, offset - BLOCK, length + BLOCK)
        record = self._files.read(block, lambda: block)
        if not _is_header(record, length) or zlib.crc32(memoryview(record)[BLOCK:]) != checksum:
            record = self._files.read_again(block, block)
            if not _is_header(record, length) or zlib.crc32(memoryview(record)[BLOCK:]) != checksum:
                raise self._damaged(shard)
        return record[BLOCK:]

    def key(self, index: int) -> str:
        """`<shard>/<key>`: names the sample in messages and, in that tar, for any other tool."""
        block, around = self._place(index)
        record = self._files.read(block, around)
        if not _is_header(record, block.length - BLOCK):
            raise self._damaged(block.shard)
        name = record[:100].rstrip(b"\0").decode(errors="replace")
        return f"{self._shards[block.shard].name}/{name.rpartition('.')[0]}"

    def notes(self) -> list[str]:
        """Sentences for the user that have come up since the last call."""
        notes, self._files.notes = self._files.notes, []
        return notes

    def _place(self, index: int) -> tuple[Block, Callable[[], Block]]:
        """Where the record of a sample lies, and what gives the part that is fetched with it."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return self._block(index, index + 1, shard), partial(self._around, index, shard)

    def _is_intact(self, index: int, record: bytes) -> bool:
        """Whether a record is a tar header and the image that the index describes."""
        _, length, _, checksum = self._index[index, :COLUMNS]
        return _is_header(record, length) and zlib.crc32(memoryview(record)[BLOCK:]) == checksum

    def _damaged(self, shard: int) -> UnicError:
        return UnicError(f"{self._files.where(shard)} is damaged; delete its data set and prepare it again")

    def _block(self, first: int, end: int, shard: int) -> Block:
        """Records `first` to `end` of a shard, from the header of the first to the last byte of the last image."""
        start = int(self._index[first, 0]) - BLOCK
        return Block(shard, start, int(self._index[end - 1, 0] + self._index[end - 1, 1]) - start)

    def _around(self, index: int, shard: int) -> Block:
        """The chunk of a sample as far as it lies in the same shard; the sample alone where that is much."""
        begin = index - index % self._chunk
        end = int(self._ends[shard])
        first, last = max(begin, end - self._shards[shard].count), min(begin + self._chunk, end)
        block = self._block(first, last, shard)
        return block if block.length <= _LARGEST_REQUEST else self._block(index, index + 1, shard)


def _is_header(record: bytes, length: int) -> bool:
    """Whether a record is complete and begins with the tar header of a file of this length."""
    return len(record) == BLOCK + length and record[257:262] == b"ustar" and int(record[124:135], 8) == length


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


def _fetch_index(store: Store, shard: ShardInfo) -> tuple[str, bytes]:
    """Address and content of a shard's index, verified."""
    where = join(store.uri, f"{shard.name}.npy")
    try:
        data = store.get(f"{shard.name}.npy")
    except FileNotFoundError:
        raise UnicError(f"{where} is missing; prepare the data set again") from None
    if hashlib.sha256(data).hexdigest() != shard.index_sha256:
        raise UnicError(f"{where} differs from its sha256 in {INFO_NAME}; delete the data set and prepare it again")
    return where, data
