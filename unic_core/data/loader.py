"""Global training batches: the same images at the same step, whatever the world size, workers and restarts."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from copy import copy
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from unic_core.config import AugmentConfig, DataConfig
from unic_core.data.dataset import ShardedDataset
from unic_core.data.decode import BrokenImageError, decode
from unic_core.data.geometry import Geometry, crop_and_flip, draw_geometry
from unic_core.data.order import epoch_order, locate
from unic_core.data.subset import Indices
from unic_core.data.workers import WorkersKilledError, in_workers
from unic_core.draw import Draw
from unic_core.errors import UnicError

_log = logging.getLogger(__name__)

_PREFETCH = 4  # batches per worker
_REPLACEMENTS = 8  # samples tried in place of an unreadable one
_AHEAD = 2  # requests of a worker whose images are fetched while it decodes the one before
_KILLED = 3  # times per epoch that killed workers are replaced


class RawBatch(NamedTuple):
    """This rank's part of one micro-batch, cropped and flipped.

    images: uint8 [b, 3, S, S]. samples: int64 [b], global sample numbers, the counters of `Draw`.
    micro: number of the micro-batch in the step. global_size: images of this micro-batch over all ranks.
    """

    images: Tensor
    samples: Tensor
    epoch: int
    step: int
    micro: int
    global_size: int


class _Request(NamedTuple):
    """What a worker is asked to load, and what it will be asked for next."""

    step: int
    micro: int
    epoch: int
    samples: Indices
    global_size: int
    ahead: Indices


class _Broken(NamedTuple):
    sample: int
    key: str
    reason: str


class _Answer(NamedTuple):
    """A worker's reply; errors travel as text, because an exception would arrive wrapped in its traceback."""

    batch: RawBatch | None
    broken: list[_Broken]
    error: str | None
    notes: list[str]


class TrainLoader:
    """Endless training batches of one rank, from `start_step` on.

    A (micro-)batch is a slice of the epoch's global order; every rank takes its contiguous part of it, parts
    differing by at most one image. The last, incomplete batch of an epoch is dropped. `data.max_broken`
    limits the unreadable images that one process meets in an epoch; each is replaced by another of its data set.
    Workers that are killed are replaced, and the batches go on as if nothing had happened.
    """

    def __init__(
        self,
        datasets: Sequence[ShardedDataset],
        config: DataConfig,
        image_size: int,
        seed: int,
        batch: int,
        micro_batches: int = 1,
        rank: int = 0,
        world: int = 1,
        start_step: int = 0,
    ) -> None:
        """`datasets` are those of `config.train`, in its order; `batch` counts the images of a step on all ranks.

        Raises:
            UnicError: an epoch has fewer images than a batch.
        """
        self._workers, self._max_broken = config.workers, config.max_broken
        sizes = [len(dataset) for dataset in datasets]
        self._plan = _Plan(sizes, config, seed, batch, micro_batches, rank, world, start_step)
        for dataset in datasets:
            dataset.plan(config.chunk, datasets)
        self._images = _TrainImages(datasets, config.augment, image_size, seed)

    @property
    def steps_per_epoch(self) -> int:
        """Complete batches in an epoch."""
        return self._plan.steps_per_epoch

    def describe(self, sample: int) -> str:
        """What people call a global sample number: where its image lies."""
        return self._images.describe(sample)

    def __iter__(self) -> Iterator[RawBatch]:
        """Batches without end; workers live as long as the iterator and end with it.

        Raises:
            UnicError: too many unreadable images in an epoch, a damaged shard, or workers killed again and again.
        """
        counter, killed, said = _BrokenCounter(self._max_broken), _Killed(), set[str]()
        given = 0  # batches
        while True:
            try:
                with closing(in_workers(self._images, self._workers, self._plan.skip(given), _PREFETCH)) as answers:
                    for answer in answers:
                        for note in (note for note in answer.notes if note not in said):
                            said.add(note)
                            _log.warning("%s", note)
                        if answer.error is not None or answer.batch is None:
                            raise UnicError(answer.error or "a data worker answered without a batch; start again")
                        counter.count(answer.batch.epoch, answer.broken)
                        killed.epoch = answer.batch.epoch
                        given += 1
                        yield answer.batch
            except WorkersKilledError:
                if not killed.is_tolerable():
                    raise


class _Killed:
    """How often workers were killed in the current epoch."""

    def __init__(self) -> None:
        self.epoch, self._counted, self._times = 0, 0, 0

    def is_tolerable(self) -> bool:
        """Count one more; False when it has become too much."""
        if self.epoch != self._counted:
            self._counted, self._times = self.epoch, 0
        self._times += 1
        if self._times <= _KILLED:
            _log.warning(
                "a data worker was killed; new ones continue at the same batch (%d of %d)", self._times, _KILLED
            )
        return self._times <= _KILLED


class _BrokenCounter:
    """Unreadable images of the current epoch in this process."""

    def __init__(self, allowed: int) -> None:
        self._allowed, self._epoch = allowed, -1
        self._keys: dict[int, str] = {}

    def count(self, epoch: int, broken: Sequence[_Broken]) -> None:
        if epoch != self._epoch:
            self._epoch, self._keys = epoch, {}
        for image in broken:
            self._keys[image.sample] = image.key
            _log.warning("epoch %d: %s is unreadable (%s) and was replaced", epoch, image.key, image.reason)
        if len(self._keys) > self._allowed:
            first = ", ".join(list(self._keys.values())[:5])
            raise UnicError(
                f"epoch {epoch} met more unreadable images than data.max_broken = {self._allowed}: {first}; "
                "prepare the data set again or raise data.max_broken"
            )


class _Plan(Sampler[_Request]):
    """The requests of one rank: a pure function of the step."""

    def __init__(
        self, sizes: list[int], config: DataConfig, seed: int, batch: int, micro: int, rank: int, world: int, start: int
    ) -> None:
        if len(sizes) != len(config.train):
            raise UnicError(
                f"data.train names {len(config.train)} data sets, {len(sizes)} were opened; open each of them"
            )
        self._sizes, self._weights = sizes, [mix.weight for mix in config.train]
        self._config, self._seed, self._batch = config, seed, batch
        self._micro, self._rank, self._world = micro, rank, world
        self._start = start * micro  # in micro-batches
        images = len(self._order(0))
        if images < batch:
            raise UnicError(
                f"an epoch has {images} images, fewer than one batch of {batch}; "
                "lower training.batch, add images or raise the weights in data.train"
            )
        self.steps_per_epoch = images // batch

    def _order(self, epoch: int) -> Indices:
        return epoch_order(
            self._sizes, self._weights, self._seed, epoch, chunk=self._config.chunk, window=self._config.window
        )

    def skip(self, requests: int) -> _Plan:
        """The same plan without its first requests."""
        plan = copy(self)
        plan._start += requests
        return plan

    def __iter__(self) -> Iterator[_Request]:
        """All requests, each with the samples of those that the same worker gets next: workers take turns."""
        turn = max(1, self._config.workers)
        waiting: deque[_Request] = deque()
        for request in self._requests():
            waiting.append(request)
            if len(waiting) > _AHEAD * turn:
                first = waiting.popleft()
                yield first._replace(ahead=np.concatenate([r.samples for r in list(waiting)[turn - 1 :: turn]]))

    def _requests(self) -> Iterator[_Request]:
        step, skipped = divmod(self._start, self._micro)
        while True:
            epoch = step // self.steps_per_epoch
            order = self._order(epoch)
            while step // self.steps_per_epoch == epoch:
                begin = (step % self.steps_per_epoch) * self._batch
                micro_batches = np.array_split(order[begin : begin + self._batch], self._micro)
                for micro, samples in list(enumerate(micro_batches))[skipped:]:
                    mine = np.array_split(samples, self._world)[self._rank]
                    yield _Request(step, micro, epoch, mine, len(samples), ahead=mine[:0])
                step, skipped = step + 1, 0


class _TrainImages(Dataset[_Answer]):
    """Loads requests; lives in the workers."""

    def __init__(self, datasets: Sequence[ShardedDataset], config: AugmentConfig, image_size: int, seed: int) -> None:
        self._datasets, self._config, self._image_size, self._seed = datasets, config, image_size, seed
        self._sizes = [len(dataset) for dataset in datasets]

    def describe(self, sample: int) -> str:
        numbers, indices = locate(np.array([sample]), self._sizes)
        dataset = self._datasets[int(numbers[0])]
        return f"{dataset.uri}/{dataset.key(int(indices[0]))}"

    def __getitem__(self, request: _Request) -> _Answer:
        try:
            self._announce(np.concatenate([request.samples, request.ahead]))
            batch, broken = self._load(request)
        except UnicError as error:
            return _Answer(None, [], str(error), [])
        except OSError as error:
            return _Answer(None, [], f"cannot read training images: {error}; check the disk and start again", [])
        return _Answer(batch, broken, None, [note for dataset in self._datasets for note in dataset.notes()])

    def _announce(self, samples: Indices) -> None:
        numbers, indices = locate(samples, self._sizes)
        for number in np.unique(numbers).tolist():
            self._datasets[number].announce(indices[numbers == number])

    def _load(self, request: _Request) -> tuple[RawBatch, list[_Broken]]:
        samples = torch.from_numpy(request.samples)
        draw = Draw(self._seed, request.epoch, samples)
        images = torch.empty(len(samples), 3, self._image_size, self._image_size, dtype=torch.uint8)
        broken: list[_Broken] = []
        numbers, indices = locate(request.samples, self._sizes)
        for i, geometry in enumerate(draw_geometry(draw)):
            dataset, index = self._datasets[int(numbers[i])], int(indices[i])
            try:
                images[i] = self._view(dataset, index, geometry)
            except BrokenImageError as error:
                broken.append(_Broken(int(samples[i]), self.describe(int(samples[i])), str(error)))
                candidates = Draw(self._seed, request.epoch, samples[i : i + 1]).uniform("replace", _REPLACEMENTS)
                images[i] = self._replacement(dataset, candidates[0].tolist(), geometry)
        return RawBatch(images, samples, request.epoch, request.step, request.micro, request.global_size), broken

    def _view(self, dataset: ShardedDataset, index: int, geometry: Geometry) -> Tensor:
        return crop_and_flip(decode(dataset.read(index)), self._image_size, self._config, geometry)

    def _replacement(self, dataset: ShardedDataset, uniform: list[float], geometry: Geometry) -> Tensor:
        """The first readable of some samples chosen by the draw."""
        for u in uniform:
            try:
                return self._view(dataset, int(u * len(dataset)), geometry)
            except BrokenImageError:
                continue
        raise UnicError(
            f"{dataset.uri} is mostly unreadable: {len(uniform)} random images in a row are broken; prepare it again"
        )
