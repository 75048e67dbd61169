"""Counter-based randomness: every random number is a function of (seed, epoch, sample, purpose, index).

No generator has a state to save, so world size, worker count, restarts and resizes change nothing:
an image is cropped, jittered and its teachers are dropped in the same way wherever it is computed.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, the odd constant of splitmix64, as int64
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical (unsigned) right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The finalizer of splitmix64 (Steele et al., 2014): a bijection of 64 bits; int64 wraps silently."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


@dataclass(frozen=True)
class Draw:
    """The random numbers of one batch of samples in one epoch.

    `samples` [B] int64 are the samples' numbers in the (mixed) training set, not in the batch.
    """

    seed: int
    epoch: int
    samples: Tensor

    def uniform(self, purpose: str, n: int = 1) -> Tensor:
        """Independent uniform numbers in [0, 1): [B, n] float32, on the device of `samples`.

        `purpose` names the use ("dropping", "blur"); different purposes are independent streams.
        """
        key = torch.zeros((), dtype=torch.int64, device=self.samples.device)
        for part in (self.seed, self.epoch, zlib.crc32(purpose.encode())):
            key = _mix(key + torch.full_like(key, part + 1) * _GOLDEN)
        rows = _mix(key + self.samples.to(torch.int64) * _GOLDEN)
        columns = torch.arange(1, n + 1, dtype=torch.int64, device=self.samples.device) * _GOLDEN
        bits = _shift_right(_mix(rows[:, None] + columns[None, :]), 40)  # 24 bits: exact in float32
        return bits.to(torch.float32) * 2.0**-24

    def to(self, device: torch.device | str) -> Draw:
        """The same draws, computed on `device`."""
        return Draw(self.seed, self.epoch, self.samples.to(device, non_blocking=True))
