"""Checkpoints as files below a store: write, list, verify, load, prune."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unic_core.errors import UnicError
from unic_core.storage import Store

log = logging.getLogger(__name__)

FORMAT = 1
_MANIFEST = "MANIFEST.json"
_KEY = re.compile(r"^checkpoints/(step-(\d{8}))/")

Tensors = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Loaded:
    """A verified checkpoint: tensors by file, and `state.json`."""

    key: str
    tensors: Tensors
    state: dict[str, Any]


@dataclass(frozen=True)
class CheckpointInfo:
    """What a listing tells of a checkpoint.

    Attributes:
        complete: its manifest is there and every file has the manifest's size.
        bytes: of all its files.
        metrics: those of its step; empty for an incomplete one.
    """

    key: str
    step: int
    complete: bool
    bytes: int
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the newest `last`, those at multiples of `every`, and the one with the lowest `best`."""

    last: int
    every: int | None = None
    best: str | None = None

    def keeps(self, valid: list[CheckpointInfo]) -> set[str]:
        """Keys of those that stay among the valid ones, oldest first."""
        keep = {info.key for info in valid[-self.last :]}
        keep |= {info.key for info in valid if self.every and info.step % self.every == 0}
        measured = [info for info in valid if self.best in info.metrics]
        if measured:
            keep.add(min(measured, key=lambda info: info.metrics[str(self.best)]).key)
        return keep


def checkpoint_key(step: int) -> str:
    """Where the checkpoint of a step lies below its run."""
    return f"checkpoints/step-{step:08d}"


def write_checkpoint(
    store: Store,
    step: int,
    tensors: Tensors,
    state: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
) -> str:
    """Write one checkpoint below `store` and return its key; it exists once its manifest does.

    Raises:
        UnicError: no room in the temporary directory (TMPDIR), or the store refuses.
    """
    key = checkpoint_key(step)
    manifest: dict[str, Any] = {"format": FORMAT, "metrics": dict(metrics or {}), "files": {}}
    with _scratch() as folder:
        try:
            for part, values in tensors.items():
                save_file(values, folder / f"{part}.safetensors")
            (folder / "state.json").write_text(json.dumps({"format": FORMAT, "step": step, **state}, indent=1))
        except (OSError, SafetensorError) as error:
            raise UnicError(
                f"cannot write the checkpoint of step {step} to {folder}: {error}; free some space or set TMPDIR"
            ) from error
        for path in sorted(folder.iterdir()):
            manifest["files"][path.name] = {"size": path.stat().st_size, "sha256": _sha256(path)}
            store.upload(path, f"{key}/{path.name}")
    store.put(f"{key}/{_MANIFEST}", json.dumps(manifest, indent=1).encode())
    return key


def list_checkpoints(store: Store) -> list[CheckpointInfo]:
    """Every checkpoint, oldest first; incomplete ones included."""
    listing = store.list("checkpoints/")
    steps = sorted({int(match[2]) for name in listing if (match := _KEY.match(name))})
    return [_info(store, step, listing) for step in steps]


def newest_state(store: Store) -> dict[str, Any] | None:
    """`state.json` of the newest complete checkpoint; None when there is none."""
    for info in reversed(list_checkpoints(store)):
        if info.complete:
            state: dict[str, Any] = json.loads(store.get(f"{info.key}/state.json"))
            return state
    return None


def load_newest(store: Store) -> Loaded | None:
    """The newest checkpoint whose every file has the manifest's checksum; None when there is none."""
    for info in reversed(list_checkpoints(store)):
        loaded = _load(store, info.key) if info.complete else None
        if loaded is not None:
            return loaded
        log.warning("%s/%s is incomplete or damaged; trying an older checkpoint", store.uri, info.key)
    return None


def load_checkpoint(store: Store, step: int) -> Loaded:
    """The checkpoint of one step; UnicError when it is not there or damaged."""
    loaded = _load(store, checkpoint_key(step))
    if loaded is None:
        raise UnicError(
            f"{store.uri}/{checkpoint_key(step)} is missing or damaged; start the run again to use an older checkpoint"
        )
    return loaded


def verify_checkpoint(store: Store, key: str) -> str | None:
    """Read every file of a checkpoint; None when all have the manifest's checksums, else what is wrong."""
    manifest = _manifest(store, key)
    if manifest is None:
        return f"{_MANIFEST} is missing or unreadable"
    with _scratch() as folder:
        for name, file in manifest["files"].items():
            wrong = _fetch(store, key, name, file, folder)
            if wrong:
                return wrong
            (folder / name).unlink()
    return None


def prune(store: Store, retention: Retention) -> list[str]:
    """Delete what `retention` does not keep, and interrupted writes older than the newest valid checkpoint.

    Returns:
        The keys of the deleted checkpoints.
    """
    checkpoints = list_checkpoints(store)
    valid = [info for info in checkpoints if info.complete]
    keep = retention.keeps(valid)
    newest = valid[-1].step if valid else 0
    gone = [info.key for info in checkpoints if info.key not in keep and info.step < newest]
    for key in gone:  # manifest first: a half-deleted checkpoint must not look whole
        names = [name for name in store.list(f"{key}/") if not name.endswith(_MANIFEST)]
        store.delete([f"{key}/{_MANIFEST}"])
        store.delete(names)
    return gone


def _info(store: Store, step: int, listing: Mapping[str, int]) -> CheckpointInfo:
    key = checkpoint_key(step)
    size = sum(size for name, size in listing.items() if name.startswith(f"{key}/"))
    manifest = _manifest(store, key) if f"{key}/{_MANIFEST}" in listing else None
    if manifest is None:
        return CheckpointInfo(key, step, complete=False, bytes=size)
    complete = all(listing.get(f"{key}/{name}") == file["size"] for name, file in manifest["files"].items())
    return CheckpointInfo(key, step, complete, size, manifest.get("metrics", {}) if complete else {})


def _manifest(store: Store, key: str) -> dict[str, Any] | None:
    try:
        manifest: dict[str, Any] = json.loads(store.get(f"{key}/{_MANIFEST}"))
    except (FileNotFoundError, ValueError):
        return None
    if manifest.get("format") != FORMAT:
        raise UnicError(
            f"{store.uri}/{key} has checkpoint format {manifest.get('format')}, this version reads {FORMAT}; "
            "continue with the version that wrote it"
        )
    return manifest


def _load(store: Store, key: str) -> Loaded | None:
    manifest = _manifest(store, key)
    if manifest is None:
        return None
    with _scratch() as folder:
        if any(_fetch(store, key, name, file, folder) for name, file in manifest["files"].items()):
            return None
        tensors = {path.stem: load_file(path) for path in folder.glob("*.safetensors")}
        return Loaded(key, tensors, json.loads((folder / "state.json").read_text()))


def _fetch(store: Store, key: str, name: str, file: Mapping[str, Any], folder: Path) -> str | None:
    """Download one file of a checkpoint; what is wrong with it, if anything."""
    try:
        store.download(f"{key}/{name}", folder / name)
    except FileNotFoundError:
        return f"{name} is missing"
    return None if _sha256(folder / name) == file["sha256"] else f"{name} differs from its checksum"


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="unic-checkpoint-") as directory:
        yield Path(directory)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
