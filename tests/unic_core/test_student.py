from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
import torch._dynamo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from unic_core.config import StudentConfig
from unic_core.draw import Draw
from unic_core.errors import UnicError
from unic_core.student import SampleDropPath, Student

VIT = "vit_base_patch16_224"
SMALL: dict[str, Any] = {"model": VIT, "image_size": 32, "patch_size": 8, "width": 32, "depth": 3, "heads": 2}


def small(**changes: Any) -> Student:
    return Student(StudentConfig(**{**SMALL, **changes}))


def some_draw(n: int) -> Draw:
    return Draw(seed=7, epoch=3, samples=torch.arange(100, 100 + n))


def test_taps_are_the_raw_residual_stream_after_every_block() -> None:
    student = small(registers=4, drop_path=0.0).eval()
    images = torch.rand(2, 3, 32, 32)
    tokens = student(images)
    encoder = student.encoder
    x = encoder._pos_embed(encoder.patch_embed((images - student.mean) / student.std))
    assert (len(tokens), student.depth, student.width, student.grid) == (3, 3, 32, (4, 4))
    for block, taps in zip(encoder.blocks, tokens, strict=True):
        x = block(x)
        torch.testing.assert_close(taps.cls, x[:, 0])
        torch.testing.assert_close(taps.patch, x[:, 5:])  # after cls and the 4 registers


def test_features_are_the_affine_free_norm_of_the_last_block() -> None:
    student = small()
    images = torch.rand(2, 3, 32, 32)
    features = student.train().features(images)  # no drop path, even here
    last = student.eval()(images)[-1]
    torch.testing.assert_close(features.cls, F.layer_norm(last.cls, (32,), eps=1e-6))
    torch.testing.assert_close(features.patch, F.layer_norm(last.patch, (32,), eps=1e-6))
    assert not list(student.encoder.norm.parameters())


def test_the_paper_s_student_has_the_paper_s_parameters() -> None:
    with torch.device("meta"):
        student = Student(StudentConfig())
    unused = 768 + 2 * 768  # mask token, affine part of the final norm
    assert sum(p.numel() for p in student.parameters()) == 85_799_424 - unused


FAMILIES: list[dict[str, Any]] = [
    SMALL,
    {**SMALL, "registers": 2, "layer_scale": 1e-4},
    {**SMALL, "model": "vit_base_patch16_siglip_224"},  # no cls token, attention pool
    {**SMALL, "model": "vit_medium_patch16_reg4_gap_256"},  # registers without cls token
    {**SMALL, "model": "deit_tiny_distilled_patch16_224"},  # a second prefix token
    {**SMALL, "model": "vit_small_patch16_dinov3"},  # rotary embeddings, Eva
    {**SMALL, "model": "beit_base_patch16_224"},
    {"model": "convnext_atto", "image_size": 32},
    {"model": "tf_efficientnet_lite0", "image_size": 32},
    {"model": "resnet10t", "image_size": 32},
]


@pytest.mark.parametrize("changes", FAMILIES, ids=[str(i) + "-" + str(c["model"]) for i, c in enumerate(FAMILIES)])
def test_every_parameter_is_trained_and_timm_gives_the_same_features(changes: dict[str, Any]) -> None:
    student = Student(StudentConfig(**changes)).train()
    images = torch.rand(3, 3, 32, 32)
    tokens = student(images, some_draw(3))
    last = tokens[-1]
    assert len(tokens) == student.depth
    assert last.cls.shape == (3, student.width)
    assert last.patch.shape == (3, student.grid[0] * student.grid[1], student.width)
    torch.autograd.backward(last.cls.square().sum() + last.patch.square().sum())
    assert [n for n, p in student.named_parameters() if p.grad is None] == []

    student.eval()
    features = student.features(images)
    model: Any = student.to_timm()
    sequence = model.forward_features((images - student.mean) / student.std)
    if not student.has_blocks:
        sequence = sequence.flatten(2).transpose(1, 2)
        torch.testing.assert_close(features.cls, features.patch.mean(1))
    torch.testing.assert_close(sequence[:, -features.patch.shape[1] :], features.patch)


def test_backbones_without_blocks_have_one_set_of_tokens() -> None:
    student = Student(StudentConfig(model="convnext_atto", image_size=64)).eval()
    assert (student.has_blocks, student.depth, student.grid, student.width) == (False, 1, (2, 2), 320)
    (tokens,) = student(torch.rand(1, 3, 64, 64))
    torch.testing.assert_close(tokens.cls, tokens.patch.mean(1))


# ---------------------------------------------------------------- drop path


@settings(max_examples=6, deadline=None)
@given(order=st.permutations(range(6)), size=st.integers(1, 6))
def test_drop_path_depends_on_the_sample_alone(order: list[int], size: int) -> None:
    torch.manual_seed(0)
    student = small(drop_path=0.6).train()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(5)  # branches that matter beside the residual stream
    images, draw = torch.rand(6, 3, 32, 32), some_draw(6)
    whole = student(images, draw)
    part = torch.tensor(order[:size])
    again = student(images[part], Draw(draw.seed, draw.epoch, draw.samples[part]))
    for before, after in zip(whole, again, strict=True):
        torch.testing.assert_close(before.patch[part], after.patch)


def test_drop_path_follows_the_formula() -> None:
    student = small(drop_path=0.5, depth=2).train()
    assert not [m for m in student.modules() if isinstance(m, timm.layers.DropPath)]
    paths = [m for m in student.modules() if isinstance(m, SampleDropPath)]
    assert [p.rate for p in paths] == [0.5, 0.5]  # both branches of the last block; the first block has rate 0
    draw = some_draw(4000)
    scales = student._path_scales(draw, 4000)
    assert scales is not None
    torch.testing.assert_close(scales, (draw.uniform("drop_path", 2) >= 0.5).float().T * 2)
    assert (scales.mean(1) - 1).abs().max() < 0.06
    assert abs(float(torch.corrcoef(scales)[0, 1])) < 0.05
    x = torch.randn(3, 4, 5)
    paths[0].scale = torch.tensor([0.0, 2.0, 1.0])
    torch.testing.assert_close(paths[0](x), x * torch.tensor([0.0, 2.0, 1.0])[:, None, None])
    assert torch.equal(paths[0].eval()(x), x)


def test_a_rate_of_one_drops_the_branch() -> None:
    student = small(drop_path=1.0, depth=2).train()
    first, second = student(torch.rand(2, 3, 32, 32), some_draw(2))
    assert torch.equal(first.patch, second.patch)


def test_drop_path_needs_a_draw_in_training_only() -> None:
    student = small().train()
    with pytest.raises(UnicError, match="draw"):
        student(torch.rand(2, 3, 32, 32))
    with pytest.raises(UnicError, match="draw"):
        student(torch.rand(2, 3, 32, 32), some_draw(3))
    student.eval()(torch.rand(2, 3, 32, 32))
    small(drop_path=0.0).train()(torch.rand(2, 3, 32, 32))


def test_blocks_compile_once_for_all_steps() -> None:
    student = small(drop_path=0.4, depth=3).train()
    images = torch.rand(4, 3, 32, 32)
    draws = [Draw(0, epoch, torch.arange(4)) for epoch in range(3)]
    expected = [student(images, draw)[-1].patch for draw in draws]
    names = list(student.state_dict())
    torch._dynamo.reset()
    counter = CompileCounter()
    student.compile_blocks(backend=counter)
    actual = [student(images, draw)[-1].patch for draw in draws]
    assert counter.frame_count == 2  # a block without drop path, and one with it that serves all others
    assert list(student.state_dict()) == names
    for e, a in zip(expected, actual, strict=True):
        torch.testing.assert_close(e, a)
    torch._dynamo.reset()


# ---------------------------------------------------------------- images and position embeddings


@pytest.mark.parametrize("registers", [0, 3])
def test_offset_resizes_position_embeddings_as_the_published_model(registers: int) -> None:
    student = small(position_embedding="offset", drop_path=0.0, registers=registers).eval()
    encoder = student.encoder
    assert torch.equal(student.features(torch.ones(1, 3, 32, 32)).cls, student.features(torch.ones(1, 3, 32, 32)).cls)
    images = torch.rand(2, 3, 48, 56)
    prefix = 1 + registers
    table = encoder.pos_embed[:, prefix:].reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    grid = F.interpolate(table, scale_factor=((6 + 0.1) / 4, (7 + 0.1) / 4), mode="bicubic", antialias=False)
    position = torch.cat([encoder.pos_embed[:, :prefix], grid.flatten(2).mT], dim=1)
    patches = encoder.patch_embed((images - student.mean) / student.std).flatten(1, 2)
    tokens = [t.expand(2, -1, -1) for t in (encoder.cls_token, encoder.reg_token) if t is not None]
    x = torch.cat([*tokens, patches], dim=1) + position
    for block in encoder.blocks:
        x = block(x)
    torch.testing.assert_close(student(images)[-1].patch, x[:, prefix:])


def test_offset_and_timm_agree_at_the_native_size_only() -> None:
    offset = small(position_embedding="offset").eval()
    plain = small().eval()
    plain.load_state_dict(offset.state_dict())
    native, larger = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 64, 64)
    assert torch.equal(offset.features(native).cls, plain.features(native).cls)
    assert (offset.features(larger).patch - plain.features(larger).patch).abs().max() > 1e-3
    reference = plain.to_timm()((larger - plain.mean) / plain.std)
    torch.testing.assert_close(plain.features(larger).cls, reference)


def test_offset_without_embedded_class_and_in_a_copy() -> None:
    student = small(model="vit_base_patch14_reg4_dinov2", position_embedding="offset").eval()
    twin = copy.deepcopy(student)
    images = torch.rand(1, 3, 48, 48)
    before = student.features(images).patch
    with torch.no_grad():
        student.encoder.pos_embed.zero_()
    torch.testing.assert_close(twin.features(images).patch, before)
    assert (student.features(images).patch - before).abs().max() > 1e-2


def test_other_image_sizes_are_taken_where_possible() -> None:
    student = small().eval()
    assert student.features(torch.rand(1, 3, 40, 24)).patch.shape == (1, 15, 32)
    with pytest.raises(UnicError, match="40 x 30 pixels cannot be cut into patches of 8"):
        student(torch.rand(1, 3, 40, 30))
    fixed = small(model="beit_base_patch16_224").eval()
    with pytest.raises(UnicError, match="32 px square"):
        fixed(torch.rand(1, 3, 40, 40))


def test_normalization_belongs_to_the_student_not_to_its_weights() -> None:
    student = small()
    assert not {"mean", "std"} & set(student.state_dict())
    torch.testing.assert_close(student.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))


def test_mixed_precision_gives_finite_tokens() -> None:
    student = small().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens = student(torch.rand(2, 3, 32, 32), some_draw(2))
    assert all(t.patch.isfinite().all() for t in tokens)


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": "vit_bas_patch16_224"}, "not a timm model; did you mean vit_base_patch16_224"),
        ({"heads": 5}, "divisible"),
        ({"image_size": 30}, "student.image_size 30 is not a multiple of the patch size 8"),
        ({"model": "convnext_atto"}, "student.width is set, but convnext_atto does not take it"),
        ({"model": "vgg11", "patch_size": None, "width": None, "depth": None, "heads": None}, "set it to 0"),
        ({"model": "hiera_tiny_224", "image_size": 224, "depth": None}, "student.patch_size"),
        ({"model": "vit_small_patch16_dinov3", "position_embedding": "offset"}, "set it to 'timm'"),
        ({"pretrained": True}, "pretrained weights of student.model vit_base_patch16_224 cannot be loaded"),
    ],
)
def test_mistakes_are_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UnicError, match=sentence) as error:
        small(**changes)
    assert "\n" not in str(error.value)


def test_depth_is_refused_by_a_convnet_and_odd_backbones_altogether() -> None:
    with pytest.raises(UnicError, match=r"student\.depth is set, but convnext_atto"):
        Student(StudentConfig(model="convnext_atto", depth=3))
    with pytest.raises(UnicError, match="neither the blocks of a ViT nor a final feature map"):
        Student(StudentConfig(model="hiera_tiny_224"))
