"""Linear segmentation (section 3.3): BatchNorm and a 1x1 convolution on frozen patch tokens, scored by mean IoU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as V

from unic_core.config import SegmentationConfig
from unic_core.data.dataset import ShardedDataset
from unic_core.data.pairs import Pair, all_pairs, crop, flip, pad, place, train_pairs
from unic_core.data.targets import IGNORE
from unic_core.errors import UnicError
from unic_core.evals.dense import DenseModel, DenseScore, FeatureMap, enlarge, interval, poly, resample, train_head

CROPS = 10  # drawn until one has no class that is too large
NUMBERS = 1 + 2 * CROPS + 1 + 9  # random numbers of one training view
COLOR = torch.tensor([124, 116, 104], dtype=torch.uint8)  # ImageNet's mean, which normalization makes 0
WINDOWS = 8  # in one forward pass of a test


class LinearHead(nn.Module):
    """BatchNorm, then one linear classifier per patch: a feature map to logits [B, K, h, w]."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.classify = nn.Conv2d(width, classes, 1)
        nn.init.normal_(self.classify.weight, std=0.01)
        nn.init.constant_(self.classify.get_parameter("bias"), 0)

    def forward(self, features: FeatureMap) -> Tensor:
        """[B, D, h, w] to [B, K, h, w]."""
        logits: Tensor = self.classify(self.norm(features.patch))
        return logits


def evaluate_segmentation(
    model: DenseModel, train: ShardedDataset, test: ShardedDataset, config: SegmentationConfig, seed: int, workers: int
) -> DenseScore:
    """Train a linear head on `train`, score it on `test`: mIoU over the classes that occur, IoU per class.

    Raises:
        UnicError: a data set without masks or with other classes, an unreadable image, a head that diverged.
    """
    begin = time.perf_counter()
    for dataset in (train, test):
        if dataset.target != "mask":
            raise UnicError(f"{dataset.uri} has no masks, which segmentation needs; prepare it from a dense source")
    if train.classes != test.classes:
        raise UnicError(f"{train.uri} and {test.uri} have different classes; segmentation needs the same ones")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = train_linear(model, train, config, seed, workers)
    counts: list[Tensor] = []
    for image, target in all_pairs(test, workers):
        predicted = segment(model, head, image, config).cpu()
        counts.append(count_pixels(predicted, target, len(test.classes)))
    return _score(torch.stack(counts), train, test, config, seed, time.perf_counter() - begin)


def train_linear(
    model: DenseModel, train: ShardedDataset, config: SegmentationConfig, seed: int, workers: int
) -> LinearHead:
    """The head after `config.steps` of AdamW on random crops."""
    classes = len(train.classes)
    batches = train_pairs(train, View(config), NUMBERS, config.batch, config.steps, seed, workers)
    head = LinearHead(model(COLOR[None, :, None, None].expand(1, 3, 64, 64)).patch.shape[1], classes).to(model.device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, poly(config.steps, config.warmup))
    train_head(model, head, batches, pixel_loss, optimizer, schedule)
    return head


def pixel_loss(logits: Tensor, target: Tensor, _step: int = 0) -> Tensor:
    """Cross-entropy of logits [B, K, h, w], enlarged to the targets [B, H, W]; the mean is over all pixels, and those
    that are not scored count as 0, as in mmsegmentation."""
    enlarged = enlarge(logits, (target.shape[1], target.shape[2]))
    return F.cross_entropy(enlarged, target, ignore_index=IGNORE, reduction="sum") / target.numel()


# ---------------------------------------------------------------- views


@dataclass(frozen=True)
class View:
    """A random training view: resized, cropped, mirrored, its colors distorted (section 3.3)."""

    config: SegmentationConfig

    def __call__(self, pair: Pair, uniform: list[float]) -> Pair:
        """To image [3, crop, crop] and mask [crop, crop]; `uniform`: `NUMBERS` random numbers in [0, 1)."""
        config = self.config
        low, high = config.scale
        pair = resize(pair, config, low + (high - low) * uniform[0])
        pair = self._crop(pair, uniform[1 : 1 + 2 * CROPS])
        if uniform[1 + 2 * CROPS] < 0.5:
            pair = flip(pair)
        image = distort(pair.image, uniform[2 + 2 * CROPS :])
        return pad(Pair(image, pair.target), config.crop, config.crop, COLOR, IGNORE)

    def _crop(self, pair: Pair, uniform: list[float]) -> Pair:
        size = self.config.crop
        room = [max(side - size, 0) for side in pair.target.shape]
        part = pair
        for u, v in zip(uniform[::2], uniform[1::2], strict=True):
            part = crop(pair, place(u, room[0]), place(v, room[1]), size, size)
            sizes = torch.bincount(part.target.flatten(), minlength=IGNORE + 1)[:IGNORE]
            if int((sizes > 0).sum()) > 1 and int(sizes.max()) < self.config.largest_class * int(sizes.sum()):
                break
        return part


def resize(pair: Pair, config: SegmentationConfig, factor: float) -> Pair:
    """Keep the aspect ratio; `factor` times the sides of the config are the largest that both sides may have."""
    size = scaled_size(pair.image, config, factor)
    image = V.resize(pair.image, size, InterpolationMode.BILINEAR, antialias=False)
    target = V.resize(pair.target[None], size, InterpolationMode.NEAREST)[0]
    return Pair(image, target)


def scaled_size(image: Tensor, config: SegmentationConfig, factor: float) -> list[int]:
    """Height and width of [3, H, W] after `resize`."""
    height, width = image.shape[1:]
    by = factor * min(config.long_side / max(height, width), config.short_side / min(height, width))
    return [max(1, int(side * by + 0.5)) for side in (height, width)]


def distort(image: Tensor, uniform: list[float]) -> Tensor:
    """SSD's photometric distortion (Liu et al., 2016): brightness, contrast, saturation and hue, each with p = 0.5.

    image: uint8 [3, H, W]. uniform: nine numbers: for each of the four whether and how much, and contrast's place.
    """

    def contrast(x: Tensor) -> Tensor:
        return x * (0.5 + uniform[3]) if uniform[2] < 0.5 else x

    x = image.float()
    if uniform[0] < 0.5:
        x = x + 32 * (2 * uniform[1] - 1)
    x = x.clamp(0, 255)
    x = contrast(x).clamp(0, 255) if uniform[8] < 0.5 else x
    if uniform[4] < 0.5:
        x = V.adjust_saturation(x / 255, 0.5 + uniform[5]).clamp(0, 1) * 255
    if uniform[6] < 0.5:
        x = V.adjust_hue(x / 255, 0.1 * (2 * uniform[7] - 1)) * 255
    x = contrast(x).clamp(0, 255) if uniform[8] >= 0.5 else x
    return x.round().to(torch.uint8)


# ---------------------------------------------------------------- test


@torch.no_grad()
def segment(model: DenseModel, head: LinearHead, image: Tensor, config: SegmentationConfig) -> Tensor:
    """Class numbers [H, W] of an image uint8 [3, H, W], from windows that slide over it at every test scale."""
    size = (image.shape[1], image.shape[2])
    total = torch.zeros((), device=model.device)
    for factor in config.test_scales:
        scaled = V.resize(image, scaled_size(image, config, factor), InterpolationMode.BILINEAR, antialias=False)
        logits = slide(model, head, scaled, config.crop, config.stride)
        total = total + enlarge(logits[None], size)[0].softmax(0)
    return total.argmax(0)


def slide(model: DenseModel, head: LinearHead, image: Tensor, size: int, stride: int) -> Tensor:
    """Mean logits [K, H, W] of the windows over each pixel; the last window of a row or column is moved inside."""
    height, width = image.shape[1:]
    corners = [(top, left) for top in starts(height, size, stride) for left in starts(width, size, stride)]
    shape = (min(size, height), min(size, width))
    total, seen = torch.zeros(()), torch.zeros(height, width, device=model.device)
    for first in range(0, len(corners), WINDOWS):
        some = corners[first : first + WINDOWS]
        windows = torch.stack([image[:, top : top + shape[0], left : left + shape[1]] for top, left in some])
        for (top, left), logits in zip(some, enlarge(head(model(windows)), shape), strict=True):
            if total.ndim == 0:
                total = torch.zeros(len(logits), height, width, device=model.device)
            total[:, top : top + shape[0], left : left + shape[1]] += logits
            seen[top : top + shape[0], left : left + shape[1]] += 1
    return total / seen


def starts(side: int, size: int, stride: int) -> Iterator[int]:
    """Where windows begin along one side."""
    for number in range(max(side - size + stride - 1, 0) // stride + 1):
        yield max(min(number * stride, side - size), 0)


# ---------------------------------------------------------------- score


def count_pixels(predicted: Tensor, target: Tensor, classes: int) -> Tensor:
    """Intersection, union and true size of every class in one image, [3, K] float64, over pixels that are scored."""
    scored = target != IGNORE
    p, t = predicted[scored], target[scored]
    both, ours, theirs = (torch.bincount(x, minlength=classes).double() for x in (t[p == t], p, t))
    return torch.stack([both, ours + theirs - both, theirs])


def mean_iou(counts: Tensor) -> tuple[float, Tensor]:
    """Mean IoU over the classes that occur, and IoU per class [K] (NaN where none occurs), from counts [3, K]."""
    iou = counts[0] / counts[1]
    return float(iou.nanmean()), iou


def _score(
    counts: Tensor, train: ShardedDataset, test: ShardedDataset, config: SegmentationConfig, seed: int, seconds: float,
) -> DenseScore:  # fmt: skip
    total = counts.sum(0)
    miou, iou = mean_iou(total)
    low, high = interval(mean_iou(torch.tensordot(weights, counts, 1))[0] for weights in resample(len(counts), seed))
    per_class = {f"iou/{name}": float(v) for name, v in zip(test.classes, iou, strict=True) if not bool(v.isnan())}
    return DenseScore(
        metric="miou",
        value=miou,
        low=low,
        high=high,
        n_train=len(train),
        n_test=len(test),
        details={"pixel_accuracy": float(total[0].sum() / total[2].sum()), **per_class},
        hyper={"steps": float(config.steps), "lr": config.lr},
        seconds=seconds,
    )
