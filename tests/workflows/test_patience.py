"""Patience with servers that are away."""

from __future__ import annotations

import pytest

from unic_core.errors import OutageError, UnicError
from workflows import patience


def test_a_stage_is_tried_again_while_a_server_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PAUSE_S", 0.0)
    calls: list[int] = []

    def stage() -> str:
        calls.append(len(calls))
        if len(calls) < 4:
            raise OutageError("S3 at http://s3 cannot be reached; start it")
        return "done"

    assert patience.patiently(stage, patience=60) == "done"
    assert len(calls) == 4


def test_patience_ends_and_a_mistake_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PAUSE_S", 0.01)
    calls: list[type[UnicError]] = []

    def fail(kind: type[UnicError]) -> None:
        calls.append(kind)
        raise kind("no")

    with pytest.raises(OutageError):
        patience.patiently(lambda: fail(OutageError), patience=0.05)
    assert len(calls) > 1
    calls.clear()
    with pytest.raises(UnicError):
        patience.patiently(lambda: fail(UnicError), patience=60)
    assert len(calls) == 1
    with pytest.raises(OutageError):
        patience.patiently(lambda: fail(OutageError), patience=0)
    assert len(calls) == 2
