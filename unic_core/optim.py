"""AdamW, its parameter groups, and the learning-rate schedule (arXiv 2408.05088, training details; DINO's schedule)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from unic_core.config import OptimizerConfig, RunConfig

_REFERENCE_BATCH = 256  # `lr` is given per this many images


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with two groups: biases and other vectors without weight decay, all else with it.

    The learning rate is set by `Schedule.apply` before every step.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (plain if name.endswith(".bias") or parameter.ndim <= 1 else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    fused = all(p.is_cuda for p in model.parameters())
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up from 0 to `peak`, then a cosine to `floor`; a pure function of the step."""

    peak: float
    floor: float
    warmup: int
    total: int

    def lr(self, step: int) -> float:
        """Learning rate of step `step`, counted from 0."""
        if step < self.warmup:
            return self.peak * step / self.warmup
        progress = (step - self.warmup) / max(1, self.total - self.warmup)
        return self.floor + 0.5 * (self.peak - self.floor) * (1 + math.cos(math.pi * min(1.0, progress)))

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set the learning rate of every group for step `step`."""
        for group in optimizer.param_groups:
            group["lr"] = self.lr(step)


def total_steps(config: RunConfig, steps_per_epoch: int) -> int:
    """Length of the run in optimizer steps."""
    if config.training.steps is not None:
        return config.training.steps
    assert config.training.epochs is not None  # noqa: S101 (the config guarantees one of the two)
    return max(1, round(config.training.epochs * steps_per_epoch))


def build_schedule(config: RunConfig, steps_per_epoch: int) -> Schedule:
    """The schedule of a run; warm-up counts in the same unit as the run's length."""
    total = total_steps(config, steps_per_epoch)
    unit = 1 if config.training.steps is not None else steps_per_epoch
    peak = config.optimizer.lr * config.training.batch / _REFERENCE_BATCH
    return Schedule(peak, config.optimizer.min_lr, min(total, round(config.optimizer.warmup * unit)), total)


def clip(parameters: Iterable[nn.Parameter], max_norm: float | None) -> None:
    """Clip the global gradient norm in place; None leaves the gradients alone."""
    if max_norm is not None:
        nn.utils.clip_grad_norm_(parameters, max_norm)
