"""How one process reads records of shards that lie on a store.

What the node's cache holds is read from there. Whole shards come into the cache in the background. Until a large one is
there, and for good where it does not fit, blocks of neighboring records are asked for, ahead of their use and by
several threads. Small shards are waited for: reading them in parts would take no less time.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from unic_core.data.cache import CacheError, FileCache
from unic_core.data.shards import ShardInfo
from unic_core.errors import UnicError
from unic_core.storage import LocalStore, Store, join, open_store

_OPEN_SHARDS = 32  # descriptors per process; an open one also holds an evicted shard's disk space
_THREADS = 8  # that fetch blocks; each waits for the network most of its time
_SHARD_THREADS = 2  # that fetch whole shards
_SMALL_SHARD = 32 * 2**20  # bytes that arrive within a second
_BLOCK_BYTES = 128 * 2**20  # of blocks held in memory
_CACHE_PAUSE = 600.0  # seconds until a cache that could not take a shard is tried again


class Block(NamedTuple):
    """A part of a shard: number of the shard, first byte, bytes."""

    shard: int
    start: int
    length: int


class _Threads:
    """Runs calls in their order; the threads are started when needed and never keep a process from ending."""

    def __init__(self, count: int) -> None:
        self._left, self._started = count, 0
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def submit(self, call: Callable[[], None]) -> None:
        self._calls.put(call)
        if self._left:
            self._left, self._started = self._left - 1, self._started + 1
            threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            call = self._calls.get()
            if call is None:
                return
            call()
            del call  # or it would live until the next one, and what it belongs to as well

    def stop(self) -> None:
        """Let the threads end after what they have been given."""
        for _ in range(self._started):
            self._calls.put(None)


class _Blocks:
    """Blocks in memory, fetched once however often they are asked for; the longest unused ones go first."""

    def __init__(self, fetch: Callable[[Block], bytes]) -> None:
        self._fetch = fetch
        self._threads = _Threads(_THREADS)
        self.stop = self._threads.stop
        self._held: OrderedDict[Block, Future[bytes]] = OrderedDict()
        self._unused: set[Block] = set()
        self._bytes = 0

    def announce(self, block: Block) -> bool:
        """Start fetching; False when memory is full of blocks that nobody has used yet."""
        if block in self._held:
            return True
        while self._held and self._bytes + block.length > _BLOCK_BYTES:
            oldest = next(iter(self._held))
            if oldest in self._unused:
                return False
            self.drop(oldest)
        self._start(block)
        return True

    def get(self, block: Block) -> bytes:
        if block not in self._held:
            self._start(block)
        self._held.move_to_end(block)
        self._unused.discard(block)
        while len(self._held) > 1 and self._bytes > _BLOCK_BYTES:
            self.drop(next(iter(self._held)))
        try:
            return self._held[block].result()
        except BaseException:
            self.drop(block)
            raise

    def drop(self, block: Block) -> None:
        if self._held.pop(block, None) is not None:
            self._bytes -= block.length
            self._unused.discard(block)

    def _start(self, block: Block) -> None:
        future: Future[bytes] = Future()

        def fetch() -> None:
            try:
                future.set_result(self._fetch(block))
            except BaseException as error:
                future.set_exception(error)

        self._held[block] = future
        self._unused.add(block)
        self._bytes += block.length
        self._threads.submit(fetch)


class ShardFiles:
    """The shards at one URI as one process sees them. Pickles as new; after a fork it starts anew.

    Attributes:
        notes: sentences for the user that have come up, for whoever shows them to remove.
    """

    def __init__(self, uri: str, shards: Sequence[ShardInfo], cache: FileCache | None) -> None:
        self._uri, self._shards, self.cache = uri, shards, cache
        self._open: OrderedDict[int, int] = OrderedDict()
        self._reset()

    def _reset(self) -> None:
        """Nothing but descriptors may be shared with a parent process: no connection, no thread, no lock."""
        self._process = os.getpid()
        self._store: Store | None = None
        self._blocks = _Blocks(self._get)
        self._fetcher = _Threads(_SHARD_THREADS)
        self._coming: dict[int, Future[None]] = {}
        self._no_cache_until = 0.0
        self._refused: set[int] = set()
        self.notes: list[str] = []

    def read(self, block: Block, around: Callable[[], Block]) -> bytes:
        """The bytes of `block`; where a request is needed it asks for `around()`, which contains it.

        Raises:
            UnicError: the shard is missing, its size is wrong, or the store can't be read.
        """
        descriptor = self._descriptor(block.shard)
        if descriptor is None:
            coming = self._fetch_whole(block.shard)
            if coming is not None and self._is_small(block.shard):
                coming.result()
                descriptor = self._descriptor(block.shard)
        if descriptor is not None:
            return os.pread(descriptor, block.length, block.start)
        larger = around()
        begin = block.start - larger.start
        return self._blocks.get(larger)[begin : begin + block.length]

    def read_again(self, block: Block, around: Block) -> bytes:
        """`block` straight from the store, after the copy here turned out to be damaged. The copy is removed."""
        if self.is_local:
            return self.read(block, lambda: around)
        self._blocks.drop(around)
        shard = self._shards[block.shard]
        descriptor = self._open.pop(block.shard, None)
        if descriptor is not None:
            os.close(descriptor)
            if self.cache is not None:
                self.cache.drop(shard.sha256)
            self.notes.append(f"the cached copy of {self.where(block.shard)} was damaged; it is fetched again")
        return self._get(block)

    def announce(self, shards: Sequence[int], blocks: Sequence[Block]) -> None:
        """Tell what will be read soon, in the order of its use."""
        in_parts = set()
        for shard in (shard for shard in shards if not self._is_here(shard)):
            if self._fetch_whole(shard) is None or not self._is_small(shard):
                in_parts.add(shard)
        for block in blocks:
            if block.shard in in_parts and not self._blocks.announce(block):
                return

    @property
    def is_local(self) -> bool:
        return isinstance(self._opened(), LocalStore)

    def where(self, shard: int) -> str:
        """The URI of a shard."""
        return join(self._uri, self._key(shard))

    def _key(self, shard: int) -> str:
        return f"{self._shards[shard].name}.tar"

    def _opened(self) -> Store:
        if self._process != os.getpid():
            self._reset()
        if self._store is None:
            self._store = open_store(self._uri)
        return self._store

    def _is_here(self, shard: int) -> bool:
        info = self._shards[shard]
        return shard in self._open or (self.cache is not None and self.cache.has(info.sha256, info.bytes))

    def _descriptor(self, shard: int) -> int | None:
        """An open file with the shard's content, where there is one on this node."""
        descriptor = self._open.get(shard)
        if descriptor is not None:
            self._open.move_to_end(shard)
            return descriptor
        store, info = self._opened(), self._shards[shard]
        if isinstance(store, LocalStore):
            descriptor = self._open_local(store, shard)
        elif self.cache is not None:
            descriptor = self.cache.open(info.sha256, info.bytes)
        if descriptor is not None:
            self._open[shard] = descriptor
            if len(self._open) > _OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1])
        return descriptor

    def _open_local(self, store: LocalStore, shard: int) -> int:
        try:
            descriptor = os.open(store.root / self._key(shard), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise UnicError(f"{self.where(shard)} is missing; prepare the data set again") from None
        if os.fstat(descriptor).st_size != self._shards[shard].bytes:
            os.close(descriptor)
            raise UnicError(
                f"{self.where(shard)} is damaged: its size is wrong; delete its data set and prepare it again"
            )
        return descriptor

    def _get(self, block: Block) -> bytes:
        try:
            return self._opened().get(self._key(block.shard), block.start, block.length)
        except FileNotFoundError:
            raise UnicError(f"{self.where(block.shard)} is missing; prepare the data set again") from None

    def _is_small(self, shard: int) -> bool:
        return self._shards[shard].bytes <= _SMALL_SHARD

    def _fetch_whole(self, shard: int) -> Future[None] | None:
        """Bring a shard into the cache, in the background and not twice at a time; None when it can't be there.

        The result comes when the attempt is over, whether or not the shard is there then.
        """
        if self.cache is None or shard in self._refused or time.monotonic() < self._no_cache_until:
            return None
        if shard in self._coming:
            return self._coming[shard]
        cache, store, info = self.cache, self._opened(), self._shards[shard]
        coming: Future[None] = Future()

        def fetch() -> None:
            try:
                if time.monotonic() >= self._no_cache_until:
                    wait = self._is_small(shard)  # for another process that is fetching it
                    cache.fetch(store, f"{info.name}.tar", info.sha256, info.bytes, wait)
            except CacheError as error:
                self._no_cache_until = time.monotonic() + _CACHE_PAUSE
                self.notes.append(str(error))
            except UnicError as error:  # of the shard or the store: readers find out what it means for them
                self._refused.add(shard)
                self.notes.append(str(error))
            finally:
                self._coming.pop(shard, None)
                coming.set_result(None)

        self._coming[shard] = coming
        self._fetcher.submit(fetch)
        return coming

    def __reduce__(self) -> tuple[type[ShardFiles], tuple[str, Sequence[ShardInfo], FileCache | None]]:
        return ShardFiles, (self._uri, self._shards, self.cache)

    def __del__(self) -> None:
        self._blocks.stop()
        self._fetcher.stop()
        while self._open:
            os.close(self._open.popitem()[1])
