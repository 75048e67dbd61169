from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.unic_core.data.conftest import encoded, picture
from unic_core.config import DatasetConfig
from unic_core.data import dataset as dataset_module
from unic_core.data.dataset import ShardedDataset
from unic_core.data.decode import decode
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


@pytest.fixture
def object_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(uri: str) -> Store:
        return ObjectStore(uri) if uri.startswith("object://") else open_store(uri)

    monkeypatch.setattr(dataset_module, "open_store", opened)


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


def test_a_remote_data_set_is_read_through_the_cache(prepared: str, object_stores: None, tmp_path: Path) -> None:
    local = ShardedDataset(prepared, "train")
    remote = ShardedDataset(f"object://{prepared}", "train", tmp_path / "cache", 30_000)
    for i in np.random.default_rng(0).permutation(60):
        assert remote.read(int(i)) == local.read(int(i))
    files = [path for path in (tmp_path / "cache").iterdir() if not path.suffix]
    assert 0 < sum(path.stat().st_size for path in files) <= 30_000


def test_a_damaged_remote_shard_is_named(prepared: str, object_stores: None, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(prepared, copy)
    with (copy / "train-00001.tar").open("r+b") as file:
        file.seek(5000)
        file.write(b"\xff\xff\xff")
    remote = ShardedDataset(f"object://{copy}", "train", tmp_path / "cache")
    remote.read(0)
    with pytest.raises(UnicError, match=r"train-00001.tar differs from the sha256 in dataset.json"):
        read_all(remote)


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
        (lambda copy: (copy / "dataset.json").write_text('{"format": 9}'), "has format 9, not 1"),
    ],
    ids=["no-tar", "short-tar", "zero-tar", "no-index", "short-index", "no-json", "bad-json", "other-format"],
)
def test_damage_is_one_sentence(damage: object, message: str, prepared: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(prepared, copy)
    damage(copy)  # type: ignore[operator]
    with pytest.raises(UnicError, match=message):
        read_all(ShardedDataset(str(copy), "train"))


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
