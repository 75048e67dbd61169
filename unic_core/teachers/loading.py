"""From a teacher's config to a loaded, frozen teacher."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unic_core.backbone import known_arguments, resize_position_embedding, use_offset
from unic_core.config import TeacherConfig
from unic_core.errors import UnicError
from unic_core.teachers.converters import check_fit, convert
from unic_core.teachers.folding import fold_batch_norms
from unic_core.teachers.hub import check_hub, create_pretrained, hosted
from unic_core.teachers.registry import TeacherSpec, resolve
from unic_core.teachers.teacher import Teacher
from unic_core.teachers.weights import (
    MIRRORED,
    fetch,
    mirrored_sha256,
    put_into_mirror,
    read_checkpoint,
    tensors_sha256,
    verify,
)


def load_teacher(
    config: TeacherConfig,
    grid: tuple[int, int] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    cache: Path | None = None,
    fold: bool = True,
    any_size: bool = False,
) -> Teacher:
    """The teacher that `config` names, frozen, on `device`, computing in `dtype`.

    Args:
        grid: (h, w) of the student's patch tokens, to which the teacher's are resized; None leaves them.
        cache: directory for weights that are fetched.
        fold: fold batch norms into the convolutions before them; the features stay the same.
        any_size: images of any size keep it, as dense tasks need; position embeddings are resized to each.

    Raises:
        UnicError: unknown teacher, weights that can't be had or don't fit, tokens that it doesn't have.
    """
    spec = _for_any_size(resolve(config)) if any_size else resolve(config)
    if grid is not None and grid[0] != grid[1]:
        raise UnicError(f"the student's grid is {grid[0]} x {grid[1]}, but teachers see square images; make it square")
    with torch.random.fork_rng(devices=[]):  # building a model draws numbers; the run's own must not depend on it
        model, sha256 = _load_model(spec, cache)
        if not any_size:
            _resize(model, spec)
        elif spec.position == "offset":
            use_offset(model, spec.model)
    if fold:
        size = spec.image_size
        images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
        model = fold_batch_norms(model.eval(), images)
    model.to(device, dtype)
    return Teacher(
        name=config.name, model=model, spec=spec, tokens=config.tokens, grid=grid, sha256=sha256, any_size=any_size
    )


def check_weights(config: TeacherConfig, cache: Path | None = None) -> None:
    """Is the teacher known, and its file there with the right checksum? UnicError if not. Nothing is built."""
    spec = resolve(config)
    if spec.source == "timm":
        check_hub(spec.model, cache)
    else:
        weights_sha256(config, cache)


def weights_sha256(config: TeacherConfig, cache: Path | None = None) -> str | None:
    """The checksum that the loaded teacher will have; None where only its tensors tell. Nothing is built.

    Raises:
        UnicError: unknown teacher, or a file that can't be had or has another checksum.
    """
    spec = resolve(config)
    if spec.source == "timm" or spec.source.startswith("random://"):
        return None
    return verify(fetch(spec.source, spec.sha256, cache), spec.sha256, spec.source)


def mirror_teacher(config: TeacherConfig, mirror: str, cache: Path | None = None) -> tuple[str, bool]:
    """Put the weights of a teacher into the mirror at the URI `mirror`, for machines where UNIC_TEACHERS names it.

    Returns:
        Their checksum, and whether they were new there. Weights that machines need no mirror for have none.

    Raises:
        UnicError: unknown teacher, or weights that can't be had.
    """
    spec = resolve(config)
    if spec.source == "timm":
        return mirror_hosted(spec.model, mirror, cache)
    if not spec.source.startswith(MIRRORED):
        return "", False
    known = mirrored_sha256(spec.source, mirror)
    if known is not None and known == (spec.sha256 or known):
        return known, False
    path = fetch(spec.source, spec.sha256, cache)
    verify(path, spec.sha256, spec.source)
    return put_into_mirror(path, spec.source, mirror), True


def mirror_hosted(model: str, mirror: str, cache: Path | None = None) -> tuple[str, bool]:
    """The same for the weights that timm hosts for `model`, such as those that a student starts from."""
    source = hosted(model)
    known = mirrored_sha256(source, mirror)
    if known is not None:
        return known, False
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "weights.safetensors"
        save_file(_from_timm(model, cache).state_dict(), path)
        return put_into_mirror(path, source, mirror), True


def _load_model(spec: TeacherSpec, cache: Path | None) -> tuple[Any, str]:
    """The model at its native resolution, and the checksum of its weights."""
    if spec.source == "timm":
        model = _from_timm(spec.model, cache, **spec.model_args)
        return model, tensors_sha256(model.state_dict())
    if spec.source.startswith("random://"):
        torch.manual_seed(_seed(spec.source))
        model = _create(spec)
        return model, tensors_sha256(model.state_dict())
    path = fetch(spec.source, spec.sha256, cache)
    sha256 = verify(path, spec.sha256, spec.source)
    model = _create(spec)
    _fill(model, read_checkpoint(path), spec)
    return model, sha256


def _create(spec: TeacherSpec, **kwargs: Any) -> Any:
    """The architecture at its native resolution, without a classifier."""
    return timm.create_model(spec.model, num_classes=0, **spec.model_args, **kwargs)


def _from_timm(model: str, cache: Path | None, **arguments: Any) -> Any:
    try:
        return create_pretrained(model, cache, num_classes=0, **arguments)
    except (OSError, RuntimeError, ValueError) as error:  # the errors of huggingface_hub and urllib are OSErrors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnicError(
            f"timm can't get the weights of {model} ({reason}); check the network, or set `weights` to a file"
        ) from None


def _fill(model: Any, checkpoint: Any, spec: TeacherSpec) -> None:
    """Load a checkpoint file's content; every key and shape must fit, but for the classifier."""
    own = model.state_dict()
    try:
        state = convert(spec.converter, checkpoint, own)
    except UnicError as error:
        raise UnicError(f"{spec.source}: {error}") from None
    names = model.pretrained_cfg.get("classifier") or ()
    classifier = tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))
    state = {key: value for key, value in state.items() if key in own or not key.startswith(classifier)}
    check_fit(state, own, spec.source)
    model.load_state_dict(state)


def _resize(model: Any, spec: TeacherSpec) -> None:
    """Bring the model from its native resolution to that of the spec. CNNs take any."""
    if not hasattr(model, "set_input_size") or model.pretrained_cfg["input_size"][-1] == spec.image_size:
        return
    table, old = getattr(model, "pos_embed", None), model.patch_embed.grid_size
    try:
        model.set_input_size(img_size=(spec.image_size, spec.image_size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UnicError(
            f"teacher {spec.id} can't take images of {spec.image_size} px ({error}); change its image_size"
        ) from None
    if spec.position == "offset" and isinstance(table, Tensor):
        prefix = table.shape[1] - math.prod(old)
        resized = resize_position_embedding(table.detach(), old, model.patch_embed.grid_size, prefix)
        model.pos_embed = nn.Parameter(resized)


def _for_any_size(spec: TeacherSpec) -> TeacherSpec:
    """The spec of a model that takes images of any size that its patches divide. CNNs do so anyway."""
    known = known_arguments(spec.model)
    if "dynamic_img_size" in known:
        return spec.model_copy(update={"model_args": {**spec.model_args, "dynamic_img_size": True}})
    if "img_size" in known:
        raise UnicError(f"teacher {spec.id} takes images of one size only, so it can't do dense tasks")
    return spec


def _seed(source: str) -> int:
    seed = source.removeprefix("random://")
    if not seed.isdecimal():
        raise UnicError(f"cannot read the weights {source!r}; write random://<seed> with a number")
    return int(seed)
