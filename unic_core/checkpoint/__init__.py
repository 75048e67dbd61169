"""Checkpoints: safetensors and JSON, the manifest last. What has no valid manifest does not exist.

checkpoints/step-00001234/
    student.safetensors  projectors.safetensors  optimizer.safetensors  standardizer.safetensors
    state.json           step, config, teachers, data, versions
    MANIFEST.json        size and sha256 of every file above, the metrics at this step
"""

from __future__ import annotations

from unic_core.checkpoint.files import (
    CheckpointInfo,
    Loaded,
    Retention,
    Tensors,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    newest_state,
    prune,
    verify_checkpoint,
    write_checkpoint,
)
from unic_core.checkpoint.identity import check_config, check_same_run
from unic_core.checkpoint.live import restore, snapshot
from unic_core.checkpoint.writer import CheckpointWriter

__all__ = [
    "CheckpointInfo",
    "CheckpointWriter",
    "Loaded",
    "Retention",
    "Tensors",
    "check_config",
    "check_same_run",
    "list_checkpoints",
    "load_checkpoint",
    "load_newest",
    "newest_state",
    "prune",
    "restore",
    "snapshot",
    "verify_checkpoint",
    "write_checkpoint",
]
