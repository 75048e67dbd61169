"""Deterministic choices of samples: balanced subsets, stratified splits and the order in which shards are written."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def raw_stream(key: tuple[int, int], n: int, stream: int = 0) -> NDArray[np.uint64]:
    """`n` 64-bit words of Philox (Salmon et al., 2011); numpy promises to keep them in all versions."""
    return np.random.Philox(key=np.array(key, dtype=np.uint64), counter=[0, 0, 0, stream]).random_raw(n)


def shuffled(n: int, seed: int) -> Indices:
    """A permutation of 0..n-1 that depends on (n, seed) alone."""
    return np.argsort(raw_stream((seed, 0), n), kind="stable").astype(np.int64)


def balanced(labels: Indices, count: int, seed: int) -> Indices:
    """`count` samples, classes as equal as their sizes allow; rising indices [min(count, n)].

    Every class is shuffled and dealt out in turn, so class counts differ by at most one unless a class runs out.
    """
    order = shuffled(len(labels), seed)
    return np.sort(order[np.argsort(_rank_in_class(labels[order]), kind="stable")[:count]])


def stratified(labels: Indices, share: float, seed: int) -> tuple[Indices, Indices]:
    """(rest, held out): `share` of every class, rounded, is held out; both with rising indices."""
    order = shuffled(len(labels), seed)
    rank = _rank_in_class(labels[order])
    _, inverse, sizes = np.unique(labels[order], return_inverse=True, return_counts=True)
    held_out = rank < np.rint(sizes * share).astype(np.int64)[inverse]
    return np.sort(order[~held_out]), np.sort(order[held_out])


def _rank_in_class(labels: Indices) -> Indices:
    """How many earlier samples have the same label: [n]."""
    by_class = np.argsort(labels, kind="stable")
    _, starts, sizes = np.unique(labels[by_class], return_index=True, return_counts=True)
    rank = np.empty(len(labels), dtype=np.int64)
    rank[by_class] = np.arange(len(labels)) - np.repeat(starts, sizes)
    return rank
