"""All images of a split in order, for evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from unic_core.data.dataset import ShardedDataset
from unic_core.data.decode import BrokenImageError, decode
from unic_core.data.geometry import center
from unic_core.data.workers import in_workers
from unic_core.errors import UnicError


def own_batches(images: int, batch: int, rank: int, world: int) -> range:
    """Numbers of the batches that process `rank` of `world` reads: contiguous, as even as whole batches allow."""
    total = math.ceil(images / batch)
    return range(total * rank // world, total * (rank + 1) // world)


def eval_batches(
    dataset: ShardedDataset, image_size: int, batch: int, workers: int = 0, rank: int = 0, world: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """All images in order: (uint8 [b, 3, S, S], labels int64 [b]); short side resized, center crop (section 1.7).

    With several processes those of `own_batches`: every batch holds the same images as with one.

    Raises:
        UnicError: an image or a shard is unreadable.
    """
    numbers = own_batches(len(dataset), batch, rank, world)
    with closing(in_workers(_EvalImages(dataset, image_size, batch, numbers), workers)) as answers:
        for images, labels, error in answers:
            if error is not None:
                raise UnicError(error)
            yield images, labels


class _EvalImages(Dataset[tuple[Tensor, Tensor, str | None]]):
    """Some batches of a data set, by their numbers."""

    def __init__(self, dataset: ShardedDataset, image_size: int, batch: int, numbers: range) -> None:
        self._dataset, self._image_size, self._batch, self._numbers = dataset, image_size, batch, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor, str | None]:
        begin = self._numbers[place] * self._batch
        worker = get_worker_info()
        for turn in (0, 1):  # this batch and the next one of this worker
            first = begin + turn * self._batch * (worker.num_workers if worker else 1)
            self._dataset.announce(np.arange(first, min(first + self._batch, len(self._dataset))))
        labels = torch.from_numpy(self._dataset.labels[begin : begin + self._batch].copy())
        images = torch.empty(len(labels), 3, self._image_size, self._image_size, dtype=torch.uint8)
        for i in range(len(labels)):
            try:
                images[i] = center(decode(self._dataset.read(begin + i)), self._image_size)
            except BrokenImageError as error:
                return images, labels, f"{self._dataset.uri}/{self._dataset.key(begin + i)} is unreadable: {error}"
            except (UnicError, OSError) as error:
                return images, labels, str(error)
        return images, labels, None
