"""A student's predictions in its teachers' own spaces: projectors, then the standardizer's inverse."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from unic_core.checkpoint import load_newest
from unic_core.config import RunConfig, parse_config, parse_yaml
from unic_core.errors import UnicError
from unic_core.export import read_student
from unic_core.projectors import Projectors, build_projectors
from unic_core.projectors.build import saved_widths
from unic_core.standardize import Standardizer, build_standardizer
from unic_core.storage import Store, join, open_store
from unic_core.student import Student
from unic_core.tokens import TokenKind


class TeacherSpace(nn.Module):
    """What a trained student says its teachers would see, in units that their own heads and text encoders take."""

    def __init__(self, student: Student, projectors: Projectors, standardizer: Standardizer) -> None:
        super().__init__()
        self.student, self.projectors, self.standardizer = student, projectors, standardizer
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor, teacher: str, kind: TokenKind = "cls") -> Tensor:
        """Float images [B, 3, H, W] in [0, 1] to tokens of `teacher`: cls [B, D] or patch [B, N, D], float32.

        Raises:
            UnicError: the student was not trained for this teacher and kind.
        """
        found = self.projectors(self.student(images)).get(teacher, {}).get(kind)
        if found is None:
            raise UnicError(f"the student predicts no {kind} tokens of {teacher}")
        return self.standardizer.denormalize({teacher: {kind: found}})[teacher][kind]


def read_teacher_space(run: str) -> TeacherSpace:
    """The student of a run with what it was trained with: files beside the student, where an import left them, else
    the newest checkpoint.

    Raises:
        UnicError: there is no student, or neither files nor a checkpoint, or they don't fit the student.
    """
    store = open_store(run)
    student = read_student(join(run, "student"))
    config, projectors_state, standardizer_state = _saved(store, run)
    if config.student.model_copy(update={"pretrained": False}) != student.config:
        raise UnicError(f"the checkpoint in {run} is of another student than {run}/student; export the student again")
    targets = {teacher.name: saved_widths(projectors_state, teacher.name) for teacher in config.teachers}
    with torch.random.fork_rng(devices=[]):
        projectors = build_projectors(config.projector, targets, student.width, student.depth, student.has_blocks)
    standardizer = build_standardizer(config.standardizer, targets)
    try:
        projectors.load_state_dict(projectors_state)
        standardizer.load_state_dict(standardizer_state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UnicError(f"the projectors in {run} don't fit their config ({reason}); train again") from None
    return TeacherSpace(student, projectors, standardizer)


def _saved(store: Store, run: str) -> tuple[RunConfig, dict[str, Tensor], dict[str, Tensor]]:
    """Config and states of projectors and standardizer."""
    if store.exists("student/projectors.safetensors"):
        where = join(run, "student", "unic.yaml")
        config = parse_config(parse_yaml(store.get("student/unic.yaml").decode(), where), where)
        parts = (load(store.get(f"student/{name}.safetensors")) for name in ("projectors", "standardizer"))
        return config, *parts  # type: ignore[return-value]
    loaded = load_newest(store)
    if loaded is None:
        raise UnicError(f"{run} has no checkpoint, so the projectors of its student are gone; train again")
    saved: Any = loaded.state["config"]
    config = parse_config(saved, f"{run}/{loaded.key}/state.json")
    return config, dict(loaded.tensors["projectors"]), dict(loaded.tensors["standardizer"])
