"""The shard format: plain WebDataset tars with an index, reproducible to the byte.

`<split>-00000.tar` holds `<key>.<ext>` and, with a label, `<key>.cls`; `<split>-00000.npy` is int64 [n, 4]: offset
of the image in the tar, its length in bytes, label (-1 without one), CRC-32 of the image. In a dense data set every
image is followed by `<key>.target.png`, and the index has the target's offset, length and CRC-32 as well: [n, 7].
Tars carry no time and no owner. The checksum lets any single image be verified wherever it was read from: a disk, a
cache, a part of an object.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unic_core.errors import UnicError

BLOCK = 512  # of a tar: every header and every file starts at a multiple
FORMAT = 2  # of dataset.json and the shards
INFO_NAME = "dataset.json"
COLUMNS, TARGET_COLUMNS = 4, 3  # of an index, and what a target adds


class Sample(NamedTuple):
    """An encoded image on its way into a shard."""

    key: str
    extension: str
    data: bytes
    label: int
    target: bytes | None = None  # PNG


class Skipped(NamedTuple):
    """A source image that could not be read, and why."""

    key: str
    reason: str


@dataclass(frozen=True)
class ShardInfo:
    """One shard as dataset.json lists it; `bytes` and `sha256` are those of the tar."""

    name: str
    count: int
    bytes: int
    sha256: str
    index_sha256: str


@dataclass(frozen=True)
class ShardRecord:
    """A finished shard: how many source images it used up, and which of them were skipped."""

    shard: ShardInfo
    consumed: int
    skipped: tuple[Skipped, ...]

    def dump(self) -> bytes:
        """JSON of the record."""
        return json.dumps(asdict(self)).encode()

    @staticmethod
    def parse(data: bytes) -> ShardRecord:
        """The record that `dump` wrote."""
        record = json.loads(data)
        skipped = tuple(Skipped(*row) for row in record["skipped"])
        return ShardRecord(ShardInfo(**record["shard"]), record["consumed"], skipped)


class ShardWriter:
    """Writes one tar to a local file and collects its index."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("wb")
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)
        self._rows: list[tuple[int, ...]] = []

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._tar.offset

    @property
    def count(self) -> int:
        """Images written so far."""
        return len(self._rows)

    def add(self, sample: Sample) -> None:
        """Append one image with its label and target; all images of a shard have a target, or none."""
        offset = self._add_file(f"{sample.key}.{sample.extension}", sample.data)
        if sample.label >= 0:
            self._add_file(f"{sample.key}.cls", str(sample.label).encode())
        row: tuple[int, ...] = (offset, len(sample.data), sample.label, zlib.crc32(sample.data))
        if sample.target is not None:
            offset = self._add_file(f"{sample.key}.target.png", sample.target)
            row += (offset, len(sample.target), zlib.crc32(sample.target))
        self._rows.append(row)

    def close(self) -> NDArray[np.int64]:
        """Finish the tar; returns the index [n, 4 or 7]."""
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return np.array(self._rows, dtype=np.int64).reshape(-1, len(self._rows[0]) if self._rows else COLUMNS)

    def abort(self) -> None:
        """Close the file without finishing it."""
        self._file.close()

    def _add_file(self, name: str, data: bytes) -> int:
        info = tarfile.TarInfo(name)  # mtime, uid and gid are 0, names empty
        info.size = len(data)
        self._tar.addfile(info, io.BytesIO(data))
        return self._tar.offset - -(-len(data) // BLOCK) * BLOCK


def index_bytes(index: NDArray[np.int64]) -> bytes:
    """The index as a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, index, allow_pickle=False)
    return buffer.getvalue()


def parse_index(data: bytes, where: str) -> NDArray[np.int64]:
    """The index [n, 4 or 7] of a .npy file; UnicError when it is none."""
    try:
        index: NDArray[np.int64] = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UnicError(f"{where} is no shard index ({error}); prepare the data set again") from None
    if index.ndim != 2 or index.shape[1] not in (COLUMNS, COLUMNS + TARGET_COLUMNS) or index.dtype != np.int64:
        raise UnicError(f"{where} is no shard index of shape [n, {COLUMNS}]; prepare the data set again")
    return index
