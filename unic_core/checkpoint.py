"""Checkpoints: safetensors and JSON, the manifest last. What has no valid manifest does not exist.

checkpoints/step-00001234/
    student.safetensors  projectors.safetensors  optimizer.safetensors  standardizer.safetensors
    state.json           step, config, teachers, data, versions
    MANIFEST.json        size and sha256 of every file above
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unic_core.config import RunConfig
from unic_core.errors import UnicError
from unic_core.standardize import Standardizer
from unic_core.storage import Store
from unic_core.task import DistillationModel

log = logging.getLogger(__name__)

FORMAT = 1
_MANIFEST = "MANIFEST.json"
_KEY = re.compile(r"^checkpoints/(step-\d{8})/")
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
    "training.compile",
)

Tensors = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Loaded:
    """A verified checkpoint: tensors by file, and `state.json`."""

    key: str
    tensors: Tensors
    state: dict[str, Any]


# ---------------------------------------------------------------- live objects <-> plain tensors


def snapshot(model: DistillationModel, optimizer: torch.optim.Optimizer, standardizer: Standardizer) -> Tensors:
    """Copies on the CPU of everything that training changes; the only part that training waits for."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    moments = {
        f"{names[parameter]}/{key}": value
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }
    parts: dict[str, Mapping[str, Tensor]] = {
        "student": model.student.state_dict(),
        "projectors": model.projectors.state_dict(),
        "optimizer": moments,
        "standardizer": standardizer.state_dict(),
    }
    return {
        part: {key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()}
        for part, tensors in parts.items()
    }


def restore(
    loaded: Loaded, model: DistillationModel, optimizer: torch.optim.Optimizer, standardizer: Standardizer
) -> None:
    """The inverse of `snapshot`; raises UnicError when the shapes are another model's."""
    try:
        model.student.load_state_dict(loaded.tensors["student"])
        model.projectors.load_state_dict(loaded.tensors["projectors"])
        standardizer.load_state_dict(loaded.tensors["standardizer"])
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UnicError(f"{loaded.key} does not fit this model ({reason}); use another run name") from None
    moments: dict[str, dict[str, Tensor]] = {}
    for key, value in loaded.tensors["optimizer"].items():
        name, _, moment = key.rpartition("/")
        moments.setdefault(name, {})[moment] = value
    for name, parameter in model.named_parameters():
        if name in moments:  # `step` stays where AdamW keeps it: on the CPU unless the optimizer is fused
            device = {k: "cpu" if k == "step" and not parameter.is_cuda else parameter.device for k in moments[name]}
            optimizer.state[parameter] = {k: v.to(device[k]) for k, v in moments[name].items()}


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


# ---------------------------------------------------------------- files


def write_checkpoint(store: Store, step: int, tensors: Tensors, state: Mapping[str, Any]) -> str:
    """Write one checkpoint below `store` and return its key; it exists once its manifest does."""
    key = f"checkpoints/step-{step:08d}"
    manifest: dict[str, Any] = {"format": FORMAT, "files": {}}
    with tempfile.TemporaryDirectory(prefix="unic-checkpoint-") as directory:
        folder = Path(directory)
        try:
            for part, values in tensors.items():
                save_file(values, folder / f"{part}.safetensors")
            (folder / "state.json").write_text(json.dumps({"format": FORMAT, "step": step, **state}, indent=1))
        except (OSError, SafetensorError) as error:
            raise UnicError(f"cannot write a checkpoint to {folder}: {error}; free some space or set TMPDIR") from error
        for path in sorted(folder.iterdir()):
            manifest["files"][path.name] = {"size": path.stat().st_size, "sha256": _sha256(path)}
            store.upload(path, f"{key}/{path.name}")
    store.put(f"{key}/{_MANIFEST}", json.dumps(manifest, indent=1).encode())
    return key


def list_checkpoints(store: Store) -> dict[str, bool]:
    """Every checkpoint key, oldest first, and whether a manifest matches the files' sizes."""
    listing = store.list("checkpoints/")
    keys = sorted({f"checkpoints/{match[1]}" for name in listing if (match := _KEY.match(name))})
    return {key: _complete(store, key, listing) for key in keys}


def load_newest(store: Store) -> Loaded | None:
    """The newest checkpoint whose every file has the manifest's checksum; None when there is none."""
    for key, complete in reversed(list_checkpoints(store).items()):
        loaded = _load(store, key) if complete else None
        if loaded is not None:
            return loaded
        log.warning("%s/%s is incomplete or damaged; trying an older checkpoint", store.uri, key)
    return None


def load_checkpoint(store: Store, step: int) -> Loaded:
    """The checkpoint of one step; UnicError when it is not there or damaged."""
    key = f"checkpoints/step-{step:08d}"
    loaded = _load(store, key)
    if loaded is None:
        raise UnicError(f"{store.uri}/{key} is missing or damaged; start the run again to use an older checkpoint")
    return loaded


def prune(store: Store, keep_last: int, keep_every: int | None) -> None:
    """Delete all but the newest `keep_last` valid checkpoints and those at multiples of `keep_every`."""
    checkpoints = list_checkpoints(store)
    valid = [key for key, complete in checkpoints.items() if complete]
    keep = set(valid[-keep_last:])
    keep |= {key for key in valid if keep_every and int(key[-8:]) % keep_every == 0}
    newest = valid[-1] if valid else ""
    for key in checkpoints:
        if key not in keep and key < newest:  # manifest first: a half-deleted checkpoint must not look whole
            names = [n for n in store.list(f"{key}/") if not n.endswith(_MANIFEST)]
            store.delete([f"{key}/{_MANIFEST}"])
            store.delete(names)


def _complete(store: Store, key: str, listing: Mapping[str, int]) -> bool:
    if f"{key}/{_MANIFEST}" not in listing:
        return False
    manifest = _manifest(store, key)
    return manifest is not None and all(
        listing.get(f"{key}/{name}") == file["size"] for name, file in manifest["files"].items()
    )


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
    with tempfile.TemporaryDirectory(prefix="unic-checkpoint-") as directory:
        folder = Path(directory)
        for name, file in manifest["files"].items():
            try:
                store.download(f"{key}/{name}", folder / name)
            except FileNotFoundError:
                return None
            if _sha256(folder / name) != file["sha256"]:
                return None
        tensors = {path.stem: load_file(path) for path in folder.glob("*.safetensors")}
        return Loaded(key, tensors, json.loads((folder / "state.json").read_text()))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class CheckpointWriter:
    """Writes checkpoints in a background thread, one at a time, and prunes old ones.

    An error of a write is raised by the next `save` or by `wait`.
    """

    def __init__(self, store: Store, keep_last: int, keep_every: int | None) -> None:
        self.store = store
        self.keep_last = keep_last
        self.keep_every = keep_every
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, step: int, tensors: Tensors, state: Mapping[str, Any]) -> None:
        """Start to write; waits only for a previous write that is still going on."""
        self.wait()
        self._pending = self._pool.submit(self._write, step, tensors, dict(state))

    def wait(self) -> None:
        """Return when the last checkpoint is stored."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Finish the last write and end the thread."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def _write(self, step: int, tensors: Tensors, state: dict[str, Any]) -> None:
        write_checkpoint(self.store, step, tensors, state)
        prune(self.store, self.keep_last, self.keep_every)
