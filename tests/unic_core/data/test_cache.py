from __future__ import annotations

import hashlib
import multiprocessing
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from unic_core.data import cache as module
from unic_core.data.cache import CacheError, FileCache, file_sha256
from unic_core.errors import UnicError
from unic_core.storage import LocalStore

SIZE = 1000


class CountingStore(LocalStore):
    """Notes every piece asked for in a file, so that other processes' requests count too; can stall in the middle."""

    stall = False
    damage = 0  # answers that arrive with a flipped bit

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        with (self.root / "requests").open("a") as file:
            file.write(f"{key}:{start}\n")
        if self.stall and start:
            time.sleep(600)
        data = super().get(key, start, length)
        if self.damage:
            self.damage -= 1
            return bytes([data[0] ^ 1]) + data[1:]
        return data

    @property
    def downloads(self) -> list[str]:
        """Files in the order in which their downloads began."""
        lines = (self.root / "requests").read_text().split()
        return [line.removesuffix(":0") for line in lines if line.endswith(":0")]


def make_store(root: Path, count: int = 3) -> tuple[CountingStore, dict[str, str]]:
    root.mkdir()
    store = CountingStore(str(root))
    for i in range(count):
        store.put(f"{i}.tar", bytes([i]) * SIZE)
    return store, {f"{i}.tar": hashlib.sha256(bytes([i]) * SIZE).hexdigest() for i in range(count)}


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if path.suffix not in ("", ".lock")]


def used(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.iterdir())


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE", 300)


def test_a_file_is_fetched_once(small_pieces: None, tmp_path: Path) -> None:
    store, hashes = make_store(tmp_path / "remote")
    cache = FileCache(tmp_path / "cache", 10_000)
    assert cache.open(hashes["1.tar"], SIZE) is None
    for _ in range(3):
        assert cache.fetch(store, "1.tar", hashes["1.tar"], SIZE)
    descriptor = cache.open(hashes["1.tar"], SIZE)
    assert descriptor is not None
    assert os.pread(descriptor, 2 * SIZE, 0) == bytes([1]) * SIZE
    os.close(descriptor)
    assert (store.root / "requests").read_text().split() == [f"1.tar:{start}" for start in (0, 300, 600, 900)]
    assert file_sha256(tmp_path / "cache" / hashes["1.tar"]) == hashes["1.tar"]


def test_the_longest_unused_file_goes_first(tmp_path: Path) -> None:
    store, hashes = make_store(tmp_path / "remote")
    cache = FileCache(tmp_path / "cache", 2 * SIZE)
    for turn, key in enumerate(("0.tar", "1.tar", "0.tar", "2.tar", "0.tar", "1.tar")):
        cache.fetch(store, key, hashes[key], SIZE)
        descriptor = cache.open(hashes[key], SIZE)
        assert descriptor is not None
        os.close(descriptor)
        os.utime(tmp_path / "cache" / hashes[key], (turn, turn))
        assert used(tmp_path / "cache") <= 2 * SIZE
    assert store.downloads == ["0.tar", "1.tar", "2.tar", "1.tar"]


def test_what_must_stay_is_not_evicted(tmp_path: Path) -> None:
    store, hashes = make_store(tmp_path / "remote")
    FileCache(tmp_path / "cache", 2 * SIZE).fetch(store, "2.tar", hashes["2.tar"], SIZE)
    cache = FileCache(tmp_path / "cache", 2 * SIZE, frozenset(hashes[key] for key in ("0.tar", "1.tar")))
    for key in ("0.tar", "1.tar"):
        assert cache.fetch(store, key, hashes[key], SIZE)
    with pytest.raises(CacheError, match=r"full at data.cache_bytes = 2000: the other shards are read in parts "):
        cache.fetch(store, "2.tar", hashes["2.tar"], SIZE)
    assert all(cache.has(hashes[key], SIZE) for key in ("0.tar", "1.tar"))
    assert leftovers(tmp_path / "cache") == []


def test_a_file_larger_than_the_cache_does_not_empty_it(tmp_path: Path) -> None:
    store, hashes = make_store(tmp_path / "remote")
    store.put("large.tar", bytes(5 * SIZE))
    cache = FileCache(tmp_path / "cache", 3 * SIZE)
    cache.fetch(store, "0.tar", hashes["0.tar"], SIZE)
    with pytest.raises(CacheError, match=r"full at data.cache_bytes = 3000"):
        cache.fetch(store, "large.tar", hashlib.sha256(bytes(5 * SIZE)).hexdigest(), 5 * SIZE)
    assert cache.has(hashes["0.tar"], SIZE)


def test_an_evicted_file_stays_readable_through_its_descriptor(tmp_path: Path) -> None:
    store, hashes = make_store(tmp_path / "remote")
    cache = FileCache(tmp_path / "cache", SIZE)
    cache.fetch(store, "0.tar", hashes["0.tar"], SIZE)
    descriptor = cache.open(hashes["0.tar"], SIZE)
    assert descriptor is not None
    cache.fetch(store, "1.tar", hashes["1.tar"], SIZE)
    assert not cache.has(hashes["0.tar"], SIZE)
    assert os.pread(descriptor, SIZE, 0) == bytes(SIZE)
    os.close(descriptor)


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    store, hashes = make_store(tmp_path / "remote")
    cache = FileCache(tmp_path / "cache", 10_000)
    with pytest.raises(UnicError, match=r"remote/1.tar differs from the sha256"):
        cache.fetch(store, "1.tar", hashes["2.tar"], SIZE)
    with pytest.raises(UnicError, match=r"remote/9.tar is missing"):
        cache.fetch(store, "9.tar", "0" * 64, SIZE)
    with pytest.raises(UnicError, match=r"remote/1.tar differs from the sha256"):
        cache.fetch(store, "1.tar", hashes["1.tar"], SIZE + 1)
    assert [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"] == []


def test_damage_on_the_way_is_repaired_by_a_second_download(tmp_path: Path) -> None:
    store, hashes = make_store(tmp_path / "remote")
    store.damage = 1
    FileCache(tmp_path / "cache", 10_000).fetch(store, "1.tar", hashes["1.tar"], SIZE)
    assert file_sha256(tmp_path / "cache" / hashes["1.tar"]) == hashes["1.tar"]
    assert store.downloads == ["1.tar", "1.tar"]


def test_a_truncated_file_in_the_cache_is_fetched_again(tmp_path: Path) -> None:
    store, hashes = make_store(tmp_path / "remote")
    cache = FileCache(tmp_path / "cache", SIZE)
    cache.fetch(store, "0.tar", hashes["0.tar"], SIZE)
    os.truncate(tmp_path / "cache" / hashes["0.tar"], 10)
    assert cache.open(hashes["0.tar"], SIZE) is None
    cache.fetch(store, "0.tar", hashes["0.tar"], SIZE)
    assert cache.has(hashes["0.tar"], SIZE)


def _fetch_all(root: Path, hashes: dict[str, str], capacity: int, stall: bool = False) -> None:
    module._PIECE = 300  # type: ignore[attr-defined]
    store = CountingStore(str(root / "remote"))
    store.stall = stall
    for key, sha256 in hashes.items():
        FileCache(root / "cache", capacity).fetch(store, key, sha256, SIZE)


def test_processes_share_one_download(tmp_path: Path) -> None:
    store, hashes = make_store(tmp_path / "remote")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_fetch_all, args=(tmp_path, hashes, 10_000)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert sorted(store.downloads) == sorted(hashes)


def _fill(root: Path, hashes: dict[str, str], barrier: Barrier) -> None:
    """Fetch in step with the others, and look at the size of everything in between."""
    for key, sha256 in hashes.items():
        barrier.wait()
        with suppress(CacheError):  # the others' downloads may take all the room
            FileCache(root / "cache", 2 * SIZE).fetch(LocalStore(str(root / "remote")), key, sha256, SIZE)
        barrier.wait()
        assert used(root / "cache") <= 2 * SIZE


def test_processes_never_fill_the_cache_beyond_its_bound(tmp_path: Path) -> None:
    """Downloads take their room before they begin, so that several at once can't exceed it together."""
    _, hashes = make_store(tmp_path / "remote", count=12)
    parts = [dict(list(hashes.items())[i::3]) for i in range(3)]
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3, timeout=60)
    processes = [context.Process(target=_fill, args=(tmp_path, part, barrier)) for part in parts]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 3
    assert used(tmp_path / "cache") > 0


def test_a_kill_in_the_middle_of_a_download_is_survived(tmp_path: Path) -> None:
    store, hashes = make_store(tmp_path / "remote", count=2)
    process = multiprocessing.get_context("fork").Process(target=_fetch_all, args=(tmp_path, hashes, SIZE, True))
    process.start()
    while "0.tar:300" not in (_read(store.root / "requests")):
        time.sleep(0.01)
    assert leftovers(tmp_path / "cache") == [f"{hashes['0.tar']}.part"]
    process.kill()
    process.join()
    cache = FileCache(tmp_path / "cache", SIZE)
    cache.fetch(store, "1.tar", hashes["1.tar"], SIZE)  # what the dead one left takes no room
    assert leftovers(tmp_path / "cache") == []
    cache.fetch(store, "0.tar", hashes["0.tar"], SIZE)
    assert (tmp_path / "cache" / hashes["0.tar"]).read_bytes() == bytes(SIZE)


def test_a_download_elsewhere_need_not_be_waited_for(tmp_path: Path) -> None:
    store, hashes = make_store(tmp_path / "remote", count=1)
    process = multiprocessing.get_context("fork").Process(target=_fetch_all, args=(tmp_path, hashes, SIZE, True))
    process.start()
    while "0.tar:300" not in (_read(store.root / "requests")):
        time.sleep(0.01)
    assert not FileCache(tmp_path / "cache", SIZE).fetch(store, "0.tar", hashes["0.tar"], SIZE, wait=False)
    process.kill()
    process.join()
    assert FileCache(tmp_path / "cache", SIZE).fetch(store, "0.tar", hashes["0.tar"], SIZE, wait=False)


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)  # readers may still have files open


def test_a_full_disk_is_told_from_a_full_cache(small_disk: Path, tmp_path: Path) -> None:
    store, hashes = make_store(tmp_path / "remote")
    cache = FileCache(small_disk / "cache", 10**9, frozenset(hashes.values()))
    cache.fetch(store, "0.tar", hashes["0.tar"], SIZE)
    (small_disk / "other").write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize))
    with pytest.raises(CacheError, match=r"cannot keep shards .* \(No space left on device\): .* free some space"):
        cache.fetch(store, "1.tar", hashes["1.tar"], SIZE)
    assert cache.has(hashes["0.tar"], SIZE)
    assert leftovers(small_disk / "cache") == []
    (small_disk / "other").unlink()
    assert cache.fetch(store, "1.tar", hashes["1.tar"], SIZE)


def test_a_full_disk_is_made_room_on(small_disk: Path, tmp_path: Path) -> None:
    store, hashes = make_store(tmp_path / "remote")
    FileCache(small_disk / "cache", 10**9).fetch(store, "0.tar", hashes["0.tar"], SIZE)
    (small_disk / "other").write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize))
    assert FileCache(small_disk / "cache", 10**9).fetch(store, "1.tar", hashes["1.tar"], SIZE)


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    store, hashes = make_store(tmp_path / "remote")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CacheError, match=r"cannot keep shards in the cache .*file/cache \(Not a directory\)"):
        FileCache(tmp_path / "file" / "cache", 10**9).fetch(store, "0.tar", hashes["0.tar"], SIZE)
