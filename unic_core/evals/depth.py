"""Linear depth (section 3.4): a weighing of depth bins by a linear map of frozen tokens, scored by RMSE in meters."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as V

from unic_core.config import DepthConfig
from unic_core.data.dataset import ShardedDataset
from unic_core.data.pairs import Pair, all_pairs, crop, flip, pad, place, train_pairs
from unic_core.errors import UnicError
from unic_core.evals.dense import DenseModel, DenseScore, FeatureMap, enlarge, interval, resample, train_head

NUMBERS = 11  # random numbers of one training view
UPSAMPLE = 4
SOFT_START = 100  # steps in which the loss looks at the mean alone
VARIANCE_FOCUS, GRADIENT_WEIGHT, EPS = 0.15, 0.5, 1e-3
CLIP = 35.0  # norm of the gradients
SHORTEST_CYCLE = 10  # steps; torch can't divide fewer
MEASURES = ("rmse", "abs_rel", "sq_rel", "log10", "rmse_log", "silog", "delta1", "delta2", "delta3")
_BLACK = torch.zeros(3, dtype=torch.uint8)


class BinHead(nn.Module):
    """Depth as the mean of uniform bins, weighed by a linear map of [patch, cls] tokens.

    Weights are `relu(logit) + 0.1`, divided by their sum ("linear" normalization). The published head enlarges the
    tokens by 4 before the linear map; enlarging the logits instead is the same, as bilinear weights sum to 1.
    """

    bins: Tensor

    def __init__(self, width: int, config: DepthConfig) -> None:
        super().__init__()
        self.weigh = nn.Conv2d(width, config.bins, 1)
        nn.init.normal_(self.weigh.weight, std=0.01)
        nn.init.constant_(self.weigh.get_parameter("bias"), 0)
        self.register_buffer("bins", torch.linspace(config.smallest, config.largest, config.bins))

    def forward(self, features: FeatureMap) -> Tensor:
        """Patch [B, D, h, w] and cls [B, D] to meters [B, 4 h, 4 w]."""
        patch, cls = features
        logits = self.weigh(torch.cat([patch, cls[:, :, None, None].expand(-1, -1, *patch.shape[2:])], 1))
        weights = enlarge(logits, (UPSAMPLE * patch.shape[2], UPSAMPLE * patch.shape[3])).relu() + 0.1
        return torch.einsum("bkhw,k->bhw", weights / weights.sum(1, keepdim=True), self.bins)


def evaluate_depth(
    model: DenseModel, train: ShardedDataset, test: ShardedDataset, config: DepthConfig, seed: int, workers: int
) -> DenseScore:
    """Train a linear head on `train`, score it on `test`: every measure is a mean over images, as published.

    Raises:
        UnicError: a data set without depths, an unreadable image, a head that diverged, nothing to score.
    """
    begin = time.perf_counter()
    for dataset in (train, test):
        if dataset.target != "depth":
            raise UnicError(f"{dataset.uri} has no depths, which the task needs; prepare it from a dense source")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = train_bins(model, train, config, seed, workers)
    rows: list[Tensor] = []
    for image, target in all_pairs(test, workers):
        predicted = predict_depth(model, head, image, config).cpu()
        measured = measure(predicted, target, config)
        if measured is not None:
            rows.append(measured)
    if not rows:
        raise UnicError(f"no test image of {test.uri} has a depth that can be scored; check test_area and largest")
    values = torch.stack(rows)
    means = dict(zip(MEASURES, values.mean(0).tolist(), strict=True))
    low, high = interval(float(weights @ values[:, 0] / len(values)) for weights in resample(len(values), seed))
    return DenseScore(
        metric="rmse",
        value=means.pop("rmse"),
        low=low,
        high=high,
        n_train=len(train),
        n_test=len(values),
        details=means,
        hyper={"steps": float(config.steps), "lr": config.lr},
        seconds=time.perf_counter() - begin,
    )


def train_bins(model: DenseModel, train: ShardedDataset, config: DepthConfig, seed: int, workers: int) -> BinHead:
    """The head after `config.steps` of AdamW under a one-cycle schedule."""
    batches = train_pairs(train, View(config), NUMBERS, config.batch, config.steps, seed, workers)
    sample = model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    head = BinHead(sample.patch.shape[1] + sample.cls.shape[1], config).to(model.device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    cycle = max(config.steps + 1, SHORTEST_CYCLE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, cycle, pct_start=1 / 3)

    def loss(predicted: Tensor, target: Tensor, step: int) -> Tensor:
        return depth_loss(predicted, target, config.largest, step)

    train_head(model, head, batches, loss, optimizer, schedule, CLIP)
    return head


# ---------------------------------------------------------------- loss


def depth_loss(predicted: Tensor, target: Tensor, largest: float, step: int) -> Tensor:
    """Scale-invariant loss plus half the gradient loss, of depths [B, h, w] enlarged to targets [B, H, W]."""
    enlarged = enlarge(predicted[:, None], (target.shape[1], target.shape[2]))[:, 0]
    known = (target > 0) & (target <= largest)
    if not bool(known.any()):
        return enlarged.sum() * 0
    difference = (enlarged + EPS).log() - (target + EPS).log()
    return sig_loss(difference[known], step) + GRADIENT_WEIGHT * gradient_loss(difference, known)


def sig_loss(difference: Tensor, step: int) -> Tensor:
    """`sqrt(Var(g) + 0.15 mean(g)^2)` of log differences g [n] (Eigen et al., 2014, in the form of AdaBins).

    In the first 100 steps without the variance, which brings the mean depth right first.
    """
    square = VARIANCE_FOCUS * difference.mean() ** 2
    if step >= SOFT_START and len(difference) > 1:
        square = square + difference.var()
    return square.clamp_min(1e-12).sqrt()  # the root has no slope at 0


def gradient_loss(difference: Tensor, known: Tensor) -> Tensor:
    """Mean absolute slope of the log difference [B, H, W] at four scales (Li and Snavely, 2018).

    Slopes are between pixels two apart, both of them known; scale i takes every 2 i-th pixel (the first: every one).
    """
    total = difference.sum() * 0
    for step in (1, 2, 4, 6):
        d, m = difference[:, ::step, ::step], known[:, ::step, ::step]
        d = d * m
        down = (d[:, :-2] - d[:, 2:]).abs() * (m[:, :-2] & m[:, 2:])
        right = (d[:, :, :-2] - d[:, :, 2:]).abs() * (m[:, :, :-2] & m[:, :, 2:])
        total = total + (down.sum() + right.sum()) / m.sum().clamp_min(1)
    return total


# ---------------------------------------------------------------- views and test


@dataclass(frozen=True)
class View:
    """A random training view: rotated, mirrored, cropped, its colors changed (section 3.4)."""

    config: DepthConfig

    def __call__(self, pair: Pair, uniform: list[float]) -> Pair:
        """To image [3, *crop] and depths [*crop]; `uniform`: `NUMBERS` random numbers in [0, 1)."""
        config = self.config
        if config.border is not None:
            top, bottom, left, right = config.border
            pair = crop(pair, top, left, bottom - top, right - left)
        if config.rotation and uniform[0] < 0.5:
            angle = config.rotation * (2 * uniform[1] - 1)
            image = V.rotate(pair.image, angle, InterpolationMode.BILINEAR)
            pair = Pair(image, V.rotate(pair.target[None], angle, InterpolationMode.NEAREST)[0])
        if uniform[2] < 0.5:
            pair = flip(pair)
        pair = pad(pair, *config.crop, _BLACK, 0)
        rows, columns = (max(0, side - wanted) for side, wanted in zip(pair.target.shape, config.crop, strict=True))
        pair = crop(pair, place(uniform[3], rows), place(uniform[4], columns), *config.crop)
        return Pair(recolor(pair.image, uniform[6:]) if uniform[5] < 0.5 else pair.image, pair.target)


def recolor(image: Tensor, uniform: list[float]) -> Tensor:
    """Gamma 0.9 to 1.1, brightness 0.75 to 1.25, every channel 0.9 to 1.1; uint8 [3, H, W], five random numbers."""
    gamma, brightness = 0.9 + 0.2 * uniform[0], 0.75 + 0.5 * uniform[1]
    channels = 0.9 + 0.2 * torch.tensor(uniform[2:5])
    x = (image.float() / 255) ** gamma * brightness * channels[:, None, None]
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


@torch.no_grad()
def predict_depth(model: DenseModel, head: BinHead, image: Tensor, config: DepthConfig) -> Tensor:
    """Meters [H, W] of an image uint8 [3, H, W]: the mean of those of the image and of its mirror image."""
    size = (image.shape[1], image.shape[2])
    both = enlarge(head(model(torch.stack([image, image.flip(-1)])))[:, None], size)[:, 0]
    return ((both[0] + both[1].flip(-1)) / 2).clamp(config.smallest, config.largest)


def measure(predicted: Tensor, target: Tensor, config: DepthConfig) -> Tensor | None:
    """`MEASURES` of one image [H, W], float64; None where no pixel of the scored area has a known depth."""
    if config.test_area is not None:
        top, bottom, left, right = config.test_area
        predicted, target = predicted[top:bottom, left:right], target[top:bottom, left:right]
    known = (target > config.smallest) & (target < config.largest)
    if not bool(known.any()):
        return None
    p, t = predicted[known].double(), target[known].double()
    logs = p.log() - t.log()
    ratio = torch.maximum(p / t, t / p)
    values = [
        ((p - t) ** 2).mean().sqrt(),
        ((p - t).abs() / t).mean(),
        ((p - t) ** 2 / t).mean(),
        (p.log10() - t.log10()).abs().mean(),
        (logs**2).mean().sqrt(),
        ((logs**2).mean() - logs.mean() ** 2).clamp_min(0).sqrt() * 100,
        *((ratio < 1.25**power).double().mean() for power in (1, 2, 3)),
    ]
    return torch.stack(values)
