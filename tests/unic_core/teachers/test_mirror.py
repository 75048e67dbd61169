"""Weights from a mirror: the same teacher, without whatever they came from first."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from unic_core.config import StudentConfig, TeacherConfig
from unic_core.errors import UnicError
from unic_core.student import Student
from unic_core.teachers import check_hub, check_weights, load_teacher, mirror_hosted, mirror_teacher, resolve
from unic_core.teachers.weights import file_sha256, mirror_key

LITE = TeacherConfig(name="lite0", model="efficientnet_lite0", image_size=32)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_mirrored_teacher_is_the_same(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = str(tmp_path / "mirror")
    direct = load_teacher(LITE)
    assert mirror_teacher(LITE, mirror) == (resolve(LITE).sha256, True)
    assert mirror_teacher(LITE, mirror) == (resolve(LITE).sha256, False)
    monkeypatch.setenv("UNIC_TEACHERS", mirror)
    mirrored = load_teacher(LITE)
    assert mirrored.sha256 == direct.sha256
    images = torch.rand(2, 3, 32, 32)
    assert all(torch.equal(a, b) for a, b in zip(direct(images).values(), mirrored(images).values(), strict=True))
    assert [file_sha256(path) for path in cache.rglob("*.pth")] == [resolve(LITE).sha256]


def test_the_mirror_is_the_only_place_that_is_asked(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIC_TEACHERS", str(tmp_path / "empty"))
    with pytest.raises(UnicError, match=r"the mirror .* does not hold the weights package://.*unic teachers mirror"):
        check_weights(LITE)


def test_a_damaged_copy_is_refused_and_replaced(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = tmp_path / "mirror"
    mirror_teacher(LITE, str(mirror))
    (mirror / mirror_key(resolve(LITE).source)).write_bytes(b"not the weights")
    monkeypatch.setenv("UNIC_TEACHERS", str(mirror))
    with pytest.raises(UnicError, match="have the sha256"):
        check_weights(LITE)


def test_weights_of_a_path_need_no_mirror(tmp_path: Path) -> None:
    local = TeacherConfig(name="own", model="efficientnet_lite0", weights="random://3", image_size=32)
    assert mirror_teacher(local, str(tmp_path / "mirror")) == ("", False)
    assert not (tmp_path / "mirror").exists()


TINY = "test_vit.r160_in1k"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's local cache with the weights of one small model, and no way to the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    home = tmp_path / "hub" / f"models--timm--{TINY}"
    (home / "refs").mkdir(parents=True)
    (home / "refs/main").write_text("0" * 40)
    (home / "snapshots" / ("0" * 40)).mkdir(parents=True)
    torch.manual_seed(1)
    save_file(timm.create_model(TINY).state_dict(), home / "snapshots" / ("0" * 40) / "model.safetensors")
    return tmp_path / "hub"


def test_the_hubs_weights_come_from_the_mirror(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    mirror = str(tmp_path / "mirror")
    config = TeacherConfig(name="tiny", model=f"timm:{TINY}", image_size=160)
    student = StudentConfig(model=TINY, image_size=64, patch_size=16, pretrained=True)
    direct, own = load_teacher(config, cache=hub), Student(student)
    sha256, is_new = mirror_teacher(config, mirror, hub)
    assert is_new
    assert mirror_hosted(TINY, mirror) == (sha256, False)
    hub.rename(tmp_path / "gone")
    with pytest.raises(UnicError, match=r"not in the hub's cache, .* `unic teachers mirror`"):
        check_weights(config, hub)
    monkeypatch.setenv("UNIC_TEACHERS", mirror)
    check_weights(config)
    check_hub(TINY)
    assert load_teacher(config).sha256 == direct.sha256
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(Student(student).features(images).cls, own.features(images).cls)


def test_an_unreachable_hub_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("unic_core.teachers.hub.hf_hub_url", lambda *_, **__: "http://127.0.0.1:9/none")
    with pytest.raises(UnicError, match=r"the hub with the weights of test_vit.* cannot be reached .*refused"):
        check_hub(TINY, tmp_path)


@pytest.mark.parametrize("model", ["vit_base_patch16_gap_224", "no_such_model"])
def test_a_model_without_weights_is_told(model: str) -> None:
    with pytest.raises(UnicError, match="timm has no pretrained weights"):
        check_hub(model)
