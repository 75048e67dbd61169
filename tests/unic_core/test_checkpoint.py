from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from unic_core.checkpoint import (
    CheckpointWriter,
    Retention,
    check_same_run,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    prune,
    verify_checkpoint,
    write_checkpoint,
)
from unic_core.config import RunConfig, load_config
from unic_core.errors import UnicError
from unic_core.storage import LocalStore

TENSORS = {"student": {"a.weight": torch.arange(6.0).view(2, 3)}, "optimizer": {"a.weight/step": torch.tensor(3.0)}}


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "run"))


def test_a_checkpoint_comes_back_bit_equal(store: LocalStore) -> None:
    write_checkpoint(store, 7, TENSORS, {"note": "x"})
    loaded = load_newest(store)
    assert loaded is not None
    assert (loaded.state["step"], loaded.state["note"]) == (7, "x")
    for part, tensors in TENSORS.items():
        for key, value in tensors.items():
            assert torch.equal(loaded.tensors[part][key], value)


def test_nothing_is_pickled(store: LocalStore) -> None:
    key = write_checkpoint(store, 1, TENSORS, {})
    assert {Path(name).suffix for name in store.list(key)} == {".safetensors", ".json"}


@pytest.mark.parametrize("damage", ["truncated", "no manifest", "flipped byte", "missing file"])
def test_a_damaged_checkpoint_is_passed_over(store: LocalStore, damage: str) -> None:
    write_checkpoint(store, 1, TENSORS, {})
    key = write_checkpoint(store, 2, TENSORS, {})
    file = f"{key}/student.safetensors"
    data = store.get(file)
    if damage == "truncated":
        store.put(file, data[:-1])
    elif damage == "no manifest":
        store.delete([f"{key}/MANIFEST.json"])
    elif damage == "flipped byte":
        store.put(file, data[:-1] + bytes([data[-1] ^ 1]))
    else:
        store.delete([file])
    loaded = load_newest(store)
    assert loaded is not None
    assert loaded.state["step"] == 1
    assert verify_checkpoint(store, "checkpoints/step-00000001") is None
    assert verify_checkpoint(store, key) is not None
    with pytest.raises(UnicError, match="missing or damaged"):
        load_checkpoint(store, 2)


def test_an_unknown_format_is_refused(store: LocalStore) -> None:
    key = write_checkpoint(store, 1, TENSORS, {})
    manifest = json.loads(store.get(f"{key}/MANIFEST.json"))
    store.put(f"{key}/MANIFEST.json", json.dumps({**manifest, "format": 99}).encode())
    with pytest.raises(UnicError, match="format 99"):
        load_newest(store)


def test_retention_keeps_the_last_and_the_multiples(store: LocalStore) -> None:
    for step in range(10, 70, 10):
        write_checkpoint(store, step, TENSORS, {})
    assert prune(store, Retention(2, every=30)) == [f"checkpoints/step-{step:08d}" for step in (10, 20, 40)]
    assert [info.step for info in list_checkpoints(store)] == [30, 50, 60]


def test_the_best_checkpoint_stays(store: LocalStore) -> None:
    for step, loss in enumerate([0.5, 0.2, 0.4, 0.3], 1):
        write_checkpoint(store, step, TENSORS, {}, {"loss": loss})
    prune(store, Retention(1, best="loss"))
    assert [(info.step, info.metrics) for info in list_checkpoints(store)] == [(2, {"loss": 0.2}), (4, {"loss": 0.3})]


def test_pruning_never_touches_what_is_newer_than_the_newest_whole_one(store: LocalStore) -> None:
    write_checkpoint(store, 1, TENSORS, {})
    store.put("checkpoints/step-00000002/student.safetensors", b"being written")
    prune(store, Retention(1))
    assert [(info.step, info.complete) for info in list_checkpoints(store)] == [(1, True), (2, False)]


def test_the_writer_reports_a_failed_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    writer = CheckpointWriter(LocalStore(str(tmp_path / "file")), Retention(1))
    writer.save(1, TENSORS, {})
    with pytest.raises(UnicError, match="cannot write"):
        writer.wait()
    writer.close()


class SlowStore(LocalStore):
    """Holds every upload back until it is let go."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.begun, self.go = threading.Event(), threading.Event()

    def upload(self, source: Path, key: str) -> None:
        self.begun.set()
        assert self.go.wait(30)
        super().upload(source, key)


def test_training_does_not_wait_for_a_slow_store(tmp_path: Path) -> None:
    """The first snapshot is being written; of those that come meanwhile only the newest is kept."""
    store = SlowStore(str(tmp_path))
    writer = CheckpointWriter(store, Retention(10))
    writer.save(1, TENSORS, {})
    assert store.begun.wait(30)
    for step in (2, 3, 4):
        writer.save(step, TENSORS, {})  # returns, although nothing can be stored
    store.go.set()
    writer.close()
    assert [(info.step, info.complete) for info in list_checkpoints(store)] == [(1, True), (4, True)]


def _state(config: RunConfig) -> dict[str, Any]:
    teachers = [{"name": "lite0", "sha256": "a" * 64}]
    return {"config": config.model_dump(mode="json"), "teachers": teachers, "data": [{"fingerprint": "f"}]}


def test_a_run_continues_only_as_itself() -> None:
    config = load_config("smoke")
    state = _state(config)
    check_same_run(state, config, state["teachers"], state["data"])
    harmless = load_config("smoke", ["cluster.threads=2", "training.log_every=1", "evaluation.token=patch"])
    check_same_run(state, harmless, state["teachers"], state["data"])
    with pytest.raises(UnicError, match=r"optimizer\.lr=0\.001, this config says 0\.5"):
        check_same_run(state, load_config("smoke", ["optimizer.lr=0.5"]), state["teachers"], state["data"])
    with pytest.raises(UnicError, match="lite0 has other weights"):
        check_same_run(state, config, [{"name": "lite0", "sha256": "b" * 64}], state["data"])
    with pytest.raises(UnicError, match="training data differ"):
        check_same_run(state, config, state["teachers"], [{"fingerprint": "g"}])
