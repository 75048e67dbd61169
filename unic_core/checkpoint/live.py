"""Live objects to plain tensors and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from unic_core.checkpoint.files import Loaded, Tensors
from unic_core.errors import UnicError
from unic_core.standardize import Standardizer
from unic_core.task import DistillationModel


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
