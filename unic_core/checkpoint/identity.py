"""Whether a checkpoint belongs to the run that wants to continue it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unic_core.config import RunConfig
from unic_core.errors import UnicError

# Keys of a config that may change between the attempts of one run: they do not touch what is learned.
_FREE = (
    "cluster",
    "datasets",
    "evaluation",
    "tracking",
    "data.workers",
    "data.cache",
    "data.cache_bytes",
    "data.max_broken",
    "training.log_every",
    "training.checkpoint_every",
    "training.keep_last",
    "training.keep_every",
    "training.keep_best",
    "training.compile",
)


def check_same_run(state: Mapping[str, Any], config: RunConfig, teachers: list[dict[str, Any]], data: Any) -> None:
    """Refuse to continue a run with other teachers, other data or another recipe; names the first difference."""
    for saved, now in zip(state["teachers"], teachers, strict=False):
        if saved["name"] == now["name"] and saved["sha256"] != now["sha256"]:
            raise UnicError(
                f"run {config.name}: teacher {now['name']} has other weights (sha256 {now['sha256'][:12]}) than when "
                f"the run began ({saved['sha256'][:12]}); restore the weights or choose another name"
            )
    if state["data"] != data:
        raise UnicError(f"run {config.name}: the training data differ from those it began with; choose another name")
    check_config(state, config)


def check_config(state: Mapping[str, Any], config: RunConfig) -> None:
    """The part of `check_same_run` that needs no models and no data."""
    old, new = _flat(state["config"]), _flat(config.model_dump(mode="json"))
    for key in sorted(old.keys() | new.keys()):
        if not key.startswith(_FREE) and old.get(key) != new.get(key):
            raise UnicError(
                f"run {config.name} began with {key}={old.get(key)!r}, this config says {new.get(key)!r}; "
                "change it back or choose another name"
            )


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as dotted keys."""
    if isinstance(data, Mapping):
        items = [(str(k), v) for k, v in data.items()]
    elif isinstance(data, list):
        items = [(str(i), v) for i, v in enumerate(data)]
    else:
        return {prefix: data}
    return {k: v for key, value in items for k, v in _flat(value, f"{prefix}.{key}" if prefix else key).items()}
