"""Find the demo's images: a folder of yours, torchvision's mirrors, or the Debian package. No root needed.

Each way ends in a directory with the four IDX files of the MNIST family, checked to the last byte. What was
fetched stays in a cache directory, so that a second call reads four headers and returns.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import logging
import math
import os
import shutil
import struct
import subprocess
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast
from urllib.request import Request, urlopen

from unic_core.errors import UnicError

FOLDER_VARIABLE = "UNIC_FASHION_MNIST"
PROBE_SECONDS = 4.0  # for name resolution, connection and answer together
IDLE_SECONDS = 10.0  # a download that is silent for longer has failed
APT_SECONDS = 180.0
_RECEIPT = "receipt.json"

Say = Callable[[str], None]
_log = logging.getLogger(__name__)


class _UnavailableError(Exception):
    """One way does not work here; the text is the reason, as a clause."""


class Mirrors(NamedTuple):
    """Base addresses, and the MD5 of every file below them."""

    addresses: tuple[str, ...]
    checksums: dict[str, str]


@dataclass(frozen=True)
class IdxSet:
    """A data set in the four IDX files of the MNIST family.

    `mirrors`: asked only when a download is tried; `package`: the Debian package that holds the files;
    `counts`: images of the `train` and the `t10k` files; `side`: height and width in pixels.
    """

    name: str
    title: str
    mirrors: Callable[[], Mirrors]
    package: str | None = None
    counts: tuple[tuple[str, int], ...] = (("train", 60_000), ("t10k", 10_000))
    side: int = 28

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """File name without `.gz` -> shape of its array."""
        images = {f"{split}-images-idx3-ubyte": (n, self.side, self.side) for split, n in self.counts}
        return images | {f"{split}-labels-idx1-ubyte": (n,) for split, n in self.counts}


@dataclass(frozen=True)
class Found:
    """`directory` holds the four IDX files; `way` says where they come from, as a noun phrase."""

    directory: Path
    way: str


def find_fashion_mnist(cache: Path, folder: str | Path | None = None, say: Say = _log.info) -> Path:
    """Fashion-MNIST: from `folder` (or the variable UNIC_FASHION_MNIST), the cache, a mirror or the package.

    Returns the directory with the four IDX files.

    Args:
        cache: directory of the demo; `fashion-mnist/` below it is made and reused.
        folder: a directory with the IDX files, plain or `.gz`; it is used in place and never written to.
        say: receives one line per way that was tried.

    Raises:
        UnicError: `folder` does not hold the data set, or no way works; the sentence names all of them.
    """
    mirrors = partial(_torchvision_mirrors, "FashionMNIST")
    wanted = IdxSet("fashion-mnist", "Fashion-MNIST", mirrors, package="dataset-fashion-mnist")
    return find(wanted, cache, folder or os.environ.get(FOLDER_VARIABLE) or None, say).directory


def find_mnist(cache: Path, say: Say = _log.info) -> Path | None:
    """MNIST where there is a network (or it is cached already), else None, the reason being said."""
    wanted = IdxSet("mnist", "MNIST", partial(_torchvision_mirrors, "MNIST"))
    try:
        return find(wanted, cache, None, say).directory
    except UnicError:
        say("MNIST is left out: it needs a network")
        return None


def find(wanted: IdxSet, cache: Path, folder: str | Path | None, say: Say) -> Found:
    """The first way that works: the user's folder, the cache, a mirror, the Debian package."""
    if folder is not None:
        return _own_folder(wanted, Path(folder).expanduser().absolute(), say)
    target = cache.expanduser().absolute() / wanted.name  # tools are started in other directories
    cached = _cached(wanted, target)
    if cached is not None:
        say(f"{wanted.title}: found in {target} (from {cached.way})")
        return cached
    ways: dict[str, Callable[[IdxSet, Path], None]] = {"torchvision's mirrors": _download}
    if wanted.package is not None:
        ways[f"the Debian package {wanted.package}"] = _unpack_package
    reasons = []
    for way, fetch in ways.items():
        try:
            _fetch_into(wanted, target, way, fetch)
        except _UnavailableError as reason:
            reasons.append(f"{way}: {reason}")
            say(f"{wanted.title}: not from {way}: {reason}")
            continue
        say(f"{wanted.title}: from {way}")
        return Found(target, way)
    raise UnicError(
        f"cannot get {wanted.title} ({'; '.join(reasons)}); give this machine a network, or make `apt-get "
        f"download` work on it, or put the four IDX files into a folder and name it in {FOLDER_VARIABLE}"
    )


# ---------------------------------------------------------------- the ways


def _own_folder(wanted: IdxSet, folder: Path, say: Say) -> Found:
    try:
        _check(wanted, folder)
    except _UnavailableError as reason:
        raise UnicError(
            f"{folder} does not hold {wanted.title}: {reason}; it must contain the files "
            f"{', '.join(wanted.shapes())} (each plain or .gz)"
        ) from None
    say(f"{wanted.title}: from the folder {folder}")
    return Found(folder, f"the folder {folder}")


def _cached(wanted: IdxSet, target: Path) -> Found | None:
    """What an earlier call left in `target`, if the files still have the sizes noted then."""
    try:
        receipt = json.loads((target / _RECEIPT).read_text())
        sizes = {_locate(target, name).name: _locate(target, name).stat().st_size for name in wanted.shapes()}
    except (OSError, ValueError, _UnavailableError):
        return None
    return Found(target, receipt["way"]) if sizes == receipt["sizes"] else None


def _fetch_into(wanted: IdxSet, target: Path, way: str, fetch: Callable[[IdxSet, Path], None]) -> None:
    """Fetch beside `target`, check, then rename: `target` is whole or absent."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{wanted.name}-", dir=target.parent))
    except OSError as error:
        raise UnicError(f"cannot write to {target.parent}: {error.strerror}; choose another directory") from None
    try:
        fetch(wanted, part)
        _check(wanted, part)
        files = [_locate(part, name) for name in wanted.shapes()]
        receipt = {"way": way, "sizes": {file.name: file.stat().st_size for file in files}}
        (part / _RECEIPT).write_text(json.dumps(receipt, indent=1))
        part.chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
    except OSError as error:
        raise _UnavailableError(f"{error.strerror or error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _torchvision_mirrors(name: str) -> Mirrors:
    from torchvision import datasets  # seconds to import: only when a download is tried

    source = getattr(datasets, name)
    return Mirrors(tuple(source.mirrors), dict(source.resources))


def _download(wanted: IdxSet, part: Path) -> None:
    """torchvision's mirrors and checksums, fetched with time-outs."""
    addresses, checksums = wanted.mirrors()
    first = next(iter(checksums))
    mirror = next((address for address in addresses if _answers(address + first)), None)
    if mirror is None:
        raise _UnavailableError(f"no mirror answered within {PROBE_SECONDS:.0f} seconds")
    for name, checksum in checksums.items():
        try:
            with urlopen(mirror + name, timeout=IDLE_SECONDS) as answer:  # noqa: S310 (torchvision's own address)
                data = answer.read()
        except OSError as error:
            raise _UnavailableError(f"{name} could not be fetched ({error})") from None
        if hashlib.md5(data, usedforsecurity=False).hexdigest() != checksum:
            raise _UnavailableError(f"{name} arrived with a wrong checksum")
        (part / name).write_bytes(data)


def _answers(url: str) -> bool:
    """Whether `url` exists and answers in time. In a thread, because name resolution knows no time-out."""
    answered = threading.Event()

    def ask() -> None:
        with (
            contextlib.suppress(OSError),
            urlopen(Request(url, method="HEAD"), timeout=PROBE_SECONDS) as answer,  # noqa: S310
        ):
            if answer.status == 200:
                answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return answered.is_set()


def _unpack_package(wanted: IdxSet, part: Path) -> None:
    """`apt-get download` + `dpkg -x`; with package lists of our own when the system has none."""
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise _UnavailableError(f"{tool} is not installed")
    package = cast(str, wanted.package)
    work = part / "apt"
    for needed in ("lists/partial", "cache/archives/partial"):
        (work / needed).mkdir(parents=True)
    own = [
        "-o",
        f"Dir::State::lists={work}/lists",
        "-o",
        f"Dir::Cache={work}/cache",
        "-o",
        "APT::Sandbox::User=",
    ]
    try:
        _run(["apt-get", "-q", "download", package], cwd=work)
    except _UnavailableError:
        _run(["apt-get", "-q", *own, "update"], cwd=work)
        _run(["apt-get", "-q", *own, "download", package], cwd=work)
    archives = list(work.glob(f"{package}_*.deb"))
    if not archives:
        raise _UnavailableError("apt-get left no package file")
    _run(["dpkg", "-x", str(archives[0]), str(work / "root")], cwd=work)
    for name in wanted.shapes():
        found = [path for path in (work / "root").rglob(f"{name}*") if path.name in (name, f"{name}.gz")]
        if not found:
            raise _UnavailableError(f"the package holds no {name}")
        found[0].rename(part / found[0].name)
    shutil.rmtree(work)


def _run(command: list[str], cwd: Path) -> None:
    environment = os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    label = " ".join(word for word in command[:2] if not word.startswith("-"))
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=APT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _UnavailableError(f"{label} took longer than {APT_SECONDS:.0f} seconds") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()
        raise _UnavailableError(f"{label} failed ({lines[0].removeprefix('E: ') if lines else 'no message'})")


# ---------------------------------------------------------------- IDX


def _check(wanted: IdxSet, directory: Path) -> None:
    """Headers, counts and lengths of all four files."""
    for name, shape in wanted.shapes().items():
        path = _locate(directory, name)
        try:
            with _open(path) as file:
                found = _read_shape(file, path.name)
                length = sum(len(chunk) for chunk in iter(lambda: file.read(1 << 20), b""))
        except (OSError, EOFError, zlib.error) as error:
            raise _UnavailableError(f"{path.name} cannot be read ({error})") from None
        if found != shape:
            raise _UnavailableError(f"{path.name} has the shape {_times(found)} where {_times(shape)} is expected")
        if length != math.prod(shape):
            raise _UnavailableError(f"{path.name} holds {length} of {math.prod(shape)} bytes")


def _locate(directory: Path, name: str) -> Path:
    for path in (directory / name, directory / f"{name}.gz"):
        if path.is_file():
            return path
    raise _UnavailableError(f"{name} is missing")


@contextlib.contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    with path.open("rb") as raw:
        if path.suffix == ".gz":
            with gzip.open(raw) as unpacked:
                yield cast(BinaryIO, unpacked)
        else:
            yield raw


def _read_shape(file: BinaryIO, name: str) -> tuple[int, ...]:
    """The IDX header: two zero bytes, the type (8: byte), the rank, each size as big-endian uint32."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:3] != b"\x00\x00\x08":
        raise _UnavailableError(f"{name} is no IDX file of bytes")
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise _UnavailableError(f"{name} ends inside its header")
    return struct.unpack(f">{magic[3]}I", sizes)


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{size:,}" for size in shape)
