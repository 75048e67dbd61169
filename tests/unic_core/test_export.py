"""What is exported is the student: same features through timm, with its config and its teachers' licenses."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from unic_core.config import DatasetConfig, RunConfig, StudentConfig, TeacherConfig, load_config
from unic_core.errors import UnicError
from unic_core.export import export_onnx, load_student, read_student, save_student
from unic_core.model_card import strictest
from unic_core.storage import LocalStore, open_store
from unic_core.student import Student
from unic_core.task import check_models
from unic_core.tokens import Tokens

TINY: dict[str, Any] = {
    "model": "vit_tiny_patch16_224",
    "image_size": 32,
    "patch_size": 8,
    "width": 32,
    "depth": 2,
    "heads": 2,
}
STUDENTS: dict[str, dict[str, Any]] = {
    "vit": TINY | {"drop_path": 0.3},
    "layer scale": TINY | {"layer_scale": 0.1},
    "registers": TINY | {"registers": 2},
    "offset": TINY | {"position_embedding": "offset"},
    "no class token": {"model": "test_vit2", "image_size": 64},
    "cnn": {"model": "test_convnext", "image_size": 64, "drop_path": 0.0},
}
TEACHERS = [
    {"name": "a", "model": "dino_vitb16", "source": "timm:x", "sha256": "ab" * 32, "license": "Apache-2.0"},
    {"name": "b", "model": "metaclip_vith14", "source": "s3://b/w", "sha256": "cd" * 32, "license": "CC-BY-NC-4.0"},
]


def run(**student: Any) -> RunConfig:
    return RunConfig(
        name="tiny",
        student=StudentConfig(**(student or TINY)),
        teachers=(TeacherConfig(name="a", model="dino_vitb16"), TeacherConfig(name="b", model="metaclip_vith14")),
        datasets=(DatasetConfig(name="imagenet-1k", source="folder:x", license="terms of ImageNet"),),
    )


def trained(config: RunConfig) -> Student:
    """A student whose weights are not those of any initialization."""
    student = Student(config.student).eval()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return student


def tokens_of(model: Any, images: Tensor) -> Tokens:
    """Class token (or mean patch) and patches that a timm model gives for images in [0, 1]."""
    cfg = model.pretrained_cfg
    mean, std = (torch.tensor(cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        features = model.forward_features((images - mean) / std)
    if features.ndim == 4:
        patch = features.flatten(2).transpose(1, 2)
        return Tokens(patch.mean(1), patch)
    patch = features[:, model.num_prefix_tokens :]
    return Tokens(patch.mean(1) if model.cls_token is None else features[:, 0], patch)


@pytest.mark.parametrize("kind", list(STUDENTS))
def test_features_are_the_students(kind: str, tmp_path: Path) -> None:
    config = run(**STUDENTS[kind])
    student = trained(config)
    save_student(student, config, open_store(str(tmp_path)), TEACHERS)
    images = torch.rand(2, 3, config.student.image_size, config.student.image_size)
    with torch.no_grad():
        expected = student.features(images)
    for model in (load_student(str(tmp_path)), timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()):
        found = tokens_of(model, images)
        torch.testing.assert_close(found.cls, expected.cls, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.patch, expected.patch, rtol=0, atol=1e-5)
        assert not model.training


def test_keys_are_timms_and_the_final_norm_has_no_effect(tmp_path: Path) -> None:
    config = run()
    save_student(trained(config), config, open_store(str(tmp_path)), TEACHERS)
    state = load_file(tmp_path / "model.safetensors")
    expected = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2
    ).state_dict()
    assert {key: value.shape for key, value in state.items()} == {key: value.shape for key, value in expected.items()}
    assert torch.equal(state["norm.weight"], torch.ones(32))
    assert torch.equal(state["norm.bias"], torch.zeros(32))


def test_the_resolved_config_lies_beside_it(tmp_path: Path) -> None:
    config = run()
    save_student(trained(config), config, open_store(str(tmp_path)), TEACHERS)
    assert load_config(tmp_path / "unic.yaml") == config


def card(tmp_path: Path, teachers: list[dict[str, str]], **keys: Any) -> tuple[dict[str, Any], str]:
    config = run()
    save_student(trained(config), config, open_store(str(tmp_path)), teachers, **keys)
    _, header, body = (tmp_path / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(header), body


def test_card_shows_teachers_licenses_data_and_results(tmp_path: Path) -> None:
    header, body = card(tmp_path, TEACHERS, metrics={"mean_top1": 0.78125})
    assert header["license"] == "cc-by-nc-4.0"
    assert header["library_name"] == "timm"
    for text in ("| a | dino_vitb16 | Apache-2.0 |", "CC-BY-NC-4.0", "abababababababab", "terms of ImageNet", "0.7812"):
        assert text in body


def test_card_of_unknown_license(tmp_path: Path) -> None:
    header, body = card(tmp_path, [*TEACHERS, TEACHERS[0] | {"name": "c", "license": "unknown, see repository"}])
    assert (header["license"], header["license_name"]) == ("other", "unknown, see repository")
    assert "read them" in body


def test_card_of_weights_with_their_own_license(tmp_path: Path) -> None:
    header, _ = card(tmp_path, TEACHERS, license="CC-BY-NC-SA-4.0")
    assert header["license"] == "cc-by-nc-sa-4.0"


@given(st.lists(st.sampled_from(["MIT", "Apache-2.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "my own"]), min_size=1))
def test_strictest_license(licenses: list[str]) -> None:
    found = strictest(licenses)
    assert found in licenses
    assert found == strictest(sorted(licenses))
    assert found == strictest([*licenses, "MIT"]) or set(licenses) == {"MIT"}
    assert ("my own" in licenses) == (found == "my own")


class FullStore(LocalStore):
    """A disk with no room left for the model card."""

    def put(self, key: str, data: bytes) -> None:
        if key == "README.md":
            raise UnicError("no space left")
        super().put(key, data)


def test_interrupted_export_is_no_student(tmp_path: Path) -> None:
    config = run()
    with pytest.raises(UnicError, match="no space"):
        save_student(trained(config), config, FullStore(str(tmp_path)), TEACHERS)
    with pytest.raises(UnicError, match="no student"):
        load_student(str(tmp_path))


def test_no_student_and_damaged_student(tmp_path: Path) -> None:
    with pytest.raises(UnicError, match=r"no student.*<run>/student"):
        load_student(str(tmp_path))
    config = run()
    save_student(trained(config), config, open_store(str(tmp_path)), TEACHERS)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UnicError, match="can't be read"):
        load_student(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"\xff\xfe"),
        ("config.json", b"[]"),
        ("config.json", b"{}"),
        ("config.json", b'{"architecture": "vit_tiny_patch16_224", "model_args": {}}'),
        ("config.json", b'{"architecture": "no_such_model", "model_args": {}, "pretrained_cfg": {}}'),
        ("model.safetensors", b""),
        ("model.safetensors", b"\xff" * 64),
    ],
)
def test_a_student_that_can_not_be_read_is_one_sentence(name: str, content: bytes, tmp_path: Path) -> None:
    config = run()
    save_student(trained(config), config, open_store(str(tmp_path)), TEACHERS)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnicError, match=rf"the student at {tmp_path} can't be read \(.+\); export it again"):
        load_student(str(tmp_path))


def test_a_damaged_config_beside_the_weights_is_one_sentence(tmp_path: Path) -> None:
    config = run()
    save_student(trained(config), config, open_store(str(tmp_path)), TEACHERS)
    for content in (b"\xff\xfe", b"[1", b"name: 3"):
        (tmp_path / "unic.yaml").write_bytes(content)
        with pytest.raises(UnicError):
            read_student(str(tmp_path))


def test_a_student_without_room_to_be_saved_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    config = run()
    with pytest.raises(UnicError, match=r"can't be saved to .* MiB in .*gone \(TMPDIR names another directory\)"):
        save_student(trained(config), config, open_store(str(tmp_path / "run")), TEACHERS)
    assert not (tmp_path / "run").exists()


def test_a_student_that_does_not_fit_timm_is_found_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    config = run()
    student = Student(config.student)
    student.encoder.blocks[0].mlp.fc1 = torch.nn.Linear(32, 8)
    with pytest.raises(UnicError, match=r"does not fit timm's model of that name: size mismatch .*fc1\.bias"):
        student.to_timm()
    student = Student(config.student)
    student.encoder.extra = torch.nn.Linear(2, 2)
    with pytest.raises(UnicError, match=r"parameters that timm's model lacks: \['extra.weight', 'extra.bias'\]"):
        student.to_timm()
    teachers = (TeacherConfig(name="a", model="timm:test_vit", weights="random://0"),)
    check_models(config.model_copy(update={"teachers": teachers}))
    monkeypatch.setattr(Student, "to_timm", lambda _: (_ for _ in ()).throw(UnicError("it does not fit")))
    with pytest.raises(UnicError, match="does not fit"):
        check_models(config.model_copy(update={"teachers": teachers}))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vit", "no class token", "cnn"])
def test_onnx_gives_the_same_for_any_batch(kind: str, tmp_path: Path) -> None:
    import onnxruntime

    config = run(**STUDENTS[kind])
    student = trained(config)
    save_student(student, config, open_store(str(tmp_path / "student")), TEACHERS)
    path = tmp_path / "out" / "student.onnx"
    assert export_onnx(str(tmp_path / "student"), path) < 1e-4
    assert [file.name for file in path.parent.iterdir()] == ["student.onnx"]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    size = config.student.image_size
    for batch in (1, 5):
        images = torch.rand(batch, 3, size, size)
        with torch.no_grad():
            expected = student.features(images)
        cls, patch = session.run(["cls", "patch"], {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(cls), expected.cls, rtol=0, atol=1e-4)
        torch.testing.assert_close(torch.from_numpy(patch), expected.patch, rtol=0, atol=1e-4)
