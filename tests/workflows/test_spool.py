"""The spool: no point is lost or changed, whatever happens to the server or the process."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflows import stack as stacks
from workflows import tracking
from workflows.spool import BATCH, Point, RejectedError, Spool
from workflows.stack import processes
from workflows.tracking.server import client


class Receiver:
    """A server in miniature: can be away, can refuse single points."""

    def __init__(self) -> None:
        self.away = False
        self.refused: set[str] = set()
        self.batches: list[list[Point]] = []

    def __call__(self, points: Sequence[Point]) -> None:
        if self.away:
            raise ConnectionError("away")
        if self.refused & {point.key for point in points}:
            raise RejectedError("bad key")
        self.batches.append(list(points))

    @property
    def points(self) -> list[Point]:
        return [point for batch in self.batches for point in batch]


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def spool(tmp_path: Path, receiver: Receiver) -> Iterator[Spool]:
    spool = Spool(tmp_path / "deep" / "run.jsonl", receiver, interval=0.05)
    yield spool
    spool.close(0.0)


def test_points_arrive_in_order_and_in_batches(spool: Spool, receiver: Receiver) -> None:
    for step in range(1000):
        spool.add(step, {"loss": step / 3, "lr": 0.1})
    assert spool.flush(10)
    assert spool.pending == 0
    losses = [point for point in receiver.points if point.key == "loss"]
    assert [(point.step, point.value) for point in losses] == [(step, step / 3) for step in range(1000)]
    assert all(len(batch) <= BATCH for batch in receiver.batches)
    assert abs(losses[0].timestamp / 1000 - time.time()) < 60


def test_a_call_is_cheap(spool: Spool, receiver: Receiver) -> None:
    receiver.away = True
    values = {f"distill/teacher{i}": 0.5 for i in range(10)}
    times = []
    for step in range(500):
        begin = time.perf_counter()
        spool.add(step, values)
        times.append(time.perf_counter() - begin)
    assert sorted(times)[len(times) // 2] < 1e-4


def test_an_outage_loses_nothing(spool: Spool, receiver: Receiver) -> None:
    receiver.away = True
    for step in range(50):
        spool.add(step, {"loss": 1.0})
    assert not spool.flush(0.3)
    assert spool.pending > 0
    receiver.away = False
    assert spool.flush(5)
    assert [point.step for point in receiver.points] == list(range(50))


def test_the_next_process_sends_what_is_left(tmp_path: Path, receiver: Receiver) -> None:
    receiver.away = True
    first = Spool(tmp_path / "run.jsonl", receiver, interval=0.05)
    first.add(0, {"loss": 1.0})
    assert not first.close(0.2)
    with (tmp_path / "run.jsonl").open("ab") as file:
        file.write(b'{"step": 1, "time": 17, "val')  # killed in the middle of a write
    receiver.away = False
    second = Spool(tmp_path / "run.jsonl", receiver, interval=0.05)
    second.add(2, {"loss": 3.0})
    assert second.close(5)
    third = Spool(tmp_path / "run.jsonl", receiver, interval=0.05)
    assert third.close(5)
    assert [(point.step, point.value) for point in receiver.points] == [(0, 1.0), (2, 3.0)]  # once each


def test_a_refused_point_takes_no_other_with_it(spool: Spool, receiver: Receiver) -> None:
    receiver.refused = {"bad"}
    for step in range(3):
        spool.add(step, {"good": 1.0, "bad": 2.0})
    assert spool.flush(5)
    assert [(point.key, point.step) for point in receiver.points] == [("good", 0), ("good", 1), ("good", 2)]


@settings(max_examples=20, deadline=None)
@given(values=st.lists(st.dictionaries(st.text(max_size=5), st.floats(), max_size=5), max_size=20))
def test_any_value_survives(tmp_path_factory: pytest.TempPathFactory, values: list[dict[str, float]]) -> None:
    receiver = Receiver()
    spool = Spool(tmp_path_factory.mktemp("spool") / "run.jsonl", receiver, interval=0.01)
    for step, items in enumerate(values):
        spool.add(step, items)
    assert spool.close(5)
    sent = [(step, key, value) for step, items in enumerate(values) for key, value in items.items()]
    got = [(point.step, point.key, point.value) for point in receiver.points]
    assert len(got) == len(sent)
    for mine, theirs in zip(sent, got, strict=True):
        assert mine[:2] == theirs[:2]
        assert mine[2] == theirs[2] or (math.isnan(mine[2]) and math.isnan(theirs[2]))


WRITER = """
import sys, time
from pathlib import Path
from workflows.tracking import attach
run = attach(sys.argv[1], Path(sys.argv[2]))
for step in range(100, 10**6):
    run.log_metrics(step, {"loss": float(step)})
    print(step, flush=True)
    time.sleep(0.02)
"""


@pytest.mark.slow
def test_server_and_worker_are_killed_and_every_point_is_stored_once(stack: stacks.Stack, tmp_path: Path) -> None:
    experiment = client().create_experiment(f"spool-{tmp_path.name}")
    run_id = client().create_run(experiment).info.run_id
    run = tracking.attach(run_id, tmp_path)
    run.log_metrics(0, {"loss": 0.0})
    assert run.flush(30)
    processes.end([p for p in processes.members(stack.directory) if processes.session(p) == stack.mlflow.pid], 0.0)
    longest = 0.0
    for step in range(1, 100):
        begin = time.perf_counter()
        run.log_metrics(step, {"loss": float(step)})
        longest = max(longest, time.perf_counter() - begin)
        time.sleep(0.03)
    assert longest < 5  # no step waits for the server, whose absence a client notices after many seconds
    run.close(0.1)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, run_id, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    for line in writer.stdout:
        if line.strip() == "150":
            break
    writer.kill()
    last = max(int(line) for line in [*writer.stdout.read().split(), "150"])
    writer.wait()
    again = stacks.start(stack.directory)
    assert again.mlflow.endpoint == stack.mlflow.endpoint
    with tracking.attach(run_id, tmp_path) as resumed:
        resumed.log_metrics(10**6, {"nan": math.nan, "inf": math.inf})
        assert resumed.flush(60)
    history = client().get_metric_history(run_id, "loss")
    stored = sorted(point.step for point in history)
    assert stored[: last + 1] == list(range(last + 1))  # each once; the writer may have come one step further
    assert len(stored) <= last + 2
    assert math.isnan(client().get_run(run_id).data.metrics["nan"])
