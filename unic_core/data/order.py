"""The global sequence of samples: a function of (seed, epoch) and of the data, nothing else.

Neighboring samples stay together in chunks, chunks are permuted globally, and samples are shuffled inside windows
of several chunks. A chunk is read from one shard, so remote shards are read almost sequentially.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unic_core.data.subset import Indices, raw_stream
from unic_core.errors import UnicError


def epoch_order(
    sizes: Sequence[int], weights: Sequence[float], seed: int, epoch: int, chunk: int = 32, window: int = 16
) -> Indices:
    """Global sample numbers of one epoch, in training order: int64 [n].

    Args:
        sizes: samples in each data set.
        weights: passes over each data set per epoch. 2.3 means every sample twice and a random 30 % (of whole
            chunks, chosen by (seed, epoch)) once more.
        chunk: neighboring samples that stay together in the global permutation.
        window: chunks that are shuffled into each other.

    A data set's samples are numbered from the sum of the sizes before it. Repeated passes add multiples of
    sum(sizes), so that a sample seen twice in an epoch gets different random numbers: see `locate`.
    """
    if len(sizes) != len(weights):
        raise UnicError(f"{len(sizes)} data sets have {len(weights)} weights; give one weight per data set")
    total = sum(sizes)
    starts, lengths = [], []
    for number, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
        offset = sum(sizes[:number])
        first = np.arange(0, size, chunk, dtype=np.int64)
        length = np.minimum(chunk, size - first)
        for turn in range(int(np.ceil(weight))):
            share = min(1.0, weight - turn)
            if share < 1:
                first, length = _part(first, length, round(share * size), (seed, epoch), stream=2 + number)
            starts.append(first + offset + turn * total)
            lengths.append(length)
    start, length = np.concatenate(starts), np.concatenate(lengths)
    permutation = np.argsort(raw_stream((seed, epoch), len(start), stream=0), kind="stable")
    start, length = start[permutation], length[permutation]
    ends = np.cumsum(length)
    samples = np.arange(length.sum()) + np.repeat(start - (ends - length), length)
    # sorting by (window, random) shuffles inside windows
    windows = np.repeat(np.arange(len(start), dtype=np.uint64) // np.uint64(window), length)
    noise = raw_stream((seed, epoch), len(samples), stream=1)
    within = np.argsort((windows << np.uint64(32)) | (noise >> np.uint64(32)), kind="stable")
    order: Indices = samples[within]
    return order


def locate(samples: Indices, sizes: Sequence[int]) -> tuple[Indices, Indices]:
    """(number of the data set, index in it) of global sample numbers; each [n]."""
    ends = np.cumsum(sizes)
    within = samples % ends[-1]
    number = np.searchsorted(ends, within, side="right")
    return number, within - (ends - np.asarray(sizes))[number]


def _part(first: Indices, length: Indices, count: int, key: tuple[int, int], stream: int) -> tuple[Indices, Indices]:
    """Random chunks with `count` samples together; the last one is cut."""
    chosen = np.argsort(raw_stream(key, len(first), stream), kind="stable")
    before = np.cumsum(length[chosen]) - length[chosen]
    chosen, before = chosen[before < count], before[before < count]
    return first[chosen], np.minimum(length[chosen], count - before)
