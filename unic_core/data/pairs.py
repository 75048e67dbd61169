"""Images with their masks or depths, one by one for a test and in random batches for training a head."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from unic_core.data.dataset import ShardedDataset
from unic_core.data.decode import BrokenImageError, decode
from unic_core.data.subset import Indices, shuffled
from unic_core.data.targets import MILLIMETERS, decode_target
from unic_core.data.workers import in_workers
from unic_core.draw import Draw
from unic_core.errors import UnicError


class Pair(NamedTuple):
    """Images and what is predicted of them; a batch adds a first dimension to both.

    image: uint8 [3, H, W]. target: [H, W], class numbers int64 (255: not scored), or meters float32 (0: unknown).
    """

    image: Tensor
    target: Tensor


Augment = Callable[[Pair, list[float]], Pair]
"""A random view: the pair and uniform random numbers in [0, 1) that decide everything about it."""


class _Answer(NamedTuple):
    """Errors travel as text, because an exception would arrive wrapped in its traceback."""

    pair: Pair | None
    error: str | None


def all_pairs(dataset: ShardedDataset, workers: int = 0) -> Iterator[Pair]:
    """All images in order, as they are.

    Raises:
        UnicError: the data set has no targets, or an image or shard is unreadable.
    """
    yield from _pairs(_TestPairs(dataset), workers)


def train_pairs(
    dataset: ShardedDataset, augment: Augment, numbers: int, batch: int, steps: int, seed: int, workers: int = 0
) -> Iterator[Pair]:
    """`steps` batches of random views; the data set is shuffled anew for every pass over it.

    What is drawn depends on (seed, pass, image) alone. `numbers`: how many random numbers `augment` uses.

    Raises:
        UnicError: as in `all_pairs`.
    """
    yield from _pairs(_TrainPairs(dataset, augment, numbers, batch, steps, seed), workers)


def _pairs(images: Dataset[_Answer], workers: int) -> Iterator[Pair]:
    with closing(in_workers(images, workers)) as answers:
        for answer in answers:
            if answer.pair is None:
                raise UnicError(answer.error or "a data worker answered without an image; start again")
            yield answer.pair


def _read(dataset: ShardedDataset, index: int) -> Pair:
    try:
        image = decode(dataset.read(index))
        values = decode_target(dataset.read_target(index))
    except BrokenImageError as error:
        raise UnicError(f"{dataset.uri}/{dataset.key(index)} is unreadable: {error}") from None
    if dataset.target == "mask":
        return Pair(image, torch.from_numpy(values.astype(np.int64)))
    return Pair(image, torch.from_numpy(values.astype(np.float32) / np.float32(MILLIMETERS)))


class _TestPairs(Dataset[_Answer]):
    def __init__(self, dataset: ShardedDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> _Answer:
        try:
            return _Answer(_read(self._dataset, index), None)
        except (UnicError, OSError) as error:
            return _Answer(None, str(error))


class _TrainPairs(Dataset[_Answer]):
    """Step number to batch."""

    def __init__(
        self, dataset: ShardedDataset, augment: Augment, numbers: int, batch: int, steps: int, seed: int
    ) -> None:
        self._dataset, self._augment, self._numbers = dataset, augment, numbers
        self._batch, self._steps, self._seed = batch, steps, seed
        self._pass, self._order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> _Answer:
        try:
            views = [self._view(step * self._batch + i) for i in range(self._batch)]
        except (UnicError, OSError) as error:
            return _Answer(None, str(error))
        return _Answer(Pair(torch.stack([v.image for v in views]), torch.stack([v.target for v in views])), None)

    def _view(self, position: int) -> Pair:
        number, place = divmod(position, len(self._dataset))
        index = int(self._ordered(number)[place])
        uniform = Draw(self._seed, number, torch.tensor([index])).uniform("dense", self._numbers)[0].tolist()
        return self._augment(_read(self._dataset, index), uniform)

    def _ordered(self, number: int) -> Indices:
        """The order of one pass over the data set."""
        if self._pass != number:
            self._pass, self._order = number, shuffled(len(self._dataset), self._seed * 1_000_003 + number)
        return self._order


def pad(pair: Pair, height: int, width: int, color: Tensor, fill: float) -> Pair:
    """At the right and the bottom, up to a size: the image with `color` uint8 [3], the target with `fill`."""
    h, w = pair.target.shape
    if h >= height and w >= width:
        return pair
    size = (max(h, height), max(w, width))
    image = color[:, None, None].expand(3, *size).clone()
    target = torch.full(size, fill, dtype=pair.target.dtype)
    image[:, :h, :w], target[:h, :w] = pair.image, pair.target
    return Pair(image, target)


def crop(pair: Pair, top: int, left: int, height: int, width: int) -> Pair:
    """A part of a pair, as views."""
    rows, columns = slice(top, top + height), slice(left, left + width)
    return Pair(pair.image[:, rows, columns], pair.target[rows, columns])


def flip(pair: Pair) -> Pair:
    """Mirrored."""
    return Pair(pair.image.flip(-1), pair.target.flip(-1))


def place(u: float, room: int) -> int:
    """A whole number in 0..room from a uniform random number in [0, 1)."""
    return min(room, math.floor(u * (room + 1)))
