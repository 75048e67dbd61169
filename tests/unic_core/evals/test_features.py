"""What extract hands to the probes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from unic_core.errors import UnicError
from unic_core.evals.features import extract
from unic_core.tokens import TokenKind, Tokens


def batches(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=generator),
            torch.arange(n, dtype=torch.int32),
        )
        for n in sizes
    ]


def tokens(images: Tensor) -> Tokens:
    """cls: mean color; patch: the color of every pixel."""
    return Tokens(images.mean((2, 3)), images.flatten(2).transpose(1, 2))


def test_cls_patch_and_both() -> None:
    data = batches(4, 3)
    images = torch.cat([x for x, _ in data]).float() / 255
    cls, patch, both = (extract(tokens, data, token=t) for t in ("cls", "patch", "both"))
    assert torch.allclose(cls.x, images.mean((2, 3)))
    assert torch.allclose(patch.x, tokens(images).patch.mean(1))
    assert torch.equal(both.x, torch.cat([cls.x, patch.x], 1))
    assert cls.y.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert (cls.x.dtype, cls.y.dtype, len(cls)) == (torch.float32, torch.int64, 7)


def test_a_mapping_with_only_the_asked_token_will_do() -> None:
    def teacher(images: Tensor) -> Mapping[TokenKind, Tensor]:
        return {"patch": tokens(images).patch}

    assert extract(teacher, batches(2), token="patch").x.shape == (2, 3)
    with pytest.raises(UnicError, match=r"no cls tokens; set evaluation\.token to one of patch"):
        extract(teacher, batches(2), token="both")


def test_bf16_computes_in_bf16_and_returns_float32() -> None:
    linear = torch.nn.Linear(192, 4)
    seen = []

    def model(images: Tensor) -> Tokens:
        y = linear(images.flatten(1))
        seen.append(y.dtype)
        return Tokens(y, y[:, None])

    full, half = extract(model, batches(5)), extract(model, batches(5), precision="bf16")
    assert seen == [torch.float32, torch.bfloat16]
    assert half.x.dtype == torch.float32
    assert torch.allclose(full.x, half.x, atol=0.05)


def test_features_carry_no_gradient_and_can_be_trained_on() -> None:
    linear = torch.nn.Linear(192, 4)
    features = extract(lambda x: {"cls": linear(x.flatten(1))}, batches(3))
    assert not features.x.requires_grad
    weight = torch.zeros(4, requires_grad=True)
    torch.autograd.backward((features.x @ weight).sum())  # tensors of inference mode could not be saved for backward


def test_progress_counts_images() -> None:
    seen: list[int] = []
    extract(tokens, batches(4, 4, 1), progress=lambda done, total: seen.append(done))
    assert seen == [4, 8, 9]


def test_no_images_and_broken_features_are_refused() -> None:
    with pytest.raises(UnicError, match="no images"):
        extract(tokens, [])

    def broken(images: Tensor) -> Tokens:
        x = images.mean((2, 3))
        if len(images) == 3:
            x[1] = torch.inf
        return Tokens(x, x[:, None])

    with pytest.raises(UnicError, match="features of image 5 are not finite"):
        extract(broken, batches(4, 3))
