"""Training images from a real S3 server that fails: the batches are those of an undisturbed run, or one sentence."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import FaultProxy
from tests.unic_core.data.test_cache import small_disk
from tests.unic_core.data.test_dataset import flip
from tests.unic_core.data.test_loader import same
from tests.workflows.conftest import S3, clean_environment, own_s3, s3, s3_server
from unic_core.config import DataConfig, MixConfig
from unic_core.data import reading
from unic_core.data.dataset import ShardedDataset
from unic_core.data.loader import RawBatch, TrainLoader
from unic_core.errors import UnicError
from unic_core.storage import LocalStore, Store, open_store

__all__ = ["clean_environment", "own_s3", "s3", "s3_server", "small_disk"]  # fixtures

pytestmark = pytest.mark.slow

BATCH, STEPS = 12, 10  # two epochs of the 60 images


def loader(
    uri: str, cache: Path | None, cache_bytes: int = 10**9, workers: int = 0, max_broken: int = 0
) -> TrainLoader:
    config = DataConfig(train=(MixConfig(dataset="waves"),), workers=workers, chunk=4, window=4, max_broken=max_broken)
    return TrainLoader([ShardedDataset(uri, "train", cache, cache_bytes)], config, 32, seed=5, batch=BATCH)


def batches(uri: str, cache: Path | None = None, steps: int = STEPS, **changes: int) -> list[RawBatch]:
    return list(itertools.islice(loader(uri, cache, **changes), steps))


def assert_same(some: list[RawBatch], others: list[RawBatch]) -> None:
    assert len(some) == len(others)
    assert all(same(a, b) for a, b in zip(some, others, strict=True))


def put(prepared: str, uri: str) -> str:
    """Copy a prepared data set to S3."""
    source, target = LocalStore(prepared), open_store(uri)
    for key in source.list():
        target.upload(source.root / key, key)
    return uri


@pytest.fixture
def remote(s3: S3, prepared: str, tmp_path: Path) -> str:
    return put(prepared, f"s3://unic/{tmp_path.name}")


@pytest.fixture
def proxy(s3: S3, clean_environment: pytest.MonkeyPatch, remote: str) -> Iterator[FaultProxy]:
    with FaultProxy(s3.endpoint) as proxy:
        clean_environment.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        yield proxy


def is_tar(method: str, path: str) -> bool:
    return ".tar" in path


@pytest.fixture(params=["cache", "cache of large shards", "no cache"])
def cache_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Large shards are read in parts until they are in the cache."""
    if request.param == "cache of large shards":
        monkeypatch.setattr(reading, "_SMALL_SHARD", 0)
    return 0 if request.param == "no cache" else 10**9


@pytest.mark.parametrize("workers", [0, 2])
def test_s3_gives_the_batches_of_a_disk(
    cache_bytes: int, workers: int, remote: str, prepared: str, tmp_path: Path
) -> None:
    expected = batches(prepared)
    assert_same(batches(remote, tmp_path / "cache", cache_bytes=cache_bytes, workers=workers), expected)
    assert_same(batches(remote, tmp_path / "cache", cache_bytes=cache_bytes, workers=workers), expected)


def test_s3_answers_503_for_a_while(
    cache_bytes: int, proxy: FaultProxy, remote: str, prepared: str, tmp_path: Path
) -> None:
    iterator = iter(loader(remote, tmp_path / "cache", cache_bytes))
    proxy.slow_down(count=6, where=is_tar)
    assert_same(list(itertools.islice(iterator, STEPS)), batches(prepared))
    assert proxy.hits > 0


def test_connections_break_in_the_middle_of_images(
    cache_bytes: int, proxy: FaultProxy, remote: str, prepared: str, tmp_path: Path
) -> None:
    iterator = iter(loader(remote, tmp_path / "cache", cache_bytes))
    proxy.cut(after=2000, count=6, where=is_tar)
    assert_same(list(itertools.islice(iterator, STEPS)), batches(prepared))
    assert proxy.hits > 0


def test_s3_is_slow(cache_bytes: int, proxy: FaultProxy, remote: str, prepared: str, tmp_path: Path) -> None:
    iterator = iter(loader(remote, tmp_path / "cache", cache_bytes))
    proxy.slow(delay=0.2, bytes_per_second=200_000, where=is_tar)
    assert_same(list(itertools.islice(iterator, STEPS)), batches(prepared))
    assert proxy.hits > 0


@pytest.mark.parametrize("workers", [0, 2])
def test_s3_is_killed_while_images_are_read_and_comes_back(
    workers: int, own_s3: S3, clean_environment: pytest.MonkeyPatch, prepared: str, tmp_path: Path
) -> None:
    """kill -9 between two batches; the server returns once the reader has been refused for a while."""
    clean_environment.setattr(reading, "_BLOCK_BYTES", 10_000)  # or all images are in memory soon
    own_s3.start()
    own_s3.use(clean_environment)
    uri = put(prepared, "s3://unic/set")
    with FaultProxy(own_s3.endpoint) as proxy:
        clean_environment.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        iterator = iter(loader(uri, None, cache_bytes=0, workers=workers))
        proxy.slow(where=is_tar)  # counts the requests, delays nothing
        seen = [next(iterator)]
        own_s3.kill()
        proxy.heal()
        before = len(proxy.requests)
        rest: list[RawBatch] = []
        reader = threading.Thread(target=lambda: rest.extend(itertools.islice(iterator, STEPS + 20)), daemon=True)
        reader.start()
        while len(proxy.requests) < before + 6:
            reader.join(0.05)
            assert reader.is_alive(), "all images were there already"
        assert len(rest) < STEPS + 20, "it waits"
        own_s3.start()
        reader.join(120)
    assert_same(seen + rest, batches(prepared, steps=STEPS + 21))


# ---------------------------------------------------------------- what can't be waited out


@pytest.mark.parametrize("workers", [0, 2])
def test_a_missing_shard_is_named(cache_bytes: int, workers: int, remote: str, tmp_path: Path) -> None:
    open_store(remote).delete(["train-00001.tar"])
    with pytest.raises(UnicError) as caught:
        batches(remote, tmp_path / "cache", cache_bytes=cache_bytes, workers=workers)
    assert str(caught.value) == f"{remote}/train-00001.tar is missing; prepare the data set again"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupted_shard_is_named(cache_bytes: int, workers: int, remote: str, prepared: str, tmp_path: Path) -> None:
    _flip_on(open_store(remote), "train-00001.tar", tmp_path)
    with pytest.raises(UnicError) as caught:
        batches(remote, tmp_path / "cache", cache_bytes=cache_bytes, workers=workers)
    assert str(caught.value).startswith(
        f"epoch 0 met more unreadable images than data.max_broken = 0: {remote}/train-00001/"
    )


def test_corrupted_images_are_replaced_where_that_is_allowed(
    cache_bytes: int, remote: str, prepared: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _flip_on(open_store(remote), "train-00001.tar", tmp_path)
    seen = batches(remote, tmp_path / "cache", cache_bytes=cache_bytes, max_broken=1)
    assert [batch.samples.tolist() for batch in seen] == [batch.samples.tolist() for batch in batches(prepared)]
    assert "is unreadable (its bytes differ from their checksum) and was replaced" in caplog.text


def _flip_on(store: Store, key: str, tmp_path: Path) -> None:
    """Damage an image of a shard on the store."""
    store.download(key, tmp_path / key)
    flip(tmp_path / key, 700)
    store.upload(tmp_path / key, key)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_cache_is_repaired(
    workers: int, remote: str, prepared: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    batches(remote, cache)
    for path in (path for path in cache.iterdir() if not path.suffix):
        flip(path, 700)
    assert_same(batches(remote, cache, workers=workers), batches(prepared))
    assert "was damaged; it is fetched again" in caplog.text


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_cache_disk_slows_down_and_says_so(
    workers: int, remote: str, prepared: str, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The file system holds two of the eight shards."""
    assert_same(batches(remote, small_disk / "cache", workers=workers), batches(prepared))
    lines = [record.getMessage() for record in caplog.records if "cannot keep shards" in record.getMessage()]
    assert lines == [
        f"cannot keep shards in the cache {small_disk}/cache (No space left on device): they are read in parts from "
        "the store, which is slower; free some space or set data.cache to a directory with room"
    ]
