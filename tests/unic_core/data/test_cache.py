from __future__ import annotations

import hashlib
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from unic_core.data.cache import FileCache, file_sha256
from unic_core.errors import UnicError
from unic_core.storage import LocalStore


class CountingStore(LocalStore):
    """Notes every download in a file, so that other processes' downloads count too; can stall in the middle."""

    stall = False

    def download(self, key: str, target: Path) -> None:
        with (self.root / "downloads").open("a") as file:
            file.write(f"{key}\n")
        if self.stall:
            target.write_bytes(b"half")
            time.sleep(60)
        super().download(key, target)

    @property
    def downloads(self) -> list[str]:
        return (self.root / "downloads").read_text().split()


def make_store(root: Path, count: int = 3, size: int = 1000) -> tuple[CountingStore, dict[str, str]]:
    root.mkdir()
    store = CountingStore(str(root))
    for i in range(count):
        store.put(f"{i}.tar", bytes([i]) * size)
    return store, {f"{i}.tar": hashlib.sha256(bytes([i]) * size).hexdigest() for i in range(count)}


def test_a_file_is_fetched_once(tmp_path: Path) -> None:
    store, hashes = make_store(tmp_path / "remote")
    cache = FileCache(tmp_path / "cache", 10_000)
    for _ in range(3):
        path = cache.fetch(store, "1.tar", hashes["1.tar"], 1000)
        assert path.read_bytes() == bytes([1]) * 1000
    assert store.downloads == ["1.tar"]
    assert file_sha256(path) == hashes["1.tar"]


def test_the_longest_unused_file_goes_first(tmp_path: Path) -> None:
    store, hashes = make_store(tmp_path / "remote")
    cache = FileCache(tmp_path / "cache", 2_000)
    for key in ("0.tar", "1.tar", "0.tar", "2.tar", "0.tar", "1.tar"):
        cache.fetch(store, key, hashes[key], 1000)
        time.sleep(0.01)
        kept = [path.stat().st_size for path in (tmp_path / "cache").iterdir() if not path.suffix]
        assert sum(kept) <= 2_000
    assert store.downloads == ["0.tar", "1.tar", "2.tar", "1.tar"]


def test_a_capacity_below_one_file_still_reads(tmp_path: Path) -> None:
    store, hashes = make_store(tmp_path / "remote")
    cache = FileCache(tmp_path / "cache", 10)
    for key, sha256 in hashes.items():
        assert cache.fetch(store, key, sha256, 1000).stat().st_size == 1000


def test_an_evicted_file_stays_readable_through_its_handle(tmp_path: Path) -> None:
    store, hashes = make_store(tmp_path / "remote")
    cache = FileCache(tmp_path / "cache", 1_000)
    with cache.fetch(store, "0.tar", hashes["0.tar"], 1000).open("rb") as file:
        cache.fetch(store, "1.tar", hashes["1.tar"], 1000)
        assert file.read() == bytes([0]) * 1000


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    store, hashes = make_store(tmp_path / "remote")
    cache = FileCache(tmp_path / "cache", 10_000)
    with pytest.raises(UnicError, match=r"remote/1.tar differs from the sha256"):
        cache.fetch(store, "1.tar", hashes["2.tar"], 1000)
    with pytest.raises(UnicError, match=r"remote/9.tar is missing"):
        cache.fetch(store, "9.tar", "0" * 64, 1000)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]


def test_a_truncated_file_in_the_cache_is_fetched_again(tmp_path: Path) -> None:
    store, hashes = make_store(tmp_path / "remote")
    cache = FileCache(tmp_path / "cache", 10_000)
    path = cache.fetch(store, "0.tar", hashes["0.tar"], 1000)
    os.truncate(path, 10)
    assert cache.fetch(store, "0.tar", hashes["0.tar"], 1000).stat().st_size == 1000


def _fetch_all(root: Path, hashes: dict[str, str], stall: bool = False) -> None:
    store = CountingStore(str(root / "remote"))
    store.stall = stall
    for key, sha256 in hashes.items():
        FileCache(root / "cache", 10_000).fetch(store, key, sha256, 1000)


def test_processes_share_one_download(tmp_path: Path) -> None:
    store, hashes = make_store(tmp_path / "remote")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_fetch_all, args=(tmp_path, hashes)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert sorted(store.downloads) == sorted(hashes)


def test_a_kill_in_the_middle_of_a_download_is_survived(tmp_path: Path) -> None:
    store, hashes = make_store(tmp_path / "remote", count=1)
    process = multiprocessing.get_context("fork").Process(target=_fetch_all, args=(tmp_path, hashes, True))
    process.start()
    while not list((tmp_path / "cache").glob("*.part")):
        time.sleep(0.01)
    process.kill()
    process.join()
    path = FileCache(tmp_path / "cache", 10_000).fetch(store, "0.tar", hashes["0.tar"], 1000)
    assert path.read_bytes() == bytes(1000)
    assert not list((tmp_path / "cache").glob("*.part"))
