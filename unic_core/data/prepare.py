"""From a source to a data set: fingerprinted shards at <root>/datasets/<name>/<fingerprint>/.

`dataset.json` is written last, so its presence means that everything is there. Preparing the same input again
finds it and does nothing; after an interruption the finished shards are kept and the rest is made.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from unic_core.config import DatasetConfig
from unic_core.data.cache import file_sha256
from unic_core.data.decode import BrokenImageError, decode, image_format
from unic_core.data.listing import Source, SourceSplit
from unic_core.data.pixels import corrupt, encode, resize_short_side, to_pixels
from unic_core.data.shards import (
    FORMAT,
    INFO_NAME,
    Sample,
    ShardInfo,
    ShardRecord,
    ShardWriter,
    Skipped,
    index_bytes,
)
from unic_core.data.sources import open_source
from unic_core.data.subset import Indices, balanced, shuffled
from unic_core.errors import UnicError
from unic_core.storage import Store, join, open_store

Progress = Callable[[int, int | None], None]
T = TypeVar("T")
R = TypeVar("R")

_THREADS = min(16, 2 * (os.cpu_count() or 1))  # decoding and S3 both release the interpreter lock
_NAMED = 5  # broken images named in an error
_PARTS = "unfinished"  # records of finished shards, until dataset.json exists


def prepare_dataset(config: DatasetConfig, root: str, progress: Progress | None = None) -> str:
    """Write a data set's shards unless they exist; returns its URI.

    Args:
        config: source, splits, limits, and what to do to the images.
        root: URI below which `datasets/<name>/<fingerprint>/` lies.
        progress: called with (images done, images in total) now and then.

    Raises:
        UnicError: nothing at the source, an unknown split, too many broken images, no space left.
    """
    with tempfile.TemporaryDirectory(prefix="unic-prepare-") as scratch:
        source = open_source(config.source, Path(scratch) / "source")
        chosen = _choose(source, config)
        fingerprint = _fingerprint(source, config)
        uri = join(root, "datasets", config.name, fingerprint)
        store = open_store(uri)
        if _is_complete(store, config):
            return uri
        job = _Job(config, store, Path(scratch), progress, sum(map(len, chosen.values())))
        splits = {split: job.write_split(split, source.splits[split], order) for split, order in chosen.items()}
        info = {
            "format": FORMAT,
            "name": config.name,
            "fingerprint": fingerprint,
            "license": config.license,
            "source": config.source,
            "classes": list(source.classes),
            "images": {"short_side": config.short_side, "corruption": config.corruption},
            "splits": splits,
        }
        store.put(INFO_NAME, json.dumps(info, indent=1).encode())
        store.delete(list(store.list(f"{_PARTS}/")))
    return uri


def _is_complete(store: Store, config: DatasetConfig) -> bool:
    """Whether the data set is there; its license is brought up to date, being no part of the fingerprint."""
    if not store.exists(INFO_NAME):
        return False
    info = json.loads(store.get(INFO_NAME))
    if info["license"] != config.license:
        store.put(INFO_NAME, json.dumps({**info, "license": config.license}, indent=1).encode())
    return True


def _choose(source: Source, config: DatasetConfig) -> dict[str, Indices]:
    """The images of every split, in the order in which they are written.

    They are shuffled once, because sources are sorted by class and training shuffles only within a window.
    """
    available = ", ".join(sorted(source.splits))
    for asked in (*(config.splits or ()), *config.limit):
        if asked not in source.splits:
            raise UnicError(f"{config.source} has no split {asked!r}; it has {available}")
    chosen = {}
    for name, split in source.splits.items():
        if config.splits is not None and name not in config.splits:
            continue
        seed = zlib.crc32(name.encode())
        indices = balanced(split.labels, config.limit.get(name, len(split.labels)), seed)
        chosen[name] = indices if split.sequential else indices[shuffled(len(indices), seed)]
    return chosen


def _fingerprint(source: Source, config: DatasetConfig) -> str:
    """16 hexadecimal digits over the source's content and all settings that change a stored byte."""
    fields = {"splits", "limit", "corruption", "short_side", "shard_bytes"}
    settings = {"format": FORMAT, "content": source.content, **config.model_dump(mode="json", include=fields)}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


# ---------------------------------------------------------------- one image


def encode_sample(split: SourceSplit, config: DatasetConfig, index: int) -> Sample | Skipped:
    """One image as it is stored.

    An encoded JPEG, PNG or WebP stays byte-identical unless it is corrupted or resized; then a JPEG is
    encoded again at quality 95. Everything else becomes PNG.
    """
    key, label = split.keys[index], int(split.labels[index])
    stem = re.sub(r"[^A-Za-z0-9-]+", "_", PurePosixPath(key).stem)[-60:]
    name = f"{index:08d}_{stem}"  # fits the 100 characters of a tar header
    extension: str | None = "png"
    try:
        loaded = split.load(index)
        if isinstance(loaded, bytes):
            image = decode(loaded)  # also finds out whether the file is whole
            extension = image_format(loaded)
            changes = config.corruption != "none" or config.short_side not in (None, min(image.shape[1:]))
            if extension is not None and not changes:
                return Sample(name, extension, loaded, label)
            loaded = to_pixels(image)
    except FileNotFoundError:
        return Skipped(key, "the file is gone")
    except OSError as error:
        raise UnicError(f"cannot read {key} of {config.source}: {error.strerror or error}; make it readable") from error
    except BrokenImageError as error:
        return Skipped(key, str(error))
    pixels = corrupt(loaded, config.corruption, index)
    if config.short_side is not None:
        pixels = resize_short_side(pixels, config.short_side)
    extension = "jpg" if extension == "jpg" else "png"
    return Sample(name, extension, encode(pixels, extension), label)


# ---------------------------------------------------------------- all images


@dataclass
class _Job:
    """One data set being written; at most one shard and a few images are held at a time."""

    config: DatasetConfig
    store: Store
    scratch: Path
    progress: Progress | None
    total: int
    done: int = 0
    broken: list[Skipped] = field(default_factory=list)

    def write_split(self, split: str, source: SourceSplit, order: Indices) -> dict[str, Any]:
        """Write (or continue) the shards of one split; returns its entry in dataset.json."""
        records = self._finished(split)
        used = sum(record.consumed for record in records)
        for record in records:
            self._account(record.consumed, record.skipped)
        samples = in_order(partial(encode_sample, source, self.config), order[used:].tolist(), _THREADS)
        try:
            while used < len(order):
                record = self._write_shard(split, len(records), samples)
                records.append(record)
                used += record.consumed
        finally:
            samples.close()
        shards = [record.shard for record in records if record.shard.count]
        if not shards:
            raise UnicError(f"{self.config.source} has no readable image in split {split}; check the files")
        return {
            "count": sum(shard.count for shard in shards),
            "labeled": bool((source.labels[order] >= 0).all()),
            "shards": [asdict(shard) for shard in shards],
            "skipped": [skipped._asdict() for record in records for skipped in record.skipped],
        }

    def _finished(self, split: str) -> list[ShardRecord]:
        """Records of the shards that an interrupted run left, up to the first gap."""
        sizes = self.store.list(f"{split}-")
        records: list[ShardRecord] = []
        while self.store.exists(_record_name(split, len(records))):
            record = ShardRecord.parse(self.store.get(_record_name(split, len(records))))
            if record.shard.count and sizes.get(f"{record.shard.name}.tar") != record.shard.bytes:
                break
            records.append(record)
        return records

    def _write_shard(self, split: str, number: int, samples: Iterator[Sample | Skipped]) -> ShardRecord:
        name = f"{split}-{number:05d}"
        path = self.scratch / f"{name}.tar"
        skipped: list[Skipped] = []
        try:
            writer = ShardWriter(path)
            try:
                for sample in samples:
                    if isinstance(sample, Skipped):
                        skipped.append(sample)
                        self._account(1, [sample])
                        continue
                    writer.add(sample)
                    self._account(1, [])
                    if writer.size >= self.config.shard_bytes:
                        break
                index = index_bytes(writer.close())
            finally:
                writer.abort()
        except OSError as error:
            raise UnicError(
                f"cannot write a shard in {self.scratch}: {error.strerror or error}; "
                "free some space or set TMPDIR to a directory with room"
            ) from error
        info = ShardInfo(name, writer.count, path.stat().st_size, file_sha256(path), hashlib.sha256(index).hexdigest())
        record = ShardRecord(info, writer.count + len(skipped), tuple(skipped))
        if info.count:
            self.store.upload(path, f"{name}.tar")
            self.store.put(f"{name}.npy", index)
        self.store.put(_record_name(split, number), record.dump())
        path.unlink()
        return record

    def _account(self, images: int, skipped: Iterable[Skipped]) -> None:
        self.done += images
        self.broken += skipped
        if len(self.broken) > self.config.max_broken:
            first = ", ".join(f"{image.key} ({image.reason})" for image in self.broken[:_NAMED])
            raise UnicError(
                f"{self.config.source} has more unreadable images than max_broken = {self.config.max_broken}: "
                f"{first}; repair or remove them, or raise max_broken"
            )
        if self.progress is not None:
            self.progress(self.done, self.total)


def _record_name(split: str, number: int) -> str:
    return f"{_PARTS}/{split}-{number:05d}.json"


def in_order(function: Callable[[T], R], items: Iterable[T], threads: int) -> Generator[R, None, None]:
    """`map` by threads: results in order, at most a few items per thread ahead, nothing left running at the end."""
    pool = ThreadPoolExecutor(threads)
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 4 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
