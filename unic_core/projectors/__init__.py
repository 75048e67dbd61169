"""Expendable projectors: maps from the student's tokens to each teacher's, thrown away after training (section 1.2)."""

from __future__ import annotations

from unic_core.projectors.base import Projectors, Targets
from unic_core.projectors.build import build_projectors
from unic_core.projectors.ladder import Ladder
from unic_core.projectors.published import ladder_config_from_heads, ladder_state_from_heads
from unic_core.projectors.transformer import TransformerProjectors

__all__ = [
    "Ladder",
    "Projectors",
    "Targets",
    "TransformerProjectors",
    "build_projectors",
    "ladder_config_from_heads",
    "ladder_state_from_heads",
]
