"""Standardizers: bring the features of all teachers to one scale, so that no teacher dominates the loss.

Statistics are per teacher, token kind and channel, over all processes: over images for `cls` [B, D], over
images and patches for `patch` [B, N, D]. Each kind is exactly invertible, and its state lies in buffers:
`state_dict()` is the checkpoint. Nothing here makes the host wait for the device, except the one
decomposition of PHI-S.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from unic_core.config import BatchConfig, EmaConfig, FrozenConfig, IdentityConfig, PhiSConfig
from unic_core.distributed import broadcast
from unic_core.errors import UnicError
from unic_core.hadamard import hadamard
from unic_core.moments import Moments, measure, merge, merge_processes
from unic_core.tokens import Features, TokenKind

_Target = tuple[str, TokenKind]
Config = EmaConfig | BatchConfig | FrozenConfig | PhiSConfig | IdentityConfig


class TargetStatistics(nn.Module, ABC):
    """The statistics of one target (a teacher's token kind) of width D."""

    covariance: ClassVar[bool] = False  # are all pairs of channels measured?

    @abstractmethod
    def absorb(self, batch: Moments, progress: float) -> None:
        """Update from the moments of a global batch; fewer than two vectors may be ignored."""

    @abstractmethod
    def normalize(self, x: Tensor) -> Tensor:
        """Standardized features [..., D], fp32."""

    @abstractmethod
    def denormalize(self, x: Tensor) -> Tensor:
        """The inverse of `normalize`."""

    def train_target(self, x: Tensor, batch: Moments) -> Tensor:
        """The standardized features of a training step whose merged moments are `batch`."""
        return self.normalize(x)

    def freeze(self) -> None:
        """Called once, after the last update."""


class _Scaled(TargetStatistics):
    """A running mean and standard deviation per channel, starting from 0 and 1."""

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def normalize(self, x: Tensor) -> Tensor:
        return (x - self.mean) / (self.std + self.eps)

    def denormalize(self, x: Tensor) -> Tensor:
        return x * (self.std + self.eps) + self.mean

    def _average(self, mean: Tensor, std: Tensor, momentum: Tensor) -> None:
        self.mean.lerp_(mean.float(), momentum)
        self.std.lerp_(std.float(), momentum)


class EmaStatistics(_Scaled):
    """The paper's (section 1.3): targets use the old averages, then mean and std are averaged.

    The momentum falls from `momentum_start` to `momentum_end` along a cosine over the whole training. `eps`
    enters twice: in the standard deviation that is averaged, and in the division.
    """

    def __init__(self, width: int, config: EmaConfig) -> None:
        super().__init__(width, config.eps)
        self.config = config

    def absorb(self, batch: Moments, progress: float) -> None:
        start, end = self.config.momentum_start, self.config.momentum_end
        momentum = end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))
        used = (batch.count > 1).float() * momentum
        self._average(batch.mean, batch.variance.sqrt() + self.eps, used)


class BatchStatistics(_Scaled):
    """DUNE's: training targets use the current global batch; `normalize` and `denormalize` use the average.

    The average is a plain mean of the first batches and turns into an EMA once 1/batches falls below
    `momentum`, so that the starting values 0 and 1 leave no trace.
    """

    batches: Tensor

    def __init__(self, width: int, config: BatchConfig) -> None:
        super().__init__(width, config.eps)
        self.momentum = config.momentum
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def absorb(self, batch: Moments, progress: float) -> None:
        used = batch.count > 1
        self.batches.add_(used)
        momentum = (1.0 / self.batches.clamp(min=1)).clamp(min=self.momentum)
        self._average(batch.mean, batch.variance.sqrt(), momentum * used)

    def train_target(self, x: Tensor, batch: Moments) -> Tensor:
        return (x - batch.mean.float()) / (batch.variance.sqrt().float() + self.eps)


class _Measured(TargetStatistics):
    """Moments of everything seen so far, float64: `count` [], `mean` [D], `m2` [D] or [D, D]."""

    count: Tensor
    mean: Tensor
    m2: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        shape = (width, width) if self.covariance else (width,)
        self.register_buffer("m2", torch.zeros(shape, dtype=torch.float64))

    @property
    def moments(self) -> Moments:
        """What has been measured so far, over all processes."""
        return Moments(self.count, self.mean, self.m2)

    def absorb(self, batch: Moments, progress: float) -> None:
        merged = merge(self.moments, batch)
        self.count.copy_(merged.count)
        self.mean.copy_(merged.mean)
        self.m2.copy_(merged.m2)


class FrozenStatistics(_Measured):
    """EUPE's: mean and standard deviation of everything seen in the first steps, then constant."""

    def __init__(self, width: int, config: FrozenConfig) -> None:
        super().__init__(width)
        self.eps = config.eps

    def normalize(self, x: Tensor) -> Tensor:
        return (x - self.mean.float()) / self._scale()

    def denormalize(self, x: Tensor) -> Tensor:
        return x * self._scale() + self.mean.float()

    def _scale(self) -> Tensor:
        std = torch.where(self.count > 1, self.moments.variance.sqrt(), 1.0)
        return std.float() + self.eps


class PhiSStatistics(_Measured):
    """PHI-S (arXiv 2410.01680): alpha H U^T (x - mean); Sigma = U diag(l) U^T, alpha = 1/sqrt(mean(l)).

    The rotation spreads the variance evenly over the channels, so that one scale gives each of them unit
    variance and distances keep their proportions. H is a normalized Hadamard matrix; widths for which
    `hadamard` has none get an orthogonal matrix that evens the variances out only approximately. While
    measuring, the rotation is not known yet: mean and alpha alone are applied.
    """

    covariance = True
    rotation: Tensor

    def __init__(self, width: int) -> None:
        super().__init__(width)
        # kept as state: eigenvectors have no determined sign, another machine would find another one
        self.register_buffer("rotation", torch.eye(width))

    def normalize(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return (x - self.mean.float()) @ (self.rotation.T * self._alpha())

    def denormalize(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return x @ (self.rotation / self._alpha()) + self.mean.float()

    def freeze(self) -> None:
        _, vectors = torch.linalg.eigh(self.moments.variance)
        rotation = hadamard(len(vectors)).to(vectors) @ vectors.T
        self.rotation.copy_(broadcast(rotation))

    def _alpha(self) -> Tensor:
        total = torch.where(self.count > 1, self.moments.variance.diagonal().mean(), 1.0)
        return total.clamp(min=1e-12).rsqrt().float()


class RawStatistics(TargetStatistics):
    """No statistics: features pass through."""

    def absorb(self, batch: Moments, progress: float) -> None:
        """Nothing to update."""

    def normalize(self, x: Tensor) -> Tensor:
        # autograd refuses to save tensors made under inference mode, as the teachers' are
        return x.clone() if x.is_inference() else x

    def denormalize(self, x: Tensor) -> Tensor:
        return self.normalize(x)


class Standardizer(nn.Module):
    """One object for the targets of all teachers.

    Args:
        make: the statistics of one target, given its width.
        targets: {teacher: {kind: width}}, the same in all processes.
        steps: updates after which the statistics stay as they are; None means never, 0 at once.
        updates_first: are the targets of a training step standardized after its update, or before?
    """

    updates: Tensor

    def __init__(
        self,
        make: Callable[[int], TargetStatistics],
        targets: Mapping[str, Mapping[TokenKind, int]],
        steps: int | None = None,
        updates_first: bool = True,
    ) -> None:
        super().__init__()
        self.steps = steps
        self.updates_first = updates_first
        self._widths = {(teacher, kind): width for teacher, kinds in targets.items() for kind, width in kinds.items()}
        self.targets = nn.ModuleDict(
            {
                _key(teacher): nn.ModuleDict({kind: make(width) for kind, width in kinds.items()})
                for teacher, kinds in targets.items()
            }
        )
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._updates = 0  # the same on the host: whether to measure must not need the device
        self.register_load_state_dict_post_hook(_read_counter)  # type: ignore[no-untyped-call]

    @property
    def measuring(self) -> bool:
        """Will the next training step update the statistics?"""
        return self.steps is None or self._updates < self.steps

    def statistics(self, teacher: str, kind: TokenKind) -> TargetStatistics:
        """The statistics of one target."""
        return cast(TargetStatistics, cast(nn.ModuleDict, self.targets[_key(teacher)])[kind])

    @torch.no_grad()
    def forward(self, features: Features, progress: float) -> Features:
        """Targets of one training step, and the update, in the order that the kind prescribes.

        Args:
            features: {teacher: {kind: [B, D] or [B, N, D]}}. B may differ between processes and be 0, and
                a target may be missing where it has no images; but every process must call.
            progress: step / total steps, in [0, 1].

        Returns:
            The same structure and shapes, fp32, without gradient.

        Raises:
            UnicError: an unknown teacher or kind, a wrong width, a progress outside [0, 1].
        """
        if not self.measuring:
            return self.normalize(features)
        batch = self._measure(features)
        if self.updates_first:
            self._absorb(batch, progress)
            return self._train_targets(features, batch)
        standardized = self._train_targets(features, batch)
        self._absorb(batch, progress)
        return standardized

    @torch.no_grad()
    def update(self, features: Features, progress: float) -> None:
        """Update the statistics alone, as `forward` does."""
        if self.measuring:
            self._absorb(self._measure(features), progress)

    @torch.no_grad()
    def normalize(self, features: Features) -> Features:
        """Standardize with the statistics as they are: fp32, without gradient."""
        return self._map(features, lambda key, x: self.statistics(*key).normalize(x))

    def denormalize(self, features: Features) -> Features:
        """The inverse of `normalize`: from the student's predictions to the teacher's own space, fp32."""
        return self._map(features, lambda key, x: self.statistics(*key).denormalize(x))

    def _measure(self, features: Features) -> dict[_Target, Moments]:
        """Moments of each target in the global batch."""
        self._check(features)
        local = []
        for (teacher, kind), width in self._widths.items():
            x = features.get(teacher, {}).get(kind)
            if x is None:
                x = torch.empty((0, width), device=self.updates.device)
            local.append(measure(x, covariance=self.statistics(teacher, kind).covariance))
        return dict(zip(self._widths, merge_processes(local), strict=True))

    def _absorb(self, batch: dict[_Target, Moments], progress: float) -> None:
        if not 0 <= progress <= 1:
            raise UnicError(f"progress is {progress}, but must be step / total steps, from 0 to 1")
        for key, moments in batch.items():
            self.statistics(*key).absorb(moments, progress)
        self.updates.add_(1)
        self._updates += 1
        if not self.measuring:
            for key in batch:
                self.statistics(*key).freeze()

    def _train_targets(self, features: Features, batch: dict[_Target, Moments]) -> Features:
        return self._map(features, lambda key, x: self.statistics(*key).train_target(x, batch[key]))

    def _map(self, features: Features, function: Callable[[_Target, Tensor], Tensor]) -> Features:
        self._check(features)
        return {
            teacher: {kind: function((teacher, kind), x.float()) for kind, x in kinds.items()}
            for teacher, kinds in features.items()
        }

    def _check(self, features: Features) -> None:
        for teacher, kinds in features.items():
            for kind, x in kinds.items():
                width = self._widths.get((teacher, kind))
                if width is None:
                    raise UnicError(f"the standardizer has no statistics of {teacher}/{kind}; build it with them")
                if x.shape[-1] != width:
                    raise UnicError(
                        f"{teacher}/{kind} has {x.shape[-1]} channels, but its statistics have {width}; "
                        "use the teacher that the standardizer was built for"
                    )


def build_standardizer(config: Config, targets: Mapping[str, Mapping[TokenKind, int]]) -> Standardizer:
    """The standardizer of `config` for the targets {teacher: {kind: width}}."""
    match config:
        case EmaConfig():
            return Standardizer(lambda width: EmaStatistics(width, config), targets, updates_first=False)
        case BatchConfig():
            return Standardizer(lambda width: BatchStatistics(width, config), targets)
        case FrozenConfig():
            return Standardizer(lambda width: FrozenStatistics(width, config), targets, steps=config.steps)
        case PhiSConfig():
            return Standardizer(PhiSStatistics, targets, steps=config.steps)
        case IdentityConfig():
            return Standardizer(lambda _: RawStatistics(), targets, steps=0)


def _key(teacher: str) -> str:
    """A teacher's name as a part of a state's key, which may hold no dot; ':' occurs in no name."""
    return teacher.replace(".", ":")


def _read_counter(module: nn.Module, _: Any) -> None:
    standardizer = cast(Standardizer, module)
    standardizer._updates = int(standardizer.updates)
