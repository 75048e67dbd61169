"""Features on disk or S3: computed once per model, data set and transform, shared by all probes and runs.

    <root>/cache/features/<sha256 of the model>/<fingerprint>-<split>-<pixels>px-<token>-<precision>.npy

float32 [n, D] in the order of the data set, which also holds the labels. Files are memory-mapped, so that a probe reads
what it needs; those of an object store are kept in a directory of this machine.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

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
    ) -> FeatureSet:
        """Take the features of all images and store them; memory holds one batch at a time.

        Raises:
            UnicError: as in `extract`, or the store can't be written.
        """
        folder = self._store.root if isinstance(self._store, LocalStore) else self._cache
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as scratch:
            path = Path(scratch) / "features.npy"
            out: np.memmap[tuple[int, ...], np.dtype[np.float32]] | None = None
            done = 0
            for x, _ in feature_batches(model, batches, key.token, key.precision, device, progress):
                if out is None:
                    shape = (len(labels), x.shape[1])
                    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
                out[done : done + len(x)] = x.numpy()
                done += len(x)
            if out is None or done != len(labels):
                raise UnicError(f"{done} images were read where {len(labels)} are expected; check the data set")
            out.flush()
            del out
            if isinstance(self._store, LocalStore):
                target = self._store.root / key.name
            else:
                self._store.upload(path, key.name)
                target = self._cache / key.name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
        found = self.load(key, labels)
        if found is None:
            raise UnicError(f"features were written to {target} but can't be read back; check the disk")
        return found

    def _local(self, key: FeatureKey) -> Path:
        if isinstance(self._store, LocalStore):
            return self._store.root / key.name
        path = self._cache / key.name
        if not path.exists():
            self._store.download(key.name, path)
        return path
