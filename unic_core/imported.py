"""Reads published UNIC checkpoints (sections 1.2, 1.8, 1.9) and gives our student, projectors and standardizer.

The file is a dict with `model` (keys `encoder.*` and `lp.heads.*`, perhaps behind `module.`), `args`, `epoch` and,
optionally, `teacher_ft_stats`. Nothing but tensors, numbers and plain containers is read from it.
"""

from __future__ import annotations

import argparse
import logging
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from unic_core.config import RunConfig, StudentConfig, parse_config
from unic_core.errors import UnicError
from unic_core.projectors import Projectors, build_projectors, ladder_config_from_heads, ladder_state_from_heads
from unic_core.standardize import Standardizer, build_standardizer
from unic_core.student import Student
from unic_core.teachers.converters import check_fit
from unic_core.teachers.weights import fetch, file_sha256, read_checkpoint
from unic_core.tokens import TokenKind

log = logging.getLogger(__name__)

_HEAD = re.compile(r"^lp\.heads\.(.+)\.(cls|patch)\.(\d+)\.(layers\.\d+\.(?:weight|bias))$")
_TEACHERS = {  # their names -> our registry
    "dino_vitbase_16": "dino_vitb16",
    "ibot_vitbase_16": "ibot_vitb16",
    "deit3_vitbase_16": "deit3_vitb16",
    "dbotft_vitbase_16": "dbot_ft_vitb16",
    "dino2_vitgiant_14": "dinov2_vitg14_reg4",
    "metaclip_vithuge_14": "metaclip_vith14",
}
_SIZES = {192: ("tiny", 12), 384: ("small", 12), 768: ("base", 12), 1024: ("large", 24)}  # width: (name, depth)
_HEAD_WIDTH = 64  # of every size

Heads = dict[tuple[str, TokenKind, int], dict[str, Tensor]]


@dataclass(frozen=True)
class Imported:
    """A published checkpoint as ours."""

    student: Student
    projectors: Projectors
    standardizer: Standardizer
    config: RunConfig
    sha256: str
    epoch: int | None
    arguments: dict[str, Any]
    """The plain values of the authors' command line."""


def import_unic(path: str | Path) -> Imported:
    """Read a published UNIC checkpoint.

    Args:
        path: local path, `s3://` or `https://` address of the file.

    Raises:
        UnicError: no such file, it holds other objects than tensors, numbers and plain containers, or it is no UNIC
            checkpoint; the sentence names the first wrong key.
    """
    file = fetch(str(path))
    checkpoint = read_checkpoint(file)
    if not isinstance(checkpoint, Mapping) or not isinstance(checkpoint.get("model"), Mapping):
        raise UnicError(f"{path} has no key `model` with weights; not a UNIC checkpoint")
    weights = {str(key).removeprefix("module."): value for key, value in checkpoint["model"].items()}
    encoder, heads = _encoder(weights, str(path)), _heads(weights, str(path))

    student_config = _student_config(encoder)
    depth = _depth(encoder)
    projector, targets = ladder_config_from_heads(heads, depth)
    epoch = checkpoint.get("epoch")
    config = parse_config(
        {
            "name": re.sub(r"[^a-z0-9._-]", "-", file.stem.lower()).strip(".-_")[:63] or "unic",
            "student": student_config.model_dump(mode="json"),
            "teachers": [
                {"name": name, "model": _TEACHERS.get(name, name), "tokens": list(kinds)}
                for name, kinds in targets.items()
            ],
            "projector": projector.model_dump(mode="json"),
        },
        where=str(path),
    )
    student = Student(student_config)
    _fill(student, {f"encoder.{key}": value for key, value in encoder.items()}, f"the encoder of {path}")
    projectors = build_projectors(projector, targets, student.width, student.depth, student.has_blocks)
    _fill(projectors, ladder_state_from_heads(heads), f"the projectors of {path}")
    standardizer = build_standardizer(config.standardizer, targets)
    _fill_statistics(standardizer, targets, checkpoint.get("teacher_ft_stats"), str(path))
    return Imported(
        student=student.eval(),
        projectors=projectors.eval(),
        standardizer=standardizer,
        config=config,
        sha256=file_sha256(file),
        epoch=epoch if isinstance(epoch, int) else None,
        arguments=_arguments(checkpoint.get("args")),
    )


def _encoder(weights: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """The encoder in timm's layout, without what training never touched: mask token and final norm."""
    prefix = "encoder."
    state = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    if "pos_embed" not in state or "patch_embed.proj.weight" not in state:
        raise UnicError(f"{where} has no encoder (keys `encoder.pos_embed`, ...); not a UNIC checkpoint")
    state.pop("mask_token", None)
    for key, value in (("norm.weight", 1.0), ("norm.bias", 0.0)):
        norm = state.pop(key, None)
        if norm is not None and not torch.equal(norm, torch.full_like(norm, value)):
            raise UnicError(
                f"{where}: encoder.{key} has been trained, which UNIC's final norm never is; not a UNIC checkpoint"
            )
    # the blocks lie in one chunk, number 0
    return {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key): value for key, value in state.items()}


def _heads(weights: Mapping[str, Any], where: str) -> Heads:
    """The projector MLPs by (teacher, token kind, block)."""
    heads: Heads = {}
    for key, value in weights.items():
        if not key.startswith("lp."):
            continue
        match = _HEAD.match(key)
        if match is None:
            raise UnicError(f"{where}: {key} is no key of a ladder of projectors; not a UNIC checkpoint")
        teacher, kind, block, name = match.groups()
        heads.setdefault((teacher, cast(TokenKind, kind), int(block)), {})[name] = value
    if not heads:
        raise UnicError(f"{where} has no projectors (keys `lp.heads.*`); give the whole published checkpoint")
    return heads


def _student_config(encoder: Mapping[str, Tensor]) -> StudentConfig:
    """The architecture, from the shapes of the weights."""
    width, _, patch, _ = encoder["patch_embed.proj.weight"].shape
    side = math.isqrt(encoder["pos_embed"].shape[1] - 1)
    depth = _depth(encoder)
    name, usual_depth = _SIZES.get(width, ("base", 12))
    if width % _HEAD_WIDTH:
        raise UnicError(f"the encoder is {width} wide, which is no multiple of {_HEAD_WIDTH}; not a UNIC checkpoint")
    return StudentConfig(
        model=f"vit_{name}_patch16_224",
        image_size=side * patch,
        patch_size=None if patch == 16 else patch,
        width=None if width in _SIZES else width,
        heads=None if width in _SIZES else width // _HEAD_WIDTH,
        depth=None if depth == usual_depth else depth,
        position_embedding="offset",
    )


def _depth(encoder: Mapping[str, Tensor]) -> int:
    return len({key.split(".")[1] for key in encoder if key.startswith("blocks.")})


def _fill(module: nn.Module, state: dict[str, Tensor], what: str) -> None:
    check_fit(state, module.state_dict(), what)
    module.load_state_dict(state)


def _fill_statistics(
    standardizer: Standardizer, targets: Mapping[str, Mapping[TokenKind, int]], saved: Any, where: str
) -> None:
    """Copy mean and std of every target. They are named by teacher, token kind and statistic, nested in any way."""
    if saved is None:
        log.warning("%s has no teacher_ft_stats: predictions can't be turned back into the teachers' spaces", where)
        return
    leaves = list(_leaves(saved))
    for teacher, kinds in targets.items():
        for kind, width in kinds.items():
            statistics = standardizer.statistics(teacher, kind)
            for name in ("mean", "std"):
                wanted = {teacher, kind, name}
                found = [value for path, value in leaves if wanted <= set(path)]
                if len(found) != 1 or found[0].numel() != width:
                    raise UnicError(f"{where}: teacher_ft_stats has no {name} of {width} numbers for {teacher}, {kind}")
                cast(Tensor, getattr(statistics, name)).copy_(found[0].flatten())


def _leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Every tensor of nested mappings with the names on the way to it; dotted names count as several."""
    if isinstance(node, Tensor):
        yield path, node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            names = (str(key), *str(key).split("."))
            yield from _leaves(value, (*path, *names))


def _arguments(saved: Any) -> dict[str, Any]:
    """The numbers and strings of the saved command line; schedules and the like are left out."""
    values = vars(saved) if isinstance(saved, argparse.Namespace) else saved if isinstance(saved, Mapping) else {}
    return {str(key): value for key, value in values.items() if isinstance(value, str | int | float | bool)}
