from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.unic_core.data.conftest import encoded, picture
from unic_core.config import DatasetConfig
from unic_core.data import dataset as dataset_module
from unic_core.data import reading as reading_module
from unic_core.data.dataset import ShardedDataset
from unic_core.data.decode import BrokenImageError, decode
from unic_core.data.prepare import prepare_dataset
from unic_core.errors import UnicError
from unic_core.storage import LocalStore, Store, open_store


class ObjectStore:
    """A store that is not a local directory, as far as the reader can tell: no path leads to its objects."""

    def __init__(self, uri: str) -> None:
        self.uri, self._store = uri, LocalStore(uri.removeprefix("object://"))
        self.get, self.put, self.exists = self._store.get, self._store.put, self._store.exists
        self.upload, self.download = self._store.upload, self._store.download
        self.list, self.delete = self._store.list, self._store.delete

    def child(self, prefix: str) -> ObjectStore:
        return ObjectStore(f"{self.uri}/{prefix}")


@pytest.fixture(params=[reading_module._SMALL_SHARD, 0], ids=["small shards", "large shards"])
def object_stores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`object://` + path; with shards that are waited for, and with those that are read in parts meanwhile."""
    monkeypatch.setattr(reading_module, "_SMALL_SHARD", request.param)

    def opened(uri: str) -> Store:
        return ObjectStore(uri) if uri.startswith("object://") else open_store(uri)

    for module in (dataset_module, reading_module):
        monkeypatch.setattr(module, "open_store", opened)


def read_all(dataset: ShardedDataset) -> list[bytes]:
    return [dataset.read(i) for i in range(len(dataset))]


def test_everything_prepared_is_read(prepared: str) -> None:
    train = ShardedDataset(prepared, "train")
    assert len(train) == 60
    assert train.classes == ("even", "odd")
    assert (train.name, train.license) == ("waves", "unknown")
    assert prepared.endswith(train.fingerprint)
    assert train.labels.dtype == np.int64
    assert np.bincount(train.labels).tolist() == [30, 30]
    keys = [train.key(i) for i in range(60)]
    assert len(set(keys)) == 60
    assert keys[0].startswith("train-00000/")
    for i in range(60):
        source = int(keys[i].rpartition("_")[2])
        assert train.read(i) == encoded(picture(source + 5000, 32 + source % 9, 48 - source % 7))
        assert train.labels[i] == source % 2
    with pytest.raises(IndexError):
        train.read(60)
    with pytest.raises(IndexError):
        train.read(-1)


def cached(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if not path.suffix] if directory.exists() else []


def wait_for_cache(dataset: ShardedDataset, directory: Path, shards: int) -> None:
    """Until that many shards are in the cache; they come in the background."""
    deadline = time.monotonic() + 30
    while len(cached(directory)) < shards:
        assert time.monotonic() < deadline, dataset.notes()
        time.sleep(0.01)


def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int | None]]:
    """What is asked of `object://` stores from now on: key, first byte, bytes."""
    asked: list[tuple[str, int, int | None]] = []
    get = LocalStore.get

    def noted(self: LocalStore, key: str, start: int = 0, length: int | None = None) -> bytes:
        asked.append((key, start, length))
        return get(self, key, start, length)

    monkeypatch.setattr(LocalStore, "get", noted)
    return asked


def test_a_remote_data_set_is_read_through_the_cache(
    prepared: str, object_stores: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = ShardedDataset(prepared, "train")
    remote = ShardedDataset(f"object://{prepared}", "train", tmp_path / "cache")
    for i in np.random.default_rng(0).permutation(60):
        assert remote.read(int(i)) == local.read(int(i))
    wait_for_cache(remote, tmp_path / "cache", len(remote._shards))
    asked = requests(monkeypatch)
    again = ShardedDataset(f"object://{prepared}", "train", tmp_path / "cache")
    asked.clear()
    assert read_all(again) == read_all(remote) == read_all(local)
    assert asked == []


@pytest.mark.parametrize("capacity", [0, 100, 40_000], ids=["no cache", "no shard fits", "one shard fits"])
def test_what_the_cache_does_not_hold_is_read_in_chunks(
    capacity: int, prepared: str, object_stores: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = ShardedDataset(prepared, "train")
    remote = ShardedDataset(f"object://{prepared}", "train", tmp_path / "cache", capacity)
    remote.plan(8, [remote])
    asked = requests(monkeypatch)
    remote.announce(np.arange(60))
    assert read_all(remote) == read_all(local)
    wait_for_cache(remote, tmp_path / "cache", capacity // 40_000)
    parts = [request for request in asked if request[1:] != (0, None) and "npy" not in request[0]]
    chunks = 60 // 8 + 1 + len(remote._shards) - 1  # a chunk that two shards share takes two requests
    assert len(parts) <= chunks + 2 * len(remote._shards) * bool(capacity)
    assert sum(path.stat().st_size for path in cached(tmp_path / "cache")) <= capacity
    notes = remote.notes()
    if capacity:
        assert len(set(notes)) == 1
        assert f"full at data.cache_bytes = {capacity}: the other shards are read in parts" in notes[0]
    else:
        assert notes == []
        assert len(parts) <= chunks
    assert remote.notes() == []


def test_images_too_large_to_be_read_together_are_read_alone(
    prepared: str, object_stores: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_module, "_LARGEST_REQUEST", 3000)
    remote = ShardedDataset(f"object://{prepared}", "train", tmp_path / "cache", 0)
    asked = requests(monkeypatch)
    assert remote.read(5) == ShardedDataset(prepared, "train").read(5)
    (request,) = [request for request in asked if request[0].endswith(".tar") and request[2] is not None]
    assert request[2] == len(remote.read(5)) + 512


def test_little_memory_is_enough(
    prepared: str, object_stores: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_module, "_BLOCK_BYTES", 12_000)  # one chunk
    remote = ShardedDataset(f"object://{prepared}", "train", tmp_path / "cache", 0)
    remote.plan(4, [remote])
    order = np.random.default_rng(1).permutation(60)
    remote.announce(order)
    local = ShardedDataset(prepared, "train")
    for index in order.tolist():
        assert remote.read(index) == local.read(index)
        assert sum(block.length for block in remote._files._blocks._held) <= 12_000


def flip(path: Path, offset: int, count: int = 3) -> None:
    """Damage a file without changing its length."""
    with path.open("r+b") as file:
        file.seek(offset)
        data = file.read(count)
        file.seek(offset)
        file.write(bytes(byte ^ 0xFF for byte in data))


def test_damage_in_the_cache_is_found_and_repaired(prepared: str, object_stores: None, tmp_path: Path) -> None:
    local = ShardedDataset(prepared, "train")
    remote = ShardedDataset(f"object://{prepared}", "train", tmp_path / "cache")
    read_all(remote)
    wait_for_cache(remote, tmp_path / "cache", len(remote._shards))
    for path in cached(tmp_path / "cache"):
        times = path.stat().st_mtime_ns
        flip(path, 600)
        os.utime(path, ns=(times, times))  # as a failing disk does it
    assert read_all(remote) == read_all(local), "open descriptors are no excuse"
    notes = remote.notes()
    assert len(notes) == len(remote._shards)
    assert all("the cached copy of object://" in note and "was damaged" in note for note in notes)
    wait_for_cache(remote, tmp_path / "cache", len(remote._shards))
    for path in cached(tmp_path / "cache"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


@pytest.mark.parametrize("place", ["local", "cache", "parts"])
def test_damage_on_the_store_is_told_apart(place: str, prepared: str, object_stores: None, tmp_path: Path) -> None:
    """Each image has a checksum: the damaged ones are known, the others are read."""
    copy = tmp_path / "copy"
    shutil.copytree(prepared, copy)
    local = ShardedDataset(prepared, "train")
    flip(copy / "train-00001.tar", int(local._index[local._shards[0].count + 3, 0]) + 100)
    uri = str(copy) if place == "local" else f"object://{copy}"
    dataset = ShardedDataset(uri, "train", tmp_path / "cache", 0 if place == "parts" else 10**9)
    bad = local._shards[0].count + 3
    for index in range(60):
        if index == bad:
            with pytest.raises(BrokenImageError, match="its bytes differ from their checksum"):
                dataset.read(index)
            assert dataset.key(index) == local.key(index)
        else:
            assert dataset.read(index) == local.read(index)
    if place == "cache":
        wait_for_cache(dataset, tmp_path / "cache", len(local._shards) - 1)
        deadline = time.monotonic() + 30
        notes = dataset.notes()
        while not notes and time.monotonic() < deadline:
            notes = dataset.notes()
        assert "train-00001.tar differs from the sha256 in dataset.json: it is damaged" in notes[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda copy: (copy / "train-00001.tar").unlink(), "train-00001.tar is missing"),
        (lambda copy: os.truncate(copy / "train-00001.tar", 3000), "train-00001.tar is damaged"),
        (
            lambda copy: (copy / "train-00001.tar").write_bytes(bytes((copy / "train-00001.tar").stat().st_size)),
            "damaged",
        ),
        (lambda copy: (copy / "train-00001.npy").unlink(), "train-00001.npy is missing"),
        (lambda copy: os.truncate(copy / "train-00001.npy", 100), "train-00001.npy differs from its sha256"),
        (lambda copy: (copy / "dataset.json").unlink(), "no finished data set .*run `unic prepare`"),
        (lambda copy: (copy / "dataset.json").write_text("{"), "dataset.json is not readable"),
        (lambda copy: (copy / "dataset.json").write_text('{"format": 9}'), "has format 9, not 2"),
    ],
    ids=["no-tar", "short-tar", "zero-tar", "no-index", "short-index", "no-json", "bad-json", "other-format"],
)
def test_damage_is_one_sentence(damage: object, message: str, prepared: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(prepared, copy)
    damage(copy)  # type: ignore[operator]
    with pytest.raises(UnicError, match=message):
        read_all(ShardedDataset(str(copy), "train"))


def test_the_index_is_small(train: ShardedDataset) -> None:
    assert train.index_bytes == 32 * len(train)


def test_an_unknown_split_names_the_others(prepared: str) -> None:
    with pytest.raises(UnicError, match="no split 'val'; it has test, train"):
        ShardedDataset(prepared, "val")


def test_pickling_leaves_open_files_behind(train: ShardedDataset) -> None:
    expected = read_all(train)
    copy = pickle.loads(pickle.dumps(train))  # noqa: S301
    assert read_all(copy) == expected


def _check(dataset: ShardedDataset, expected: list[bytes]) -> None:
    sys.exit(0 if read_all(dataset) == expected else 1)


def test_forked_processes_read_at_the_same_time(train: ShardedDataset) -> None:
    expected = read_all(train)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_check, args=(train, expected)) for _ in range(4)]
    for process in processes:
        process.start()
    assert read_all(train) == expected
    for process in processes:
        process.join()
        assert process.exitcode == 0


def test_many_shards_need_few_open_files(tmp_path: Path) -> None:
    config = DatasetConfig(name="digits", source="sklearn:digits", limit={"test": 100}, splits=("test",), shard_bytes=1)
    dataset = ShardedDataset(prepare_dataset(config, str(tmp_path)), "test")
    before = len(os.listdir("/proc/self/fd"))
    images = [decode(dataset.read(i)) for i in range(100)]
    assert len(os.listdir("/proc/self/fd")) - before <= 40
    assert all(image.shape == (3, 8, 8) for image in images)
