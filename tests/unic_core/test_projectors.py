from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from unic_core.config import LadderConfig, LinearNormConfig, MLPConfig, ProjectorConfig, TransformerConfig
from unic_core.errors import UnicError
from unic_core.projectors import (
    Ladder,
    Projectors,
    build_projectors,
    ladder_config_from_heads,
    ladder_state_from_heads,
)
from unic_core.tokens import TOKEN_KINDS, Features, TokenKind, Tokens

WIDTH, DEPTH = 12, 4
TARGETS: dict[str, dict[TokenKind, int]] = {
    "dino": {"cls": 10, "patch": 10},
    "keys": {"patch": 6},  # named like a method of ModuleDict
    "clip-2.5": {"cls": 7, "patch": 9},
}
Heads = dict[tuple[str, TokenKind, int], nn.Sequential]


def random_blocks(depth: int = DEPTH, grad: bool = False) -> list[Tokens]:
    shapes = ((5, WIDTH), (5, 3, WIDTH))
    return [Tokens(*(torch.randn(s, requires_grad=grad) for s in shapes)) for _ in range(depth)]


def randomize(module: nn.Module) -> None:
    """Weights of a size at which every term shows, biases and norms included."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)


def plain_heads(ladder: Ladder) -> Heads:
    """The plain MLPs of a ladder's weights, numbered as in the published checkpoints."""
    heads: Heads = {}
    for kind in TOKEN_KINDS:
        part = getattr(ladder, kind)
        for number, teacher in enumerate(part.teachers):
            start = 0
            for row, (block, size) in enumerate(ladder.hidden.items()):
                first, second = part.first[str(block)], part.second["to-" + teacher.replace(".", "/")]
                layers: list[nn.Module] = []
                if first.pre_norm is not None:
                    layers.append(filled(nn.LayerNorm(WIDTH), first.pre_norm, number * WIDTH))
                layers.append(filled(nn.Linear(WIDTH, size, first.bias is not None), first, number * size))
                if first.mid_norm is not None:
                    layers.append(filled(nn.LayerNorm(size), first.mid_norm, number * size))
                last = nn.Linear(size, second.out_features, second.bias is not None)
                with torch.no_grad():
                    last.weight.copy_(second.weight[:, start : start + size])
                    if last.bias is not None:
                        last.bias.copy_(second.bias[row])
                heads[teacher, kind, block] = nn.Sequential(*layers, nn.GELU(), last)
                start += size
    return heads


def filled(module: nn.Module, source: Any, start: int) -> nn.Module:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(getattr(source, name)[start : start + len(parameter)])
    return module


def plain_sum(heads: Heads, blocks: Sequence[Tokens]) -> Features:
    features: Features = {}
    for (teacher, kind, block), mlp in heads.items():
        term = mlp(blocks[block].of(kind))
        kinds = features.setdefault(teacher, {})
        kinds[kind] = kinds[kind] + term if kind in kinds else term
    return features


def loss_of(features: Features) -> Tensor:
    total = torch.zeros(())
    for teacher, kinds in sorted(features.items()):
        for kind, prediction in sorted(kinds.items()):
            total = total + (prediction * (len(teacher) + len(kind)) / 10).sin().mean()
    return total


def assert_near(actual: Tensor | None, expected: Tensor | None) -> None:
    """Equal within 1e-5 of the largest value, or both without a value."""
    assert (actual is None) == (expected is None)
    if actual is not None and expected is not None:
        assert actual.shape == expected.shape
        assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


def as_state(heads: Heads, grad: bool = False) -> dict[str, Tensor]:
    """The fused state of plain heads, or of their gradients, through the importer's function."""
    plain: dict[tuple[str, TokenKind, int], dict[str, Tensor]] = {}
    for key, mlp in heads.items():
        named: list[tuple[str, Any]] = [(n, p.grad if grad else p.detach()) for n, p in mlp.named_parameters()]
        plain[key] = {f"layers.{n}": tensor for n, tensor in named}
    return ladder_state_from_heads(plain)


LADDERS: dict[str, ProjectorConfig] = {
    "ladder": LadderConfig(hidden=8, hidden_last=16),
    "subset": LadderConfig(hidden=8, hidden_last=16, blocks=(3, 1)),
    "pre-norm": LadderConfig(hidden=8, hidden_last=16, pre_norm=True),
    "mid-norm": LadderConfig(hidden=8, hidden_last=16, mid_norm=True),
    "both norms": LadderConfig(hidden=8, hidden_last=16, pre_norm=True, mid_norm=True),
    "mlp": MLPConfig(hidden=16),
    "mlp with norms": MLPConfig(hidden=16, pre_norm=True, mid_norm=True),
    "linear-norm": LinearNormConfig(hidden=16),
}


@pytest.mark.parametrize("name", LADDERS)
def test_fused_ladder_equals_the_sum_of_plain_mlps_with_gradients(name: str) -> None:
    ladder = build_projectors(LADDERS[name], TARGETS, WIDTH, DEPTH, has_blocks=True)
    assert isinstance(ladder, Ladder)
    randomize(ladder)
    heads = plain_heads(ladder)
    blocks = random_blocks(grad=True)

    fused = ladder(blocks)
    plain = plain_sum(heads, blocks)
    assert {t: set(k) for t, k in fused.items()} == {t: set(k) for t, k in TARGETS.items()}
    for teacher, kinds in fused.items():
        for kind, prediction in kinds.items():
            assert prediction.shape[-1] == TARGETS[teacher][kind]
            assert_near(prediction, plain[teacher][kind])

    inputs = [t for b in blocks for t in b]
    torch.autograd.backward(loss_of(plain))
    expected = [t.grad for t in inputs]
    for tensor in inputs:
        tensor.grad = None
    torch.autograd.backward(loss_of(fused))
    for tensor, gradient in zip(inputs, expected, strict=True):
        assert_near(tensor.grad, gradient)
    if name != "linear-norm":  # the published layout has biases
        gradients = as_state(heads, grad=True)
        for parameter_name, parameter in ladder.named_parameters():
            assert_near(parameter.grad, gradients[parameter_name])


@pytest.mark.parametrize("name", [n for n in LADDERS if n != "linear-norm"])
def test_published_heads_come_back_exactly(name: str) -> None:
    ladder = build_projectors(LADDERS[name], TARGETS, WIDTH, DEPTH, has_blocks=True)
    assert isinstance(ladder, Ladder)
    randomize(ladder)
    state = as_state(plain_heads(ladder))
    assert set(state) == set(ladder.state_dict())
    assert all(torch.equal(state[n], t) for n, t in ladder.state_dict().items())

    raw = {k: {f"layers.{n}": p for n, p in mlp.state_dict().items()} for k, mlp in plain_heads(ladder).items()}
    config, targets = ladder_config_from_heads(raw, DEPTH)
    assert targets == TARGETS
    again = build_projectors(config, {t: targets[t] for t in TARGETS}, WIDTH, DEPTH, has_blocks=True)
    again.load_state_dict(state)
    blocks = random_blocks()
    torch.testing.assert_close(again(blocks), ladder(blocks))


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ({}, "no projector heads"),
        ({("a", "cls", 0): {"layers.0.weight": torch.zeros(2, 2)}}, "not a two-layer MLP"),
        ({("a", "cls", 0): {"odd": torch.zeros(2, 2)}}, "not a two-layer MLP"),
        ({("a", "cls", 0): "mlp", ("a", "patch", 1): "mlp"}, "is missing"),
        ({("a", "cls", 0): "mlp", ("a", "cls", 1): "normed"}, "norms that others lack"),
    ],
)
def test_broken_heads_are_one_sentence(weights: dict[Any, Any], sentence: str) -> None:
    mlp = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
    normed = nn.Sequential(nn.LayerNorm(3), *mlp)
    named = {
        "mlp": {f"layers.{n}": p for n, p in mlp.state_dict().items()},
        "normed": {f"layers.{n}": p for n, p in normed.state_dict().items()},
    }
    with pytest.raises(UnicError, match=sentence):
        ladder_state_from_heads({k: named[w] if isinstance(w, str) else w for k, w in weights.items()})


class CountProducts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        self.count += func.overloadpacket.__name__ in ("mm", "addmm", "bmm", "baddbmm")
        return func(*args, **(kwargs or {}))


def test_one_product_per_block_and_one_per_teacher() -> None:
    targets: dict[str, dict[TokenKind, int]] = {name: {"cls": 8, "patch": 8} for name in "abcde"}
    ladder = build_projectors(LadderConfig(hidden=8, hidden_last=16), targets, WIDTH, DEPTH, has_blocks=True)
    with CountProducts() as counter:
        ladder(random_blocks())
    assert counter.count == 2 * (DEPTH + len(targets))


def test_ladder_hidden_sizes_and_initialization() -> None:
    config = LadderConfig(hidden=96, hidden_last=192, blocks=(0, 3), init_std=0.05)
    ladder = build_projectors(config, TARGETS, WIDTH, DEPTH, has_blocks=True)
    assert isinstance(ladder, Ladder)
    assert ladder.hidden == {0: 96, 3: 192}
    for name, parameter in ladder.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            assert 0.04 < parameter.std() < 0.06
            assert parameter.abs().max() < 2.0


@pytest.mark.parametrize("config", [*LADDERS.values(), TransformerConfig(heads=3)], ids=lambda c: c.kind)
def test_every_parameter_gets_a_gradient(config: ProjectorConfig) -> None:
    projectors = build_projectors(config, TARGETS, WIDTH, DEPTH, has_blocks=True)
    randomize(projectors)
    torch.autograd.backward(loss_of(projectors(random_blocks())))
    assert all(p.grad is not None and p.grad.any() for p in projectors.parameters() if p.ndim != 1)
    assert all(p.grad is not None for p in projectors.parameters())


def test_linear_norm_has_no_linear_bias() -> None:
    projectors = build_projectors(LinearNormConfig(hidden=16), TARGETS, WIDTH, DEPTH, has_blocks=True)
    assert not [m for m in projectors.modules() if isinstance(m, nn.Linear) and m.bias is not None]


def test_transformer_is_one_block_and_a_linear_map() -> None:
    projectors = build_projectors(TransformerConfig(heads=3, mlp_ratio=2.0), TARGETS, WIDTH, DEPTH, has_blocks=True)
    randomize(projectors)
    blocks = random_blocks()
    features = projectors(blocks)
    block = Block(WIDTH, 3, 2.0, qkv_bias=True)
    parts: Any = projectors
    block.load_state_dict(parts.blocks["to-dino"].state_dict())
    x = block(torch.cat([blocks[-1].cls[:, None], blocks[-1].patch], dim=1))
    torch.testing.assert_close(features["dino"]["cls"], parts.cls["to-dino"](x[:, 0]))
    torch.testing.assert_close(features["dino"]["patch"], parts.patch["to-dino"](x[:, 1:]))
    assert set(features["keys"]) == {"patch"}


@pytest.mark.parametrize("config", [*LADDERS.values(), TransformerConfig(heads=3)], ids=lambda c: c.kind)
def test_mixed_precision_stays_close(config: ProjectorConfig) -> None:
    projectors = build_projectors(config, TARGETS, WIDTH, DEPTH, has_blocks=True)
    blocks = random_blocks()
    exact = projectors(blocks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = projectors(blocks)
    for teacher, kinds in exact.items():
        for kind, value in kinds.items():
            other = rounded[teacher][kind]
            assert other.dtype == torch.bfloat16
            assert (other - value).abs().max() < 0.03 * value.abs().max() + 1e-3


@pytest.mark.parametrize("config", [MLPConfig(hidden=16), LinearNormConfig(hidden=16), TransformerConfig(heads=3)])
def test_backbones_without_blocks_take_the_last_block_projectors(config: ProjectorConfig) -> None:
    projectors: Projectors = build_projectors(config, TARGETS, WIDTH, 1, has_blocks=False)
    features = projectors(random_blocks(depth=1))
    assert features["keys"]["patch"].shape == (5, 3, 6)


@pytest.mark.parametrize(
    ("config", "has_blocks", "sentence"),
    [
        (LadderConfig(), False, "needs a student with blocks"),
        (LadderConfig(blocks=(0, 4)), True, "different block numbers from 0 to 3"),
        (LadderConfig(blocks=(3, 3)), True, "different block numbers"),
        (LadderConfig(blocks=(-1, 3)), True, "different block numbers"),
        (LadderConfig(blocks=()), True, "lacks the student's last block 3"),
        (LadderConfig(blocks=(0, 1)), True, "lacks the student's last block 3"),
        (TransformerConfig(heads=5), True, "projector.heads 5 does not divide the student's width 12"),
    ],
)
def test_mistakes_are_one_sentence(config: ProjectorConfig, has_blocks: bool, sentence: str) -> None:
    with pytest.raises(UnicError, match=sentence):
        build_projectors(config, TARGETS, WIDTH, DEPTH, has_blocks)
