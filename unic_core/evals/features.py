"""Frozen features of a labeled data set: images in, one vector per image out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unic_core.errors import UnicError
from unic_core.precision import autocast
from unic_core.tokens import TokenKind, Tokens

TokenChoice = Literal["cls", "patch", "both"]
FeatureModel = Callable[[Tensor], Tokens | Mapping[TokenKind, Tensor]]
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class FeatureSet:
    """x [n, D] float32 and class numbers y [n] int64, both on the CPU."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


def extract(
    model: FeatureModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    token: TokenChoice = "cls",  # noqa: S107 (no password)
    precision: Literal["fp32", "bf16"] = "fp32",
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> FeatureSet:
    """Run a frozen model over a data set (section 3.1).

    Args:
        model: float images [B, 3, H, W] in [0, 1] to cls [B, D] and patch [B, N, D] tokens, already normed; only
            the kinds that `token` asks for are needed. A module is expected in eval mode, on `device`.
        batches: uint8 images [B, 3, H, W] and labels [B].
        token: the cls token, the mean of the patch tokens, or both side by side.
        precision: of the forward pass; features are float32 in any case.
        progress: called with images done (and None: the total is not known here).

    Raises:
        UnicError: no images, a token kind that the model doesn't have, features that are not finite.
    """
    parts = list(feature_batches(model, batches, token, precision, device, progress))
    if not parts:
        raise UnicError("there are no images to take features of; check the split of the data set")
    return FeatureSet(torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]))


def feature_batches(
    model: FeatureModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    token: TokenChoice,
    precision: Literal["fp32", "bf16"],
    device: torch.device | str,
    progress: Progress | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """What `extract` joins: features [b, D] float32 and labels [b] of one batch after the other, on the CPU."""
    device = torch.device(device)
    done = 0
    for images, labels in batches:
        with torch.no_grad(), autocast(device, precision):
            x = _pool(model(images.to(device, non_blocking=True).float() / 255), token).float().cpu()
        if not bool(x.isfinite().all()):
            bad = done + int(x.isfinite().all(1).logical_not().nonzero()[0])
            raise UnicError(f"the features of image {bad} are not finite; check the model, or use precision fp32")
        done += len(x)
        yield x, labels.long().cpu()
        if progress is not None:
            progress(done, None)


def _pool(tokens: Tokens | Mapping[TokenKind, Tensor], choice: TokenChoice) -> Tensor:
    """One vector per image, [B, D], or [B, D_cls + D_patch] of both."""

    def of(kind: TokenKind) -> Tensor:
        if isinstance(tokens, Tokens):
            return tokens.of(kind)
        if kind not in tokens:
            raise UnicError(f"the model has no {kind} tokens; set evaluation.token to one of {', '.join(tokens)}")
        return tokens[kind]

    if choice == "cls":
        return of("cls")
    if choice == "patch":
        return of("patch").mean(1)
    return torch.cat([of("cls"), of("patch").mean(1)], 1)
