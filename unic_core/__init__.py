"""Multi-teacher distillation of Vision Transformers (UNIC, arXiv 2408.05088), in plain PyTorch and timm.

The names below are the stable Python interface; they are imported on first use so that
`import unic_core` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unic_core.config import RunConfig, load_config
    from unic_core.errors import UnicError
    from unic_core.export import import_unic, load_student
    from unic_core.task import DistillationTask, LossReport, build_task

_HOMES = {
    "DistillationTask": "task",
    "LossReport": "task",
    "RunConfig": "config",
    "UnicError": "errors",
    "build_task": "task",
    "import_unic": "export",
    "load_config": "config",
    "load_student": "export",
}

__all__ = [
    "DistillationTask",
    "LossReport",
    "RunConfig",
    "UnicError",
    "build_task",
    "import_unic",
    "load_config",
    "load_student",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'unic_core' has no attribute {name!r}")
    return getattr(importlib.import_module(f"unic_core.{_HOMES[name]}"), name)
