"""Weights from a mirror: the same teacher, without whatever they came from first."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unic_core.config import TeacherConfig
from unic_core.errors import UnicError
from unic_core.teachers import check_weights, load_teacher, mirror_teacher, resolve
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
