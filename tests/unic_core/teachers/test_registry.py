"""What the registry says agrees with timm, and mistakes are named."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from unic_core.config import TeacherConfig
from unic_core.errors import UnicError
from unic_core.teachers import REGISTRY, resolve, teacher_rows
from unic_core.teachers.converters import CONVERTERS


def build_on_meta(name: str) -> torch.nn.Module:
    spec = REGISTRY[name]
    with torch.device("meta"):
        model = timm.create_model(spec.model, num_classes=0, **spec.model_args).eval()
        if model.pretrained_cfg["input_size"][-1] != spec.image_size and hasattr(model, "set_input_size"):
            model.set_input_size(img_size=spec.image_size)
    return model


@pytest.mark.parametrize("name", ["dino_vitb16", "dbot_ft_vitb16", "dinov2_vits14_reg4", "efficientnet_lite2"])
def test_parameters_and_flops_are_those_of_the_model(name: str) -> None:
    spec, model = REGISTRY[name], build_on_meta(name)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(spec.parameters, abs=0.01)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.forward_features(torch.zeros(1, 3, spec.image_size, spec.image_size, device="meta"))
    assert counter.get_total_flops() / 1e9 == pytest.approx(spec.gflops, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(REGISTRY))
def test_every_entry_names_a_model_of_its_size(name: str) -> None:
    model = build_on_meta(name)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(REGISTRY[name].parameters, abs=0.01)


@pytest.mark.parametrize("name", list(REGISTRY))
def test_entries_are_complete(name: str) -> None:
    spec = REGISTRY[name]
    assert spec.id == name
    assert timm.is_model(spec.model)
    assert spec.converter in CONVERTERS or spec.converter == "order"
    assert spec.license
    assert spec.url.startswith("https://")
    if spec.source == "timm":  # timm has the weights, and prepares images in the same way
        cfg = timm.get_pretrained_cfg(spec.model, allow_unregistered=False)
        assert (cfg.mean, cfg.std) == (spec.mean, spec.std)
        assert cfg.license.lower() == spec.license.lower()


def test_rows_show_what_a_user_chooses_by() -> None:
    rows = {row["id"]: row for row in teacher_rows()}
    assert rows["metaclip_vith14"]["license"] == "CC-BY-NC-4.0"
    assert set(rows["dino_vitb16"]) == {"id", "model", "license", "parameters", "gflops", "source"}


def test_config_overrides_the_registry() -> None:
    spec = resolve(TeacherConfig(name="a", model="efficientnet_lite0", image_size=64, license="mine", mean=(0, 0, 0)))
    assert (spec.image_size, spec.license, spec.mean) == (64, "mine", (0, 0, 0))
    assert spec.sha256 == REGISTRY["efficientnet_lite0"].sha256


def test_other_weights_drop_the_registered_checksum() -> None:
    spec = resolve(TeacherConfig(name="a", model="efficientnet_lite0", weights="own.pth"))
    assert (spec.source, spec.sha256) == ("own.pth", None)


def test_any_timm_model_is_described_by_its_own_config() -> None:
    spec = resolve(TeacherConfig(name="a", model="timm:test_vit"))
    assert (spec.image_size, spec.mean, spec.license) == (160, (0.5, 0.5, 0.5), "Apache-2.0")
    clip = resolve(TeacherConfig(name="a", model="timm:vit_huge_patch14_clip_quickgelu_224.metaclip_2pt5b"))
    assert (clip.mean, clip.std) == (REGISTRY["metaclip_vith14"].mean, REGISTRY["metaclip_vith14"].std)
    assert clip.license == "CC-BY-NC-4.0"


@pytest.mark.parametrize(
    ("model", "near"),
    [
        ("dino_vitb14", "dino_vitb16"),
        ("efficientnet_lit0", "efficientnet_lite0"),
        ("timm:test_vut", "test_vit"),
        ("timm:test_vit.nope", "test_vit.r160_in1k"),
    ],
)
def test_unknown_teacher_lists_near_names(model: str, near: str) -> None:
    with pytest.raises(UnicError, match=near):
        resolve(TeacherConfig(name="a", model=model))
