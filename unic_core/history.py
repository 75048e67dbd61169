"""The metrics of a run over its steps, stored beside its checkpoints."""

from __future__ import annotations

import json
from typing import Any, TypeAlias

from unic_core.storage import Store

Record: TypeAlias = dict[str, float]

_HISTORY = "history.jsonl"
_HISTORY_POINTS = 2000


class History:
    """The metrics of a run as JSON lines beside its checkpoints, thinned to some two thousand points."""

    def __init__(self, store: Store, step: int) -> None:
        self.store = store
        self.records: list[dict[str, Any]] = [r for r in read_history(store) if r["step"] <= step]

    def add(self, step: int, record: Record) -> None:
        self.records.append({"step": step, **record})
        if len(self.records) > _HISTORY_POINTS:
            self.records = self.records[::2]

    def save(self) -> None:
        """Store what there is; may be called in another thread than `add`."""
        self.store.put(_HISTORY, "".join(json.dumps(r) + "\n" for r in list(self.records)).encode())


def read_history(store: Store) -> list[dict[str, Any]]:
    """The saved metrics of a run, oldest first; empty before its first checkpoint."""
    try:
        return [json.loads(line) for line in store.get(_HISTORY).splitlines()]
    except FileNotFoundError:
        return []
