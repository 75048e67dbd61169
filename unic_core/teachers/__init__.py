"""Frozen teachers: what exists, where the weights come from, how their tokens are read."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from unic_core.teachers.registry import REGISTRY, TeacherSpec, resolve, teacher_rows

if TYPE_CHECKING:
    from unic_core.teachers.hub import check_hub
    from unic_core.teachers.loading import (
        check_weights,
        load_teacher,
        mirror_hosted,
        mirror_teacher,
        weights_sha256,
    )
    from unic_core.teachers.teacher import Teacher

_HOMES = {
    "Teacher": "teacher",
    "check_hub": "hub",
    "check_weights": "loading",
    "load_teacher": "loading",
    "mirror_hosted": "loading",
    "mirror_teacher": "loading",
    "weights_sha256": "loading",
}

__all__ = [
    "REGISTRY",
    "Teacher",
    "TeacherSpec",
    "check_hub",
    "check_weights",
    "load_teacher",
    "mirror_hosted",
    "mirror_teacher",
    "resolve",
    "teacher_rows",
    "weights_sha256",
]


def __getattr__(name: str) -> Any:
    """`Teacher` and `load_teacher` need timm; listing the registry does not."""
    if name not in _HOMES:
        raise AttributeError(f"module 'unic_core.teachers' has no attribute {name!r}")
    return getattr(importlib.import_module(f"unic_core.teachers.{_HOMES[name]}"), name)
