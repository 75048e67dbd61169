"""The demo's images are found, checked and cached, on every way; failures are one sentence."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from unic_core.errors import UnicError
from workflows import demo_data
from workflows.demo_data import IdxSet, Mirrors, find, find_fashion_mnist

REFUSING = "http://127.0.0.1:9/"  # nothing listens on the discard port
SMALL = IdxSet("small", "Small", lambda: Mirrors((REFUSING,), {"x": "0"}), counts=(("train", 12), ("t10k", 5)), side=4)


def write_set(directory: Path, wanted: IdxSet = SMALL, packed: bool = True) -> dict[str, str]:
    """The four files of `wanted` with arbitrary content; file name -> MD5."""
    directory.mkdir(parents=True, exist_ok=True)
    checksums = {}
    for name, shape in wanted.shapes().items():
        header = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
        data = header + np.random.default_rng(0).integers(0, 10, shape, dtype=np.uint8).tobytes()
        path = directory / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(data) if packed else data)
        checksums[path.name] = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    return checksums


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[IdxSet, Path]]:
    """A real server of the small set, as torchvision's mirrors would be."""
    served = tmp_path / "served"
    checksums = write_set(served)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(served)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}/"
    yield replace(SMALL, mirrors=lambda: Mirrors((address,), checksums)), served
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.mark.parametrize("packed", [True, False])
def test_own_folder_is_used_in_place(tmp_path: Path, lines: list[str], packed: bool) -> None:
    write_set(tmp_path / "mine", packed=packed)
    before = sorted(p.name for p in (tmp_path / "mine").iterdir())
    found = find(SMALL, tmp_path / "cache", tmp_path / "mine", lines.append)
    assert found.directory == tmp_path / "mine"
    assert sorted(p.name for p in found.directory.iterdir()) == before
    assert not (tmp_path / "cache").exists()
    assert lines == [f"Small: from the folder {tmp_path / 'mine'}"]


def test_own_folder_without_a_file_is_refused(tmp_path: Path, lines: list[str]) -> None:
    write_set(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UnicError, match=r"t10k-labels-idx1-ubyte is missing; it must contain"):
        find(SMALL, tmp_path / "cache", tmp_path, lines.append)


def test_own_folder_with_other_counts_is_refused(tmp_path: Path, lines: list[str]) -> None:
    write_set(tmp_path, replace(SMALL, counts=(("train", 11), ("t10k", 5))))
    with pytest.raises(UnicError, match=r"shape 11 x 4 x 4 where 12 x 4 x 4 is expected"):
        find(SMALL, tmp_path / "cache", tmp_path, lines.append)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda data: data[:-7], "holds 185 of 192 bytes"),
        (lambda data: data[:9], "ends inside its header"),
        (lambda data: b"\x89PNG" + data[4:], "is no IDX file of bytes"),
        (lambda data: b"", "is no IDX file of bytes"),
    ],
)
def test_damaged_file_is_named(tmp_path: Path, lines: list[str], damage: object, sentence: str) -> None:
    write_set(tmp_path, packed=False)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(UnicError, match=rf"train-images-idx3-ubyte {sentence}"):
        find(SMALL, tmp_path / "cache", tmp_path, lines.append)


def test_cut_gzip_is_refused(tmp_path: Path, lines: list[str]) -> None:
    write_set(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UnicError, match=r"train-images-idx3-ubyte\.gz cannot be read"):
        find(SMALL, tmp_path / "cache", tmp_path, lines.append)


def test_mirror_then_cache(mirror: tuple[IdxSet, Path], tmp_path: Path, lines: list[str]) -> None:
    wanted, served = mirror
    first = find(wanted, tmp_path / "cache", None, lines.append)
    assert first.way == "torchvision's mirrors"
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == ["small"]  # nothing half-written beside it
    shutil.rmtree(served)  # whatever asked the mirror again would fail
    assert find(wanted, tmp_path / "cache", None, lines.append) == first
    assert lines[-1] == f"Small: found in {tmp_path / 'cache' / 'small'} (from torchvision's mirrors)"


def test_damaged_cache_is_fetched_again(mirror: tuple[IdxSet, Path], tmp_path: Path, lines: list[str]) -> None:
    wanted, _ = mirror
    directory = find(wanted, tmp_path, None, lines.append).directory
    damaged = directory / "train-images-idx3-ubyte.gz"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:30])
    find(wanted, tmp_path, None, lines.append)
    assert damaged.read_bytes() == whole


def test_wrong_checksum_leaves_nothing(mirror: tuple[IdxSet, Path], tmp_path: Path, lines: list[str]) -> None:
    wanted, _ = mirror
    addresses, checksums = wanted.mirrors()
    wanted = replace(wanted, mirrors=lambda: Mirrors(addresses, dict.fromkeys(checksums, "0" * 32)))
    with pytest.raises(UnicError, match="wrong checksum"):
        find(wanted, tmp_path / "cache", None, lines.append)
    assert list((tmp_path / "cache").iterdir()) == []


def test_no_way_names_all_ways(tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # neither apt-get nor dpkg
    wanted = replace(SMALL, package="dataset-small")
    with pytest.raises(UnicError) as caught:
        find(wanted, tmp_path / "cache", None, lines.append)
    for part in ("no mirror answered", "apt-get is not installed", "UNIC_FASHION_MNIST", "network"):
        assert part in str(caught.value)
    assert len(lines) == 2  # each way said why not


def test_silent_host_is_given_up(tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a limit this would never end: the host keeps the connection open until the search is over."""
    monkeypatch.setattr(demo_data, "PROBE_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and never answers
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(UnicError, match="no mirror answered within"):
            find(replace(SMALL, mirrors=lambda: Mirrors((address,), {"x": "0"})), tmp_path, None, lines.append)


def test_the_variable_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIC_FASHION_MNIST", str(tmp_path / "nowhere"))
    with pytest.raises(UnicError, match=r"nowhere does not hold Fashion-MNIST"):
        find_fashion_mnist(tmp_path / "cache")


def test_failing_package_says_why(tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for tool in ("apt-get", "dpkg"):
        (tmp_path / tool).write_text("#!/bin/sh\necho 'E: Unable to locate package dataset-small' >&2\nexit 100\n")
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    wanted = replace(SMALL, package="dataset-small")
    with pytest.raises(UnicError, match=r"apt-get failed \(Unable to locate package dataset-small\)"):
        find(wanted, tmp_path / "cache", None, lines.append)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_relative_cache_and_a_relative_folder_work(
    tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package's tools run in a directory of their own; what is found is used by processes elsewhere."""
    write_set(tmp_path / "packed")
    (tmp_path / "bin").mkdir()
    scripts = {"apt-get": "touch dataset-small_1.0_all.deb", "dpkg": f'mkdir -p "$3" && cp {tmp_path}/packed/* "$3"'}
    for tool, script in scripts.items():
        (tmp_path / "bin" / tool).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    found = find(replace(SMALL, package="dataset-small"), Path("cache"), None, lines.append)
    assert found == demo_data.Found(tmp_path / "cache" / "small", "the Debian package dataset-small")
    assert find(SMALL, Path("elsewhere"), "packed", lines.append).directory == tmp_path / "packed"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt-get is not installed on this machine")
def test_debian_package(tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNIC_FASHION_MNIST", raising=False)
    monkeypatch.setattr("torchvision.datasets.FashionMNIST.mirrors", [REFUSING])
    try:
        found = find_fashion_mnist(tmp_path, say=lines.append)
    except UnicError as error:
        pytest.skip(f"no Debian mirror can be reached: {error}")
    assert lines[-1] == "Fashion-MNIST: from the Debian package dataset-fashion-mnist"
    with gzip.open(found / "train-images-idx3-ubyte.gz") as file:
        assert struct.unpack(">4xIII", file.read(16)) == (60_000, 28, 28)
    assert sorted(p.name for p in found.iterdir()) == sorted(
        ["receipt.json", *(f"{name}.gz" for name in SMALL.shapes())]
    )
    monkeypatch.setenv("PATH", str(tmp_path))  # neither apt-get nor dpkg: only the cache is left
    assert find_fashion_mnist(tmp_path, say=lines.append) == found
