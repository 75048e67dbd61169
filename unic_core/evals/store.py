"""Features on disk or S3: computed once per model, data set and transform, shared by all probes and runs.

    <root>/cache/features/<sha256 of the model>/<fingerprint>-<split>-<pixels>px-<token>-<precision>.npy

float32 [n, D] in the order of the data set, which also holds the labels. Files are memory-mapped, so that a probe reads
what it needs; those of an object store are kept in a directory of this machine.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from unic_core.distributed import agree_max, all_sum, broadcast, rank, together
from unic_core.errors import UnicError
from unic_core.evals.features import FeatureModel, FeatureSet, Progress, TokenChoice, feature_batches
from unic_core.storage import LocalStore, open_store


@dataclass(frozen=True)
class FeatureKey:
    """What features depend on. `sha256`: of the model's weights; `fingerprint`, `split`: of the data set."""

    sha256: str
    fingerprint: str
    split: str
    pixels: int
    token: TokenChoice
    precision: Literal["fp32", "bf16"]

    @property
    def name(self) -> str:
        """Key of the file below the root of a `FeatureStore`."""
        return f"{self.sha256}/{self.fingerprint}-{self.split}-{self.pixels}px-{self.token}-{self.precision}.npy"


class FeatureStore:
    """Features below one URI."""

    def __init__(self, uri: str, cache: Path) -> None:
        """`cache`: where files of an object store are kept on this machine."""
        self._store = open_store(uri)
        self._cache = cache

    def load(self, key: FeatureKey, labels: Tensor) -> FeatureSet | None:
        """Stored features of the images with these labels [n]; None when there are none, or they are damaged."""
        try:
            x = np.load(self._local(key), mmap_mode="c", allow_pickle=False)
        except (FileNotFoundError, ValueError, EOFError):
            return None
        if x.ndim != 2 or len(x) != len(labels) or x.dtype != np.float32:
            return None
        return FeatureSet(torch.from_numpy(x), labels)

    def compute(
        self,
        key: FeatureKey,
        labels: Tensor,
        model: FeatureModel,
        batches: Iterable[tuple[Tensor, Tensor]],
        device: torch.device | str,
        progress: Progress | None = None,
        first: int = 0,
    ) -> FeatureSet:
        """Take the features of all images and store them; memory holds one batch at a time.

        The processes of a group call it together, on one machine, each with its own `batches`, which begin at image
        number `first`: they write into one file.

        Raises:
            UnicError: as in `extract`, or the store can't be written.
        """
        folder = self._store.root if isinstance(self._store, LocalStore) else self._cache
        number = int(broadcast(torch.tensor(secrets.randbits(62))))  # this computation among those at the same time
        part = folder / f".part-{number:x}.npy"
        parts = feature_batches(model, batches, key.token, key.precision, device, progress)
        try:
            head = together(lambda: next(parts, None))
            width = agree_max(0 if head is None else head[0].shape[1])
            if not width:
                raise UnicError(f"no images were read where {len(labels)} are expected; check the data set")
            together(lambda: _create(part, (len(labels), width)) if rank() == 0 else None)
            done = together(lambda: _write(part, first, parts if head is None else chain([head], parts)))
            done = int(all_sum(torch.tensor(done)))
            if done != len(labels):
                raise UnicError(f"{done} images were read where {len(labels)} are expected; check the data set")
            together(lambda: self._keep(part, key.name) if rank() == 0 else None)
        finally:
            if rank() == 0:
                part.unlink(missing_ok=True)
        found = self.load(key, labels)
        if found is None:
            raise UnicError(f"the features {key.name} were written but can't be read back; check the disk")
        return found

    def _keep(self, part: Path, name: str) -> None:
        """Move a finished file to its place."""
        if isinstance(self._store, LocalStore):
            target = self._store.root / name
        else:
            self._store.upload(part, name)
            target = self._cache / name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, target)

    def _local(self, key: FeatureKey) -> Path:
        if isinstance(self._store, LocalStore):
            return self._store.root / key.name
        path = self._cache / key.name
        if not path.exists():
            self._store.download(key.name, path)
        return path


def _create(path: Path, shape: tuple[int, int]) -> None:
    """An empty file for features."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape).flush()
    except OSError as error:
        raise UnicError(f"cannot write features to {path.parent}: {error.strerror}; choose another place") from error


def _write(path: Path, first: int, parts: Iterable[tuple[Tensor, Tensor]]) -> int:
    """Write features from row `first` on; returns how many rows."""
    done = 0
    out = np.lib.format.open_memmap(path, mode="r+")
    for x, _ in parts:
        if first + done + len(x) <= len(out):
            out[first + done : first + done + len(x)] = x.numpy()
        done += len(x)
    out.flush()
    return done
