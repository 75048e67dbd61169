"""Converted checkpoints give the features of plain forward passes written for the published layouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from tests.unic_core.teachers import layouts
from tests.unic_core.teachers.layouts import DEPTH, DIM, HEADS, PATCH, SIZE, State
from unic_core.errors import UnicError
from unic_core.teachers.converters import CONVERTERS, check_fit, convert

TINY: dict[str, Any] = {
    "img_size": SIZE, "patch_size": PATCH, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS, "num_classes": 0
}  # fmt: skip


def build(model: str, **changes: Any) -> torch.nn.Module:
    return timm.create_model(model, **(TINY | changes)).eval()


def features(model: torch.nn.Module, state: State, images: Tensor) -> Tensor:
    check_fit(state, model.state_dict(), "the test's weights")
    model.load_state_dict(state)
    with torch.no_grad():
        return model.forward_features(images)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, SIZE, SIZE)


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["dino", "ibot"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"teacher": {f"module.backbone.{k}": v for k, v in s.items()} | {"module.head.last": torch.zeros(3)}},
        lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
    ],
    ids=["flat", "state_dict", "training", "ddp"],
)
def test_dino_and_ibot(name: str, wrap: Callable[[State], Any], images: Tensor) -> None:
    source, model = layouts.vit_state(), build("vit_base_patch16_224")
    state = convert(name, wrap(source), model.state_dict())
    same(features(model, state, images), layouts.dino(source, images))


def test_deit3(images: Tensor) -> None:
    source = layouts.vit_state(scale="gamma_{n}", positions=layouts.TOKENS)
    model = build("deit3_base_patch16_224")
    state = convert("deit3", {"model": source}, model.state_dict())
    same(features(model, state, images), layouts.deit3(source, images))


@pytest.mark.parametrize("swiglu", [False, True], ids=["mlp", "swiglu"])
@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2(swiglu: bool, registers: int, images: Tensor) -> None:
    source = layouts.vit_state(scale="ls{n}.gamma", swiglu=swiglu)
    source["mask_token"] = torch.zeros(1, DIM)
    if registers:
        source["register_tokens"] = layouts.values(1, registers, DIM)
    size = "giant" if swiglu else "base"
    # the hidden size of timm's giant: 2.66667 * 2 of the width, gate and value together
    model = build(f"vit_{size}_patch14_{'reg4_' if registers else ''}dinov2", **({"mlp_ratio": 5.5} if swiglu else {}))
    before = {key: value.clone() for key, value in source.items()}
    state = convert("dinov2", source, model.state_dict())
    same(features(model, state, images), layouts.dinov2(source, images))
    assert all(torch.equal(source[key], value) for key, value in before.items())


@pytest.mark.parametrize("name", ["metaclip", "clip_openai"])
@pytest.mark.parametrize("prefix", ["visual.", ""])
def test_clip_as_openai_saves_it(name: str, prefix: str, images: Tensor) -> None:
    source, model = layouts.clip_openai_state(), build("vit_huge_patch14_clip_quickgelu_224")
    saved = {f"{prefix}{key}": value for key, value in source.items()}
    if prefix:  # the text tower lies beside it
        saved |= {"logit_scale": torch.zeros(1), "transformer.resblocks.0.ln_1.weight": torch.zeros(8)}
    state = convert(name, saved, model.state_dict())
    same(features(model, state, images), layouts.clip_openai(source, images))


@pytest.mark.parametrize("name", ["metaclip", "clip_hf"])
def test_clip_as_hugging_face_saves_it(name: str, images: Tensor) -> None:
    source, model = layouts.clip_hf_state(), build("vit_huge_patch14_clip_quickgelu_224")
    saved = {f"vision_model.{key}": value for key, value in source.items()}
    saved |= {"text_model.embeddings.position_ids": torch.zeros(1), "visual_projection.weight": torch.zeros(16, DIM)}
    state = convert(name, saved, model.state_dict())
    same(features(model, state, images), layouts.clip_hf(source, images))


@pytest.mark.parametrize("name", [name for name in CONVERTERS if name not in ("clip_openai", "clip_hf")])
def test_timm_layout_stays_as_it_is(name: str) -> None:
    own = build("vit_base_patch16_224", reg_tokens=2, init_values=1.0).state_dict()
    assert convert(name, own, own).keys() == own.keys()


class TestOrder:
    """The same architecture under other names."""

    def state(self) -> State:
        return {"a.w": torch.zeros(4, 3), "a.b": torch.ones(4), "n": torch.tensor(7)}

    def test_matches_by_place_and_leaves_the_classifier(self) -> None:
        model = {"x": torch.zeros(4, 3), "y": torch.zeros(4), "z": torch.tensor(0)}
        saved = self.state() | {"fc.weight": torch.zeros(10, 4), "fc.bias": torch.zeros(10)}
        assert {k: v.tolist() for k, v in convert("order", saved, model).items()} == {
            "x": [[0.0] * 3] * 4,
            "y": [1.0] * 4,
            "z": 7,
        }

    def test_every_shape_is_checked(self) -> None:
        model = {"x": torch.zeros(4, 3), "y": torch.zeros(5), "z": torch.tensor(0)}
        with pytest.raises(UnicError, match=r"a\.b .*\(4,\).* y .*\(5,\)"):
            convert("order", self.state(), model)

    @pytest.mark.parametrize("extra", [{"w": torch.zeros(10, 4)}, {"w": torch.zeros(10, 4), "b": torch.zeros(9)}])
    def test_other_lengths_are_refused(self, extra: State) -> None:
        with pytest.raises(UnicError, match="not the same architecture"):
            convert("order", self.state() | extra, self.state())
        with pytest.raises(UnicError, match="not the same architecture"):
            convert("order", self.state(), self.state() | extra)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("norm.bias"), r"norm\.bias is missing"),
        (lambda s: s.update({"norm.bias": torch.zeros(5)}), r"norm\.bias is \(5,\) instead of \(32,\)"),
        (lambda s: s.update({"neck.weight": torch.zeros(5)}), r"neck\.weight is unknown"),
    ],
)
def test_first_wrong_key_is_named(change: Callable[[State], Any], words: str) -> None:
    state = layouts.vit_state()
    change(state)
    with pytest.raises(UnicError, match=words):
        check_fit(state, layouts.vit_state(), "it")


@pytest.mark.parametrize(
    ("name", "checkpoint", "words"),
    [
        ("nope", {"a": torch.zeros(1)}, "use one of timm"),
        ("dino", {"optimizer": {}, "epoch": 1}, "no weights"),
        ("dino", [1, 2], "not a state dict"),
        ("clip_hf", {"conv1.weight": torch.zeros(1)}, "not in the layout 'clip_hf'"),
        ("dinov2", {"register_tokens": torch.zeros(1)}, "no cls_token"),
    ],
)
def test_other_content_is_one_sentence(name: str, checkpoint: Any, words: str) -> None:
    with pytest.raises(UnicError, match=words):
        convert(name, checkpoint, {})
