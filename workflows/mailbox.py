"""Notes between the workers of a run and its driver. Imports nothing heavy: the actor is a process of its own."""

from __future__ import annotations

from typing import Any


class Mailbox:
    """An actor that keeps notes until the driver takes them, and the driver's wish to stop until a worker asks."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, Any]] = []
        self.stopping = False

    def put(self, kind: str, value: Any) -> None:
        """Add a note; `kind` is `metrics`, `line` or `mistake`."""
        self.notes.append((kind, value))

    def take(self) -> list[tuple[str, Any]]:
        """All notes since the last call."""
        notes, self.notes = self.notes, []
        return notes

    def stop(self) -> None:
        """Ask the workers to save and end."""
        self.stopping = True

    def should_stop(self) -> bool:
        """Whether `stop` was called."""
        return self.stopping
