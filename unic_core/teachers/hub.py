"""The weights that timm has on its hub: are they at hand, and their copies in a mirror."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import hf_hub_url, try_to_load_from_cache
from huggingface_hub.constants import PYTORCH_WEIGHTS_NAME, SAFETENSORS_SINGLE_FILE, is_offline_mode
from timm.models import is_model_pretrained

from unic_core.errors import UnicError
from unic_core.teachers.weights import MIRROR, fetch

_TIMEOUT_S = 10


def hosted(model: str) -> str:
    """What the weights that timm hosts for `model` are called in a mirror."""
    return f"timm://{model}.safetensors"


def create_pretrained(model: str, cache: Path | None = None, **arguments: Any) -> Any:
    """timm's model with its weights: the mirror's copy where UNIC_TEACHERS names one, else the hub's.

    Raises:
        UnicError: the mirror does not hold them.
        Exception: whatever timm and the hub's library raise.
    """
    copy = _mirrored(model, cache)
    source = {"cache_dir": cache} if copy is None else {"pretrained_cfg_overlay": {"file": str(copy)}}
    return timm.create_model(model, pretrained=True, **source, **arguments)


def check_hub(model: str, cache: Path | None = None) -> None:
    """Can timm's weights for `model` be had: from the mirror, the local cache, or a hub that answers?

    The hub's own library tries for minutes before it gives up; this asks once.

    Raises:
        UnicError: timm has none, the mirror does not hold them, or they are not here and the hub does not answer.
    """
    if _mirrored(model, cache) is not None:
        return
    if not is_model_pretrained(model):
        raise UnicError(f"timm has no pretrained weights for {model}; name one that `timm.list_pretrained()` shows")
    cfg = timm.get_pretrained_cfg(model)
    repository, _, revision = (cfg.hf_hub_id or "").partition("@")
    if not repository:
        return
    names = [cfg.hf_hub_filename] if cfg.hf_hub_filename else [SAFETENSORS_SINGLE_FILE, PYTORCH_WEIGHTS_NAME]
    if any(isinstance(try_to_load_from_cache(repository, name, cache, revision or None), str) for name in names):
        return
    if is_offline_mode():
        raise UnicError(f"the weights of {model} are not in the hub's cache, and HF_HUB_OFFLINE is set; {_OTHERWISE}")
    url = hf_hub_url(repository, names[0], revision=revision or None)
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "unic"})  # noqa: S310 (the hub's address)
    try:
        urllib.request.urlopen(request, timeout=_TIMEOUT_S).close()  # noqa: S310
    except urllib.error.HTTPError as answer:
        answer.close()  # the hub is there; what it refuses, its library explains
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        raise UnicError(f"the hub with the weights of {model} cannot be reached ({reason}); {_OTHERWISE}") from None


def _mirrored(model: str, cache: Path | None) -> Path | None:
    """The mirror's copy, a state dict without classifier; None where there is no mirror."""
    return fetch(hosted(model), None, cache) if os.environ.get(MIRROR) else None


_OTHERWISE = f"check the network, copy them with `unic teachers mirror` and set {MIRROR}, or set `weights` to a file"
