"""From a source to a data set: fingerprinted shards at <root>/datasets/<name>/<fingerprint>/.

Shards are made independently of each other, by any number of processes, and always with the same bytes: which images
go into which shard is settled before the work begins. `dataset.json` is written last, so its presence means that
everything is there. Preparing the same input again finds it and does nothing; after an interruption the finished
shards are kept and the rest is made.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from unic_core.config import DatasetConfig
from unic_core.data.cache import file_sha256
from unic_core.data.decode import BrokenImageError, decode, image_format
from unic_core.data.listing import Source, SourceSplit
from unic_core.data.parallel import Count, by_processes, in_order, usable_cpus
from unic_core.data.pixels import corrupt, encode, resize_short_side, to_pixels
from unic_core.data.shards import (
    BLOCK,
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
from unic_core.data.targets import check_size
from unic_core.errors import UnicError
from unic_core.storage import Store, join, open_store

Progress = Callable[[int, int | None], None]

_log = logging.getLogger(__name__)

_THREADS = 4  # per process: they wait for the source, and decoding releases the interpreter lock
_SAMPLED = 64  # images encoded to find out how many make a shard
_WORTH_A_PROCESS = 1000  # images; starting a process takes seconds
_NAMED = 5  # broken images named in an error
_LISTED = 1000  # skipped images listed in dataset.json per split
_PARTS = "unfinished"  # plan and records of finished shards, until dataset.json exists
_PLAN = f"{_PARTS}/plan.json"


def prepare_dataset(
    config: DatasetConfig, root: str, progress: Progress | None = None, workers: int | None = None
) -> str:
    """Write a data set's shards unless they exist; returns its URI.

    Args:
        config: source, splits, limits, and what to do to the images.
        root: URI below which `datasets/<name>/<fingerprint>/` lies.
        progress: called with (images done, images in total) now and then.
        workers: processes; by default as many as there are processors. They are spawned, so a script that calls this
            needs the usual `if __name__ == "__main__"`. The result does not depend on their number.

    Raises:
        UnicError: nothing at the source, an unknown split, too many broken images, no space left.
    """
    source = open_source(config.source)
    _check_dense(config, source)
    chosen = _choose(source, config)
    fingerprint = _fingerprint(source, config)
    uri = join(root, "datasets", config.name, fingerprint)
    store = open_store(uri)
    if _is_complete(store, config):
        return uri
    splits = _write_splits(config, source, chosen, store, progress, workers or usable_cpus())
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
    if source.target != "none":
        info["target"] = source.target
    store.put(INFO_NAME, json.dumps(info, indent=1).encode())
    store.delete(list(store.list(f"{_PARTS}/")))
    skipped = sum(split["skipped_count"] for split in splits.values())
    if skipped:
        _log.warning("%s: %d unreadable images were skipped; %s lists them", config.name, skipped, join(uri, INFO_NAME))
    return uri


def _check_dense(config: DatasetConfig, source: Source) -> None:
    """UnicError where a change of the images would not fit their masks or depths."""
    if source.target != "none" and (config.short_side is not None or config.corruption == "rotation"):
        raise UnicError(
            f"{config.source} has a {source.target} for every image, which short_side and rotation would not change; "
            f"remove them from data set {config.name}"
        )


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


def encode_sample(split: SourceSplit, config: DatasetConfig, position: int, index: int) -> Sample | Skipped:
    """The image at `position` of `split` as it is stored; `index` is its number in the whole split.

    An encoded JPEG, PNG or WebP stays byte-identical unless it is corrupted or resized; then a JPEG is
    encoded again at quality 95. Everything else becomes PNG.
    """
    key, label = split.keys[position], int(split.labels[position])
    stem = re.sub(r"[^A-Za-z0-9-]+", "_", PurePosixPath(key).stem)[-60:]
    name = f"{index:08d}_{stem}"  # fits the 100 characters of a tar header
    extension: str | None = "png"
    target: bytes | None = None
    try:
        loaded = split.load(position)
        if split.read_target is not None:
            target = split.read_target(split.rows[position])
        if isinstance(loaded, bytes):
            image = decode(loaded)  # also finds out whether the file is whole
            if target is not None:
                check_size(image, target)
            extension = image_format(loaded)
            changes = config.corruption != "none" or config.short_side not in (None, min(image.shape[1:]))
            if extension is not None and not changes:
                return Sample(name, extension, loaded, label, target)
            loaded = to_pixels(image)
    except FileNotFoundError:
        return Skipped(key, "the file is gone" if split.read_target is None else "it or its target is missing")
    except OSError as error:
        raise UnicError(f"cannot read {key} of {config.source}: {error.strerror or error}; make it readable") from error
    except BrokenImageError as error:
        return Skipped(key, str(error))
    pixels = corrupt(loaded, config.corruption, index)
    if config.short_side is not None:
        pixels = resize_short_side(pixels, config.short_side)
    extension = "jpg" if extension == "jpg" else "png"
    return Sample(name, extension, encode(pixels, extension), label, target)


# ---------------------------------------------------------------- one shard


@dataclass(frozen=True)
class _ShardTask:
    """All that a process needs to make a shard."""

    config: DatasetConfig
    store: Store
    scratch: Path
    name: str
    images: SourceSplit
    numbers: list[int]  # of the images in the whole split


def _write_shard(task: _ShardTask, count: Count) -> tuple[str, ShardRecord]:
    """Make and store one shard, then the record that says so; holds one shard on disk and a few images in memory."""
    path = task.scratch / f"{task.name}.tar"
    skipped: list[Skipped] = []
    positions = enumerate(task.numbers)
    samples = in_order(lambda at: encode_sample(task.images, task.config, *at), positions, _THREADS)
    try:
        writer = ShardWriter(path)
        try:
            for sample in samples:
                if isinstance(sample, Skipped):
                    skipped.append(sample)
                    _check_broken(task.config, skipped)
                else:
                    writer.add(sample)
                count(1)
            index = index_bytes(writer.close())
        finally:
            samples.close()
            writer.abort()
    except OSError as error:
        raise UnicError(
            f"cannot write a shard in {task.scratch}: {error.strerror or error}; "
            "free some space or set TMPDIR to a directory with room for a shard per worker"
        ) from error
    size, sha256 = path.stat().st_size, file_sha256(path)
    info = ShardInfo(task.name, writer.count, size, sha256, hashlib.sha256(index).hexdigest())
    record = ShardRecord(info, len(task.numbers), tuple(skipped))
    if info.count:
        task.store.upload(path, f"{task.name}.tar")
        task.store.put(f"{task.name}.npy", index)
    task.store.put(f"{_PARTS}/{task.name}.json", record.dump())
    path.unlink()
    return task.name, record


def _check_broken(config: DatasetConfig, broken: list[Skipped]) -> None:
    if len(broken) > config.max_broken:
        first = ", ".join(f"{image.key} ({image.reason})" for image in broken[:_NAMED])
        raise UnicError(
            f"{config.source} has more unreadable images than max_broken = {config.max_broken}: "
            f"{first}; repair or remove them, or raise max_broken"
        )


# ---------------------------------------------------------------- all shards


class _Planned(NamedTuple):
    """A shard that is to be: its split and the images in it, in their order."""

    split: str
    images: Indices


def _write_splits(
    config: DatasetConfig,
    source: Source,
    chosen: dict[str, Indices],
    store: Store,
    progress: Progress | None,
    workers: int,
) -> dict[str, Any]:
    """Make the shards that are not there yet; returns the entries of the splits in dataset.json."""
    plan = _plan(config, source, chosen, store)
    records = _finished(store, plan)
    before = sum(record.consumed for record in records.values())
    total = sum(map(len, chosen.values()))

    def tick(done: int) -> None:
        if progress is not None:
            progress(before + done, total)

    missing = [name for name in plan if name not in records]
    images = sum(len(plan[name].images) for name in missing)
    processes = min(workers, len(missing), math.ceil(images / _WORTH_A_PROCESS))
    broken = [skipped for record in records.values() for skipped in record.skipped]
    _check_broken(config, broken)
    with tempfile.TemporaryDirectory(prefix="unic-prepare-") as scratch:
        tasks = (_task(config, source, store, Path(scratch), name, plan[name]) for name in missing)
        for name, record in by_processes(_write_shard, tasks, processes, tick):
            records[name] = record
            broken += record.skipped
            _check_broken(config, broken)
    tick(total - before)
    return {
        split: _entry(config, split, source.splits[split], order, [records[n] for n in plan if plan[n].split == split])
        for split, order in chosen.items()
    }


def _task(config: DatasetConfig, source: Source, store: Store, scratch: Path, name: str, shard: _Planned) -> _ShardTask:
    numbers = shard.images.tolist()
    return _ShardTask(config, store, scratch, name, source.splits[shard.split].part(numbers), numbers)


def _plan(config: DatasetConfig, source: Source, chosen: dict[str, Indices], store: Store) -> dict[str, _Planned]:
    """All shards by name. An interrupted preparation left its plan, which is kept."""
    if store.exists(_PLAN):
        per_shard: dict[str, int] = json.loads(store.get(_PLAN))
    else:
        per_shard = {split: _images_per_shard(config, source.splits[split], order) for split, order in chosen.items()}
        store.put(_PLAN, json.dumps(per_shard).encode())
    return {
        f"{split}-{number:05d}": _Planned(split, order[first : first + per_shard[split]])
        for split, order in chosen.items()
        for number, first in enumerate(range(0, len(order), per_shard[split]))
    }


def _images_per_shard(config: DatasetConfig, split: SourceSplit, order: Indices) -> int:
    """How many images make about `shard_bytes`, judged by some that are spread evenly over the split."""
    some = order[:: max(1, len(order) // _SAMPLED)].tolist()
    encoded = in_order(lambda index: encode_sample(split, config, index, index), some, _THREADS)
    sizes = [_stored_bytes(sample) for sample in encoded if isinstance(sample, Sample)]
    return max(1, round(config.shard_bytes * len(sizes) / sum(sizes))) if sizes else max(1, len(order))


def _stored_bytes(sample: Sample) -> int:
    """Bytes of a sample in a tar: each file has a header and is padded to whole blocks."""
    target = 0 if sample.target is None else 1 + math.ceil(len(sample.target) / BLOCK)
    return BLOCK * (1 + math.ceil(len(sample.data) / BLOCK) + 2 * (sample.label >= 0) + target)


def _finished(store: Store, plan: Iterable[str]) -> dict[str, ShardRecord]:
    """Records of the shards that an interrupted preparation left whole."""
    written, recorded = store.list(), store.list(f"{_PARTS}/")
    names = [name for name in plan if f"{_PARTS}/{name}.json" in recorded]
    read: Iterator[ShardRecord] = in_order(
        lambda name: ShardRecord.parse(store.get(f"{_PARTS}/{name}.json")), names, _THREADS
    )
    records = dict(zip(names, read, strict=True))
    return {name: record for name, record in records.items() if _is_whole(store, record, written)}


def _is_whole(store: Store, record: ShardRecord, sizes: dict[str, int]) -> bool:
    """Whether tar and index lie there as recorded. Writes are whole or absent, so the tar's size tells enough."""
    shard = record.shard
    if not shard.count:
        return True
    if sizes.get(f"{shard.name}.tar") != shard.bytes or f"{shard.name}.npy" not in sizes:
        return False
    return hashlib.sha256(store.get(f"{shard.name}.npy")).hexdigest() == shard.index_sha256


def _entry(
    config: DatasetConfig, split: str, source: SourceSplit, order: Indices, records: list[ShardRecord]
) -> dict[str, Any]:
    shards = [record.shard for record in records if record.shard.count]
    if not shards:
        raise UnicError(f"{config.source} has no readable image in split {split}; check the files")
    skipped = [skipped._asdict() for record in records for skipped in record.skipped]
    return {
        "count": sum(shard.count for shard in shards),
        "labeled": bool((source.labels[order] >= 0).all()),
        "shards": [asdict(shard) for shard in shards],
        "skipped_count": len(skipped),
        "skipped": skipped[:_LISTED],
    }
