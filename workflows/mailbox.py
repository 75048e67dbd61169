"""Notes from the workers of a run to its driver. Imports nothing heavy: the actor is a process of its own."""

from __future__ import annotations

from typing import Any


class Mailbox:
    """An actor that keeps notes until the driver takes them: metrics, lines for people, the user's mistake."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, Any]] = []

    def put(self, kind: str, value: Any) -> None:
        """Add a note; `kind` is `metrics`, `line` or `mistake`."""
        self.notes.append((kind, value))

    def take(self) -> list[tuple[str, Any]]:
        """All notes since the last call."""
        notes, self.notes = self.notes, []
        return notes
