"""Students as files that others read: timm's layout (`config.json`, `model.safetensors`) and ONNX.

`import_unic` reads published checkpoints, `write_imported` writes them in our layout.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from unic_core.config import RunConfig, dump_config, parse_config, parse_yaml
from unic_core.errors import UnicError
from unic_core.imported import Imported, import_unic
from unic_core.model_card import render_card
from unic_core.storage import Store, open_store
from unic_core.student import Student
from unic_core.teachers.registry import REGISTRY

__all__ = ["Imported", "export_onnx", "import_unic", "load_student", "read_student", "save_student", "write_imported"]

_CONFIG, _WEIGHTS, _RUN = "config.json", "model.safetensors", "unic.yaml"
_PUBLISHED_LICENSE = "CC-BY-NC-SA-4.0"  # of the published UNIC checkpoints
_ONNX_TOLERANCE = 1e-3  # largest difference allowed between torch and ONNX Runtime, in units of normed features
_ONNX_SINGLE_FILE = 2**31 - 2**20  # bytes; a larger model keeps its weights in a second file


def save_student(
    student: Student,
    config: RunConfig,
    store: Store,
    teachers: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, float] | None = None,
    license: str | None = None,
) -> None:
    """Write a student that `timm.create_model("local-dir:...", pretrained=True)` and `load_student` read.

    Files: `model.safetensors` (timm's keys), `unic.yaml` (resolved config), `README.md` (model card) and, last,
    `config.json`: what has none is incomplete.

    Args:
        teachers: manifests of the teachers, `Teacher.manifest()`.
        metrics: results to show in the card.
        license: of weights that the student was made from, where there are any besides the teachers'.

    Raises:
        UnicError: the student does not fit timm's model, or there is no room, here or in the store.
    """
    model = student.to_timm()
    about = json.dumps(_hub_config(student, model), indent=2).encode()
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    try:
        with tempfile.TemporaryDirectory(prefix="unic-export-") as directory:
            path = Path(directory) / _WEIGHTS
            save_file(state, path, metadata={"format": "pt"})
            store.upload(path, _WEIGHTS)
    except (OSError, SafetensorError, RuntimeError) as error:
        size = sum(value.nbytes for value in state.values()) / 2**20
        raise UnicError(
            f"the student can't be saved to {store.uri} ({_first_line(error)}); it needs {size:,.0f} MiB in "
            f"{tempfile.gettempdir()} (TMPDIR names another directory) and in the store; then run the same again"
        ) from error
    store.put(_RUN, dump_config(config).encode())
    store.put("README.md", render_card(config, teachers, metrics or {}, license).encode())
    store.put(_CONFIG, about)


def load_student(uri: str) -> nn.Module:
    """The student at `uri` as a timm model without classifier, in eval mode.

    Its `forward_features` takes [B, 3, H, W] normalized with `pretrained_cfg["mean"]` and `["std"]`, and gives the
    normed tokens of `Student.features`.

    Raises:
        UnicError: there is no student at `uri`, or its files are damaged.
    """
    store = open_store(uri)
    try:
        saved = json.loads(store.get(_CONFIG))
        state = load(store.get(_WEIGHTS))
        model = timm.create_model(saved["architecture"], num_classes=0, **saved["model_args"])
        model.load_state_dict(state)
        model.pretrained_cfg.update(saved["pretrained_cfg"])
    except FileNotFoundError:
        raise UnicError(
            f"there is no student at {uri} ({_CONFIG}, {_WEIGHTS}); that of a run lies in <run>/student"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError, RuntimeError) as error:
        raise UnicError(f"the student at {uri} can't be read ({_first_line(error)}); export it again") from None
    return cast(nn.Module, model.eval())


def read_student(uri: str) -> Student:
    """The student at `uri` as the module that was trained, in eval mode; for `Student.features`.

    Raises:
        UnicError: there is no student at `uri`, or its files are damaged.
    """
    store = open_store(uri)
    try:
        config = parse_config(parse_yaml(store.get(_RUN).decode(), f"{uri}/{_RUN}"), f"{uri}/{_RUN}")
        state = load(store.get(_WEIGHTS))
        student = Student(config.student.model_copy(update={"pretrained": False}))
        own = student.encoder.state_dict()
        student.encoder.load_state_dict({key: value for key, value in state.items() if key in own})
    except FileNotFoundError:
        raise UnicError(
            f"there is no student at {uri} ({_RUN}, {_WEIGHTS}); that of a run lies in <run>/student"
        ) from None
    except (UnicodeDecodeError, SafetensorError, RuntimeError) as error:
        raise UnicError(f"the student at {uri} can't be read ({_first_line(error)}); export it again") from None
    return student.eval()


def _first_line(error: Exception) -> str:
    """What an exception says first; a KeyError says only a key."""
    text = str(error).strip().partition("\n")[0]
    return f"it lacks {text}" if isinstance(error, KeyError) else text or type(error).__name__


def write_imported(imported: Imported, store: Store) -> None:
    """Write the student (`save_student`), `projectors.safetensors` and `standardizer.safetensors` into `store`."""
    with tempfile.TemporaryDirectory(prefix="unic-import-") as directory:
        for name, module in (("projectors", imported.projectors), ("standardizer", imported.standardizer)):
            path = Path(directory) / f"{name}.safetensors"
            save_file({key: value.contiguous() for key, value in module.state_dict().items()}, path)
            store.upload(path, path.name)
    teachers = [_unseen_manifest(teacher.name, teacher.model) for teacher in imported.config.teachers]
    save_student(imported.student, imported.config, store, teachers, license=_PUBLISHED_LICENSE)


def export_onnx(uri: str, path: str | Path) -> float:
    """Write the student at `uri` as ONNX and compare it with torch on random images.

    The graph takes `images` [B, 3, H, H] float32 in [0, 1] (B is free, H is the student's image size), normalizes them
    itself, and gives `cls` [B, D] and `patch` [B, N, D], normed.

    Returns:
        The largest absolute difference between ONNX Runtime and torch.

    Raises:
        UnicError: no student at `uri`, the ONNX packages are missing, or the difference is above 1e-3.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch.onnx needs it)
    except ImportError as error:
        raise UnicError(f"ONNX export needs the package {error.name}; run: pip install 'unic[onnx]'") from None

    model = _OnnxStudent(load_student(uri)).eval()
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    images = torch.rand((2, *model.input_size), generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory(prefix=".unic-onnx-", dir=target.parent) as directory:
        part = Path(directory) / target.name
        torch.onnx.export(
            model,
            (images,),
            part,
            input_names=["images"],
            output_names=["cls", "patch"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=size > _ONNX_SINGLE_FILE,
            verbose=False,
        )
        session = onnxruntime.InferenceSession(str(part), providers=["CPUExecutionProvider"])
        with torch.no_grad():
            expected = model(images)
        found = session.run(["cls", "patch"], {"images": images.numpy()})
        difference = max(float((torch.from_numpy(a) - b).abs().max()) for a, b in zip(found, expected, strict=True))
        if not difference <= _ONNX_TOLERANCE:
            raise UnicError(f"the ONNX model of {uri} differs from torch by {difference:.2g}; it is not written")
        for file in sorted(Path(directory).iterdir(), reverse=True):  # the weights file, if any, before the graph
            shutil.move(file, target.parent / file.name)
    return difference


class _OnnxStudent(nn.Module):
    """Normalization and the split into class token and patches around a timm model."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        cfg: Any = model.pretrained_cfg
        self.input_size: tuple[int, int, int] = tuple(cfg["input_size"])
        self.register_buffer("mean", torch.tensor(cfg["mean"]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(cfg["std"]).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.model.forward_features((images - self.mean) / self.std)
        if features.ndim == 4:
            nhwc = str(getattr(self.model, "output_fmt", "NCHW")) == "NHWC"
            patch = features.flatten(1, 2) if nhwc else features.flatten(2).transpose(1, 2)
            return patch.mean(1), patch
        patch = features[:, self.model.num_prefix_tokens :]
        has_cls = getattr(self.model, "cls_token", None) is not None
        return (features[:, 0] if has_cls else patch.mean(1)), patch


def _hub_config(student: Student, model: Any) -> dict[str, Any]:
    """timm's `config.json`: how to build the model, and how to prepare its images."""
    arguments = {key: value for key, value in student.timm_arguments().items() if key != "num_classes"}
    own = model.pretrained_cfg
    size = student.image_size
    return {
        "architecture": student.config.model.partition(".")[0],
        "num_classes": 0,
        "num_features": student.width,
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "unic",
            "custom_load": False,
            "input_size": [3, size, size],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": student.mean.flatten().tolist(),
            "std": student.std.flatten().tolist(),
            "num_classes": 0,
            "first_conv": own.get("first_conv"),
            "classifier": own.get("classifier"),
        },
    }


def _unseen_manifest(name: str, model: str) -> dict[str, Any]:
    """A teacher of a published student: its weights are not at hand, so it has no checksum."""
    spec = REGISTRY.get(model)
    return {
        "name": name,
        "model": model,
        "source": spec.url if spec else "unknown",
        "sha256": "",
        "license": spec.license if spec else "unknown",
        "converter": spec.converter if spec else "unknown",
    }
