"""What segmentation and depth share: a frozen encoder as a map of features, and the training of a small head on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from unic_core.data.pairs import Pair
from unic_core.errors import UnicError
from unic_core.evals.features import FeatureModel
from unic_core.precision import autocast
from unic_core.tokens import TokenKind, Tokens

RESAMPLES = 1000
Precision = Literal["fp32", "bf16"]
Metric = Literal["miou", "rmse"]


class FeatureMap(NamedTuple):
    """patch [B, D, h, w] and cls [B, D] (the mean patch of models without one), float32."""

    patch: Tensor
    cls: Tensor


@dataclass(frozen=True)
class DenseModel:
    """A frozen encoder for images of any size, the same code for students and teachers.

    Images are padded around their center to a multiple of the patch size, with what is 0 after the model's own
    normalization (section 3.3).

    tokens: float images [B, 3, H, W] in [0, 1] to normed tokens. stride: pixels per side of a patch.
    mean: of the model's input, [1, 3, 1, 1].
    """

    name: str
    tokens: FeatureModel
    stride: int
    mean: Tensor
    precision: Precision = "fp32"

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> FeatureMap:
        """Of uint8 images [B, 3, H, W]; UnicError where the model has no patch tokens, or some are not finite."""
        x = images.to(self.device, non_blocking=True).float() / 255
        x = center_pad(x - self.mean, self.stride) + self.mean
        with autocast(self.device, self.precision):
            found = self.tokens(x)
        tokens = found if isinstance(found, Tokens) else self._joined(found)
        if not bool(tokens.patch.isfinite().all()):
            raise UnicError(f"the patch tokens of {self.name} are not finite; check the model, or use precision fp32")
        height, width = (side // self.stride for side in x.shape[2:])
        patch = tokens.patch.float().transpose(1, 2).reshape(len(x), -1, height, width)
        return FeatureMap(patch, tokens.cls.float())

    def _joined(self, tokens: Mapping[TokenKind, Tensor]) -> Tokens:
        if "patch" not in tokens:
            raise UnicError(f"{self.name} has no patch tokens, so it can't do dense tasks")
        return Tokens(tokens.get("cls", tokens["patch"].mean(1)), tokens["patch"])


@dataclass(frozen=True)
class DenseScore:
    """One model on one dense task.

    value: of the metric, a share in [0, 1] (miou) or meters (rmse); low, high: its 95 % bootstrap interval over
    test images. details: further measures, or the metric per class.
    """

    metric: Metric
    value: float
    low: float
    high: float
    n_train: int
    n_test: int
    details: dict[str, float]
    hyper: dict[str, float]
    seconds: float

    def as_row(self) -> dict[str, Any]:
        """The fields of a `ResultRow`, but for the metric."""
        fields = asdict(self)
        low, high = fields.pop("low"), fields.pop("high")
        del fields["metric"]
        return {**fields, "ci_low": low, "ci_high": high}


def center_pad(x: Tensor, multiple: int) -> Tensor:
    """Zeros around [B, C, H, W] until both sides are multiples; an odd one more at the right and the bottom."""
    rows, columns = (-side % multiple for side in x.shape[2:])
    return F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


def enlarge(x: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, C, h, w] to another height and width, bilinear, pixel centers aligned."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def train_head(
    model: DenseModel,
    head: nn.Module,
    batches: Iterable[Pair],
    loss: Callable[[Tensor, Tensor, int], Tensor],
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
    clip: float | None = None,
) -> None:
    """Train `head` (feature map to predictions) on frozen features.

    Args:
        loss: of predictions, targets [B, H, W] and the number of the step.
        clip: largest norm of all gradients together.

    Raises:
        UnicError: the head became infinite.
    """
    head.train()
    for step, pair in enumerate(batches):
        value = loss(head(model(pair.image)), pair.target.to(model.device), step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        if clip is not None:
            nn.utils.clip_grad_norm_(head.parameters(), clip)
        optimizer.step()
        schedule.step()
    head.eval()
    if not all(bool(parameter.isfinite().all()) for parameter in head.parameters()):
        raise UnicError(f"the head on {model.name} diverged; lower the learning rate of the task")


def poly(steps: int, warmup: int) -> Callable[[int], float]:
    """Factor of the learning rate at a step: linear from 1 to 0, times a linear warm-up from 1e-6 to 1."""

    def factor(step: int) -> float:
        warm = 1 - (1 - step / warmup) * (1 - 1e-6) if step < warmup else 1.0
        return warm * max(0.0, 1 - step / steps)

    return factor


def resample(n: int, seed: int) -> Iterator[Tensor]:
    """How often each of n test images is drawn, [n] float64, for each resample of a bootstrap."""
    rng = np.random.default_rng(seed)
    for _ in range(RESAMPLES):
        yield torch.from_numpy(np.bincount(rng.integers(0, n, n), minlength=n)).double()


def interval(values: Iterable[float]) -> tuple[float, float]:
    """The 95 % percentile interval of resampled values; those that are not numbers are left out."""
    known = [value for value in values if not math.isnan(value)]
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)
