"""Count, mean and centered second moment of features: measured locally, merged over processes and steps.

Merging (n, mean, M2) by the formula of Chan, Golub and LeVeque (1979) gives the statistics of the
concatenated features while only small vectors travel. Everything is float64 and stays on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unic_core.distributed import all_gather_stack, all_sum, world_size

_ROWS = 16384  # tokens centered at once for a covariance: bounds the memory of the copy


@dataclass(frozen=True)
class Moments:
    """Statistics of `count` vectors of width D, float64.

    `m2` is the sum of squared deviations from the mean: [D] per channel, or [D, D] for all pairs of channels.
    """

    count: Tensor
    mean: Tensor
    m2: Tensor

    @property
    def variance(self) -> Tensor:
        """Unbiased (co)variance, shaped like `m2`; 0 for fewer than two vectors."""
        return self.m2 / (self.count - 1).clamp(min=1)


def measure(features: Tensor, covariance: bool = False) -> Moments:
    """Moments of features [..., D] over all leading dimensions, which may hold no vector at all."""
    width = features.shape[-1]
    rows = features.detach().float().reshape(-1, width)
    count = torch.full((), len(rows), dtype=torch.float64, device=rows.device)
    if len(rows) == 0:
        empty = torch.zeros(width, dtype=torch.float64, device=rows.device)
        return Moments(count, empty, empty.new_zeros((width, width)) if covariance else empty.clone())
    variance, mean = torch.var_mean(rows, dim=0, correction=0)
    if not covariance:
        return Moments(count, mean.double(), variance.double() * len(rows))
    m2 = torch.zeros((width, width), dtype=torch.float64, device=rows.device)
    with torch.autocast(rows.device.type, enabled=False):
        for part in torch.split(rows, _ROWS):
            centered = part - mean
            m2 += centered.T @ centered
    return Moments(count, mean.double(), m2)


def merge(first: Moments, second: Moments) -> Moments:
    """Moments of both sets of vectors together."""
    return _chan(
        torch.stack((first.count, second.count)),
        torch.stack((first.mean, second.mean)),
        first.m2 + second.m2,
    )


def merge_processes(parts: Sequence[Moments]) -> list[Moments]:
    """Each of `parts` merged over all processes, with one all-gather for all of them.

    Covariances are the exception: D^2 numbers from every process are too many to gather, so they are summed
    by one more collective. Parts have the same shapes in every process; their counts may differ and may be 0.
    """
    if world_size() == 1 or not parts:
        return list(parts)
    rows = [torch.cat([p.count[None], p.mean, *([p.m2] if p.m2.ndim == 1 else [])]) for p in parts]
    gathered = torch.split(all_gather_stack(torch.cat(rows)), [len(row) for row in rows], dim=1)
    squares = [p.m2.flatten() for p in parts if p.m2.ndim == 2]
    summed = iter(torch.split(all_sum(torch.cat(squares)), [len(s) for s in squares]) if squares else ())
    merged = []
    for part, table in zip(parts, gathered, strict=True):
        width = len(part.mean)
        within = table[:, 1 + width :].sum(0) if part.m2.ndim == 1 else next(summed).view(width, width)
        merged.append(_chan(table[:, 0], table[:, 1 : 1 + width], within))
    return merged


def _chan(counts: Tensor, means: Tensor, within: Tensor) -> Moments:
    """Moments of R groups with `counts` [R], `means` [R, D] and summed M2 `within` ([D] or [D, D])."""
    count = counts.sum()
    shares = counts / count.clamp(min=1)
    mean = shares @ means
    offsets = means - mean
    weighted = counts[:, None] * offsets
    between = weighted.T @ offsets if within.ndim == 2 else (weighted * offsets).sum(0)
    return Moments(count, mean, within + between)
