from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from unic_core.errors import UnicError
from unic_core.storage import LocalStore, join, open_store, read_uri


def test_objects_come_back_whole_and_in_parts(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "root"))
    store.put("a/b.bin", b"0123456789")
    assert store.get("a/b.bin") == b"0123456789"
    assert store.get("a/b.bin", start=2, length=3) == b"234"
    assert store.child("a").get("b.bin") == b"0123456789"
    assert read_uri(str(tmp_path / "root" / "a" / "b.bin")) == b"0123456789"


def test_listing_is_sorted_sized_and_by_prefix(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    for key in ("b", "a/2", "a/10", "ab/1"):
        store.put(key, key.encode())
    assert store.list() == {"a/10": 4, "a/2": 3, "ab/1": 4, "b": 1}
    assert list(store.list("a")) == ["a/10", "a/2", "ab/1"]
    assert list(store.list("a/")) == ["a/10", "a/2"]
    assert LocalStore(str(tmp_path / "none")).list() == {}


def test_deleting_removes_empty_directories(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    store.put("a/1", b"x")
    store.delete(["a/1", "a/none"])
    assert not (tmp_path / "a").exists()
    assert not store.exists("a/1")


def test_missing_objects_raise_file_not_found(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        store.get("none")
    with pytest.raises(FileNotFoundError):
        store.download("none", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    store.put("file", b"")
    with pytest.raises(FileNotFoundError):
        store.get("file/below")


def test_unknown_schemes_are_refused() -> None:
    with pytest.raises(UnicError, match="nothing installed serves gopher://"):
        open_store("gopher://host/x")


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    """The file-size limit of the process stands in for the disk: the kernel refuses the write in the same place."""
    store = LocalStore(str(tmp_path))
    store.put("kept", b"old")
    pid = os.fork()
    if pid == 0:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            store.put("kept", b"x" * 5000)
        except UnicError as error:
            os._exit(0 if "free some space" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert store.get("kept") == b"old"
    assert list(tmp_path.iterdir()) == [tmp_path / "kept"]


def test_join_keeps_the_scheme() -> None:
    assert join("s3://bucket/", "a", "/b/") == "s3://bucket/a/b"
