"""Balancers: how much each teacher counts for each image (section 1.5)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unic_core.config import EqualConfig, FixedConfig, LossRankedConfig, UniformConfig
from unic_core.draw import Draw
from unic_core.errors import UnicError

Config = LossRankedConfig | UniformConfig | FixedConfig | EqualConfig


class Balancer(ABC):
    """Weights of T teachers for B images. Random choices depend on the image alone, never on its batch."""

    def plan(self, draw: Draw) -> Tensor | None:
        """Which teachers must see which images, [T, B] bool, known before the forward; None means all."""
        return None

    @abstractmethod
    def weights(self, losses: Tensor, draw: Draw) -> Tensor:
        """The weights [T, B] fp32 of the losses [T, B], without gradient; 0 means dropped."""


@dataclass(frozen=True)
class LossRanked(Balancer):
    """The paper's teacher dropping: the largest loss stays, the other teachers are dropped with `drop`."""

    drop: float

    @torch.no_grad()
    def weights(self, losses: Tensor, draw: Draw) -> Tensor:
        return _drop(draw, self.drop, losses.shape[0], stays=losses.argmax(0)).float()


@dataclass(frozen=True)
class Uniform(Balancer):
    """A teacher drawn uniformly stays, the others are dropped with `drop`; known before the forward pass."""

    drop: float
    teachers: int

    def plan(self, draw: Draw) -> Tensor:
        chosen = (draw.uniform("staying", 1)[:, 0] * self.teachers).long()
        # just below 1, the product can round up to the number of teachers
        return _drop(draw, self.drop, self.teachers, stays=chosen.clamp(max=self.teachers - 1))

    @torch.no_grad()
    def weights(self, losses: Tensor, draw: Draw) -> Tensor:
        return self.plan(draw).float()


@dataclass(frozen=True)
class Fixed(Balancer):
    """A constant weight per teacher, the same for all images."""

    values: tuple[float, ...]

    @torch.no_grad()
    def weights(self, losses: Tensor, draw: Draw) -> Tensor:
        weights = torch.empty_like(losses, dtype=torch.float32)
        for row, value in zip(weights, self.values, strict=True):
            row.fill_(value)  # on the device: the host would wait for the copy of a tensor made from a list
        return weights


def build_balancer(config: Config, teachers: Sequence[str]) -> Balancer:
    """The balancer of `config` for the teachers, in the order of the rows of `losses`.

    Raises:
        UnicError: fixed weights that do not name each teacher once, or are all 0.
    """
    match config:
        case LossRankedConfig():
            return LossRanked(config.drop)
        case UniformConfig():
            return Uniform(config.drop, len(teachers))
        case FixedConfig():
            wrong = set(config.weights) ^ set(teachers)
            if wrong:
                raise UnicError(f"balancer.weights must name each teacher once; {sorted(wrong)[0]!r} does not match")
            if not any(config.weights.values()):
                raise UnicError("balancer.weights are all 0; give one teacher a weight")
            return Fixed(tuple(config.weights[teacher] for teacher in teachers))
        case EqualConfig():
            return Fixed((1.0,) * len(teachers))


def _drop(draw: Draw, drop: float, teachers: int, stays: Tensor) -> Tensor:
    """Kept teachers [T, B] bool: those numbered `stays` [B], and each other one with probability 1 - drop."""
    kept = drop <= draw.uniform("dropping", teachers).T
    return kept.scatter(0, stays[None], True)
