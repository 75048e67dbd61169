"""A published checkpoint, written here in its layout, gives the features and predictions of plain forward passes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from tests.unic_core.teachers import layouts
from unic_core.errors import UnicError
from unic_core.export import Imported, import_unic, load_student, write_imported
from unic_core.storage import open_store

WIDTH = 128  # two heads of 64
TEACHERS = {"dino_vitbase_16": 24, "metaclip_vithuge_14": 40}
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
State = dict[str, Tensor]


def encoder_state() -> State:
    state = layouts.vit_state(dim=WIDTH)
    return state | {"norm.weight": torch.ones(WIDTH), "norm.bias": torch.zeros(WIDTH)}


def heads_state(pre_norm: bool, mid_norm: bool) -> State:
    """`lp.heads.<teacher>.<kind>.<block>.layers.<i>`: hidden size 48 on the last block, 16 on the others."""
    state: State = {}
    for teacher, out in TEACHERS.items():
        for kind in ("cls", "patch"):
            for block in range(layouts.DEPTH):
                hidden = 48 if block == layouts.DEPTH - 1 else 16
                shapes = [(WIDTH,)] * pre_norm + [(hidden, WIDTH)] + [(hidden,)] * mid_norm + [None, (out, hidden)]
                for i, shape in enumerate(shapes):
                    if shape is not None:  # GELU has no weights
                        name = f"lp.heads.{teacher}.{kind}.{block}.layers.{i}"
                        state[f"{name}.weight"] = layouts.values(*shape)
                        state[f"{name}.bias"] = layouts.values(shape[0])
    return state


def statistics() -> dict[str, Any]:
    return {
        teacher: {
            kind: {"mean": torch.randn(shape), "std": torch.rand(shape) + 0.5}
            for kind, shape in (("cls", (1, out)), ("patch", (1, 1, out)))
        }
        for teacher, out in TEACHERS.items()
    }


def checkpoint(prefix: str = "module.", pre_norm: bool = False, mid_norm: bool = False) -> dict[str, Any]:
    encoder = {f"encoder.{k.replace('blocks.', 'blocks.0.')}": v for k, v in encoder_state().items()}
    encoder["encoder.mask_token"] = torch.zeros(1, WIDTH)
    model = {f"{prefix}{key}": value for key, value in (encoder | heads_state(pre_norm, mid_norm)).items()}
    args = argparse.Namespace(
        arch="vit_base", epochs=200, lr=3e-4, lr_schedule=np.linspace(0, 1, 7), tnorm_momentum=np.ones(7, np.float32)
    )
    return {"model": model, "args": args, "epoch": 200, "teacher_ft_stats": statistics()}


def save(content: Any, tmp_path: Path) -> Path:
    path = tmp_path / "unic.pth"
    torch.save(content, path)
    return path


def reference(saved: dict[str, Any], images: Tensor) -> tuple[list[Tensor], dict[tuple[str, str], Tensor]]:
    """(residual stream after every block, ladder predictions) straight from the file's keys."""
    weights = {key.removeprefix("module."): value for key, value in saved["model"].items()}
    encoder = {
        key.removeprefix("encoder.").replace("blocks.0.", "blocks."): value
        for key, value in weights.items()
        if key.startswith("encoder.")
    }
    streams = layouts.vit_blocks(encoder, layouts.vit_tokens(encoder, (images - MEAN) / STD))
    predictions: dict[tuple[str, str], Tensor] = {}
    for teacher in TEACHERS:
        for kind in ("cls", "patch"):
            parts = [
                head(weights, f"lp.heads.{teacher}.{kind}.{block}", x[:, 0] if kind == "cls" else x[:, 1:])
                for block, x in enumerate(streams)
            ]
            predictions[teacher, kind] = torch.stack(parts).sum(0)
    return streams, predictions


def head(weights: State, name: str, x: Tensor) -> Tensor:
    """A head as the sequence of layers that its numbers tell; where a number is missing, the GELU is."""
    numbers = sorted({int(key.split(".")[-2]) for key in weights if key.startswith(f"{name}.layers.")})
    for i in range(numbers[-1] + 1):
        if i not in numbers:
            x = F.gelu(x)
            continue
        weight, bias = weights[f"{name}.layers.{i}.weight"], weights[f"{name}.layers.{i}.bias"]
        x = F.linear(x, weight, bias) if weight.ndim == 2 else F.layer_norm(x, x.shape[-1:], weight, bias)
    return x


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, layouts.SIZE, layouts.SIZE)


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_student(prefix: str, images: Tensor, tmp_path: Path) -> None:
    saved = checkpoint(prefix)
    imported = import_unic(save(saved, tmp_path))
    streams, _ = reference(saved, images)
    with torch.no_grad():
        blocks, features = imported.student(images), imported.student.features(images)
    for block, stream in zip(blocks, streams, strict=True):
        close(block.cls, stream[:, 0])
        close(block.patch, stream[:, 1:])
    close(features.cls, F.layer_norm(streams[-1], (WIDTH,), eps=1e-6)[:, 0])


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("mid_norm", [False, True])
def test_projectors(pre_norm: bool, mid_norm: bool, images: Tensor, tmp_path: Path) -> None:
    saved = checkpoint(pre_norm=pre_norm, mid_norm=mid_norm)
    imported = import_unic(save(saved, tmp_path))
    _, expected = reference(saved, images)
    with torch.no_grad():
        found = imported.projectors(imported.student(images))
    for (teacher, kind), value in expected.items():
        close(found[teacher][kind], value)  # type: ignore[index]


NESTINGS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "teacher, kind, statistic": lambda s: s,
    "teacher, statistic, kind": lambda s: {
        t: {n: {k: kinds[k][n] for k in kinds} for n in ("mean", "std")} for t, kinds in s.items()
    },
    "dotted": lambda s: {f"{t}.{k}.{n}": v for t, kinds in s.items() for k, st in kinds.items() for n, v in st.items()},
}


@pytest.mark.parametrize("nesting", list(NESTINGS))
def test_standardizer(nesting: str, tmp_path: Path) -> None:
    saved = checkpoint()
    stats = saved["teacher_ft_stats"]
    imported = import_unic(save(saved | {"teacher_ft_stats": NESTINGS[nesting](stats)}, tmp_path))
    features = {t: {"cls": torch.randn(3, d), "patch": torch.randn(3, 16, d)} for t, d in TEACHERS.items()}
    found = imported.standardizer.normalize(features)  # type: ignore[arg-type]
    for teacher, kinds in features.items():
        for kind, value in kinds.items():
            mean, std = stats[teacher][kind]["mean"], stats[teacher][kind]["std"]
            close(found[teacher][kind], (value - mean) / (std + 1e-6))  # type: ignore[index]


def test_config_and_arguments(tmp_path: Path) -> None:
    imported = import_unic(save(checkpoint(pre_norm=True), tmp_path))
    assert [(t.name, t.model) for t in imported.config.teachers] == [
        ("dino_vitbase_16", "dino_vitb16"),
        ("metaclip_vithuge_14", "metaclip_vith14"),
    ]
    projector = imported.config.projector.model_dump()
    assert (projector["hidden"], projector["hidden_last"], projector["pre_norm"]) == (16, 48, True)
    student = imported.config.student
    assert (student.image_size, student.patch_size, student.width, student.depth) == (32, 8, WIDTH, 2)
    assert student.position_embedding == "offset"
    assert imported.epoch == 200
    assert imported.arguments == {"arch": "vit_base", "epochs": 200, "lr": 3e-4}


def test_written_files_give_the_same_again(images: Tensor, tmp_path: Path) -> None:
    imported = import_unic(save(checkpoint(), tmp_path))
    write_imported(imported, open_store(str(tmp_path / "out")))
    model: Any = load_student(str(tmp_path / "out"))
    with torch.no_grad():
        expected = imported.student.features(images)
        found = model.forward_features((images - MEAN) / STD)
    torch.testing.assert_close(found[:, 0], expected.cls, rtol=0, atol=1e-5)
    torch.testing.assert_close(found[:, 1:], expected.patch, rtol=0, atol=1e-5)
    for name in ("projectors", "standardizer"):
        state = load_file(tmp_path / "out" / f"{name}.safetensors")
        getattr(imported, name).load_state_dict(state)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: cc-by-nc-sa-4.0" in card
    assert "CC-BY-NC-4.0" in card


def test_without_statistics_it_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved = checkpoint()
    del saved["teacher_ft_stats"]
    assert isinstance(import_unic(save(saved, tmp_path)), Imported)
    assert "teacher_ft_stats" in caplog.text


def drop(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda saved: saved["model"].pop(f"module.{key}")


def put(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda saved: saved["model"].__setitem__(f"module.{key}", value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("model"), "no key `model`"),
        (drop("encoder.pos_embed"), "no encoder"),
        (drop("encoder.blocks.0.1.attn.qkv.bias"), r"encoder\.blocks\.1\.attn\.qkv\.bias is missing"),
        (put("encoder.blocks.0.1.ls1.gamma", torch.zeros(WIDTH)), r"ls1\.gamma is unknown"),
        (put("encoder.norm.bias", torch.ones(WIDTH)), r"encoder\.norm\.bias has been trained"),
        (drop("lp.heads.dino_vitbase_16.cls.1.layers.0.bias"), "dino_vitbase_16"),
        (put("lp.other", torch.zeros(1)), r"lp\.other"),
        (lambda s: s.update(model={k: v for k, v in s["model"].items() if "lp." not in k}), "no projectors"),
        (lambda s: s["teacher_ft_stats"].pop("dino_vitbase_16"), "no mean of 24 numbers for dino_vitbase_16, cls"),
        (lambda s: s.update(hook=Path("x")), "would run code"),
    ],
)
def test_other_files_are_refused_in_one_sentence(
    change: Callable[[dict[str, Any]], Any], words: str, tmp_path: Path
) -> None:
    saved = checkpoint()
    change(saved)
    with pytest.raises(UnicError, match=words):
        import_unic(save(saved, tmp_path))


def test_missing_file() -> None:
    with pytest.raises(UnicError, match="no weights file"):
        import_unic("/nowhere/unic.pth")
