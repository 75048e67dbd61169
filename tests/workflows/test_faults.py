"""Faults while Ray Train trains: each run must end with the very weights of one that nothing disturbed.

Two checkpoints apart nothing may be repeated: the steps that were done twice are counted.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from mlflow import MlflowClient
from ray.cluster_utils import Cluster
from safetensors.torch import load

from tests.faults import FaultProxy
from tests.workflows.conftest import S3
from unic_core.checkpoint import list_checkpoints
from unic_core.config import RunConfig, dump_config, load_config
from unic_core.data.prepare import prepare_dataset
from unic_core.errors import UnicError
from unic_core.history import Record
from unic_core.interrupt import Wish
from unic_core.session import Surroundings, run_session
from unic_core.storage import Store, open_store
from workflows import stack as stacks
from workflows import steps, tracking
from workflows.ray_train import run_distillation
from workflows.stack import processes

pytestmark = pytest.mark.slow

STEPS, INTERVAL = 240, 20
SETTINGS = [
    f"training.steps={STEPS}",
    f"training.checkpoint_every={INTERVAL}",
    "training.log_every=1",
    "training.keep_last=3",
    "tracking.system_metrics=false",
    "tracking.experiment=faults",
]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {"digits": prepare_dataset(load_config("smoke").datasets[0], str(tmp_path_factory.mktemp("root")))}


@pytest.fixture(scope="module")
def straight(digits: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of the undisturbed run."""
    place = str(tmp_path_factory.mktemp("straight"))
    config = load_config("smoke", SETTINGS)
    run_session(config, digits, place, torch.device("cpu"), Surroundings(lambda *_: None, str))
    return weights(open_store(place))


@pytest.fixture
def tracked(tmp_path: Path, clean_environment: pytest.MonkeyPatch) -> str:
    """A run of MLflow in a database of its own."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    clean_environment.setenv("MLFLOW_TRACKING_URI", uri)
    return str(MlflowClient(uri).create_run("0").info.run_id)


def weights(store: Store) -> dict[str, torch.Tensor]:
    newest = list_checkpoints(store)[-1]
    assert newest.complete
    found: dict[str, torch.Tensor] = {}
    for part in ("student", "projectors", "optimizer", "standardizer"):
        tensors = load(store.get(f"{newest.key}/{part}.safetensors"))
        found |= {f"{part}/{key}": value for key, value in tensors.items()}
    return found


def assert_equal(store: Store, straight: dict[str, torch.Tensor]) -> None:
    found = weights(store)
    assert found.keys() == straight.keys()
    assert not [key for key in straight if not torch.equal(found[key], straight[key])]


def assert_close(store: Store, straight: dict[str, torch.Tensor]) -> None:
    """As `assert_equal`, but for runs in which sums over processes were made in another order."""
    found = weights(store)
    for key, value in straight.items():
        if key.startswith("student/"):
            torch.testing.assert_close(found[key], value, atol=5e-3, rtol=1e-3, msg=key)


class Run:
    """A distillation that does something to the world once it has reached a step."""

    def __init__(self, config: RunConfig, datasets: dict[str, str], place: str, tracked: str) -> None:
        self.arguments = (config, datasets, place, tracked)
        self.seen: list[int] = []
        self.moments: list[float] = []
        self.lines: list[str] = []

    def go(self, at: int, fault: Callable[[], None], heard: Callable[[str], None] = str) -> Run:
        waiting = [fault]

        def emit(step: int, _: Record) -> None:
            self.seen.append(step)
            self.moments.append(time.monotonic())
            if step >= at and waiting:
                waiting.pop()()

        def say(line: str) -> None:
            self.lines.append(line)
            heard(line)

        open_store(self.arguments[2]).list()  # as every caller does: from now on the endpoint has answered
        run_distillation(*self.arguments, emit, say)
        assert not waiting, "the run ended before the fault"
        pauses = [later - before for before, later in itertools.pairwise(self.moments)]
        print(f"training paused for {max(pauses):.1f} s at most and did {self.repeated} steps again")
        return self

    @property
    def repeated(self) -> int:
        """Steps that were done more than once."""
        return len(self.seen) - len(set(self.seen))


def workers() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        if "RayTrainWorker" in " ".join(process.info["cmdline"] or ()) and _is_ours(process):
            found.append(process)
    return found


def _is_ours(process: psutil.Process) -> bool:
    """Whether this test process (or a driver it started) is behind a worker."""
    try:
        return psutil.Process() in process.parents()
    except psutil.NoSuchProcess:
        return False


def later(seconds: float, action: Callable[[], object]) -> None:
    threading.Timer(seconds, action).start()


def test_s3_is_away_for_twenty_seconds(
    own_s3: S3,
    digits: dict[str, str],
    straight: dict[str, torch.Tensor],
    tracked: str,
    clean_environment: pytest.MonkeyPatch,
) -> None:
    """kill -9 of the server while checkpoints are uploaded; training does not even restart."""
    own_s3.start()
    own_s3.use(clean_environment)

    def outage() -> None:
        own_s3.kill()
        later(20, own_s3.start)

    run = Run(load_config("smoke", SETTINGS), digits, "s3://unic/outage", tracked).go(30, outage)
    assert run.repeated == 0
    assert_equal(open_store("s3://unic/outage"), straight)


def test_a_worker_is_killed_while_s3_is_away(
    own_s3: S3,
    digits: dict[str, str],
    straight: dict[str, torch.Tensor],
    tracked: str,
    clean_environment: pytest.MonkeyPatch,
) -> None:
    """The restart needs the store, for Ray's own files as well as for the checkpoint: it waits."""
    own_s3.start()
    own_s3.use(clean_environment)

    def outage() -> None:
        own_s3.kill()
        later(10, own_s3.start)
        for process in workers():
            process.kill()

    run = Run(load_config("smoke", SETTINGS), digits, "s3://unic/both", tracked).go(50, outage)
    assert 0 < run.repeated <= 2 * INTERVAL  # the upload of one checkpoint may have been under way
    assert_equal(open_store("s3://unic/both"), straight)


@pytest.mark.parametrize("fault", ["503", "slow", "cut"])
def test_s3_answers_badly(
    s3: S3,
    digits: dict[str, str],
    straight: dict[str, torch.Tensor],
    tracked: str,
    clean_environment: pytest.MonkeyPatch,
    fault: str,
) -> None:
    place = f"s3://unic/badly-{fault}"
    with FaultProxy(s3.endpoint) as proxy:
        clean_environment.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)

        def misbehave() -> None:
            if fault == "503":
                proxy.slow_down(share=0.5)
            elif fault == "slow":
                proxy.slow(delay=0.5, bytes_per_second=200_000)
            else:
                proxy.cut(after=1000, share=0.3)
            later(8, proxy.heal)

        run = Run(load_config("smoke", SETTINGS), digits, place, tracked).go(30, misbehave)
        assert proxy.hits > 0
        assert run.repeated == 0
        assert_equal(open_store(place), straight)


def test_a_frozen_process_is_given_up(
    digits: dict[str, str], straight: dict[str, torch.Tensor], tracked: str, tmp_path: Path
) -> None:
    """SIGSTOP: the others wait in a collective until cluster.timeout_s, then all start again."""
    config = load_config("smoke", [*SETTINGS, "cluster.workers=2", "cluster.timeout_s=15"])
    frozen: list[psutil.Process] = []

    def freeze() -> None:
        frozen.extend(workers()[:1])
        frozen[0].suspend()

    run = Run(config, digits, str(tmp_path), tracked).go(50, freeze)
    assert run.repeated <= INTERVAL + 1
    assert not frozen[0].is_running()
    assert_close(open_store(str(tmp_path)), straight)


def test_machines_come_and_go(
    digits: dict[str, str], tracked: str, tmp_path: Path, clean_environment: pytest.MonkeyPatch
) -> None:
    """Elastic: two machines, then one, then two again; stopped when that has been seen."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    clean_environment.setenv("RAY_ADDRESS", cluster.address)
    clean_environment.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
    elastic = ["cluster.workers=2", "cluster.min_workers=1", "cluster.resize_s=3", "training.steps=100000"]
    config = load_config("smoke", [*SETTINGS, *elastic])
    nodes = [add_node(cluster.address)]
    seen: list[str] = []

    def heard(line: str) -> None:
        found = re.search(r"in (\d) process", line)
        if found is None:
            return
        two = found[1] == "2"
        if two and not seen:  # at first there may be one: the other machine is still starting
            seen.append("two")
            later(3, lambda: os.killpg(nodes[0].pid, signal.SIGKILL))
        elif not two and seen == ["two"]:
            seen.append("one")
            nodes.append(add_node(cluster.address))
        elif two and seen == ["two", "one"]:
            seen.append("two again")
            os.kill(os.getpid(), signal.SIGINT)

    try:
        run = Run(config, digits, str(tmp_path / "elastic"), tracked)
        with pytest.raises(KeyboardInterrupt):
            run.go(1, lambda: None, heard)
    finally:
        for node in nodes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
            node.wait(30)
        cluster.shutdown()
    assert seen == ["two", "one", "two again"]
    reached = list_checkpoints(open_store(str(tmp_path / "elastic")))[-1].step
    steps_to_go = iter([Wish.NONE] * (reached - 1) + [Wish.STOP])
    around = Surroundings(lambda *_: None, str, wish=lambda: next(steps_to_go))
    assert run_session(config, digits, str(tmp_path / "straight"), torch.device("cpu"), around).step == reached
    straight = weights(open_store(str(tmp_path / "straight")))
    assert_close(open_store(str(tmp_path / "elastic")), straight)


def add_node(address: str) -> subprocess.Popen[bytes]:
    """A machine with one core joins the cluster; it is a process group of its own, to be killed as one."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={address}", "--num-cpus=1", "--block"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


class Driver:
    """`unic distill` in a process of its own."""

    def __init__(self, config: RunConfig, root: Path) -> None:
        (root / "config.yaml").write_text(dump_config(config))
        command = [
            sys.executable,
            "-c",
            "from workflows.cli import main; main()",
            "distill",
            str(root / "config.yaml"),
            "--root",
            str(root),
        ]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self.output: list[str] = []
        self.begin = time.monotonic()

    def until(self, pattern: str) -> str:
        """Read on until a line matches."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line)
            if re.search(pattern, line):
                print(f"{time.monotonic() - self.begin:.1f} s from the start of the driver to: {line}")
                return line
        raise AssertionError(f"no {pattern!r} in {''.join(self.output)}")

    def end(self, timeout: float = 120) -> int:
        rest, _ = self.process.communicate(timeout=timeout)
        self.output.append(rest)
        return self.process.returncode


@pytest.fixture
def distilled(tmp_path: Path, tracked: str) -> RunConfig:
    return load_config("smoke", [*SETTINGS, "name=faults"])


def test_the_driver_is_killed(distilled: RunConfig, straight: dict[str, torch.Tensor], tmp_path: Path) -> None:
    driver = Driver(distilled, tmp_path)
    wait_for_checkpoint(tmp_path / "runs/faults", 60)
    family = psutil.Process(driver.process.pid).children(recursive=True)
    driver.process.kill()
    driver.end()
    psutil.wait_procs(family, timeout=60)
    again = Driver(distilled, tmp_path)
    again.until("continuing at step")
    assert again.end() == 0, again.output
    store = open_store(str(tmp_path / "runs/faults"))
    assert_equal(store, straight)
    assert not store.exists("LEASE.json")
    (run,) = child_runs("distill")
    assert run.info.status == "FINISHED"
    steps_there = {point.step for point in MlflowClient().get_metric_history(run.info.run_id, "distill/loss")}
    assert steps_there == set(range(1, STEPS + 1))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_saves_the_very_step(
    distilled: RunConfig, straight: dict[str, torch.Tensor], tmp_path: Path, number: signal.Signals
) -> None:
    driver = Driver(distilled, tmp_path)
    wait_for_checkpoint(tmp_path / "runs/faults", 40)
    if number == signal.SIGINT:  # Ctrl-C in a terminal reaches every process of the group
        os.killpg(driver.process.pid, number)
    else:
        driver.process.send_signal(number)
    assert driver.end() == 130
    assert "stopping: writing a checkpoint" in "".join(driver.output)
    store = open_store(str(tmp_path / "runs/faults"))
    saved = list_checkpoints(store)[-1]
    assert saved.complete
    (run,) = child_runs("distill")
    assert run.info.status == "KILLED"
    assert not store.exists("LEASE.json")
    again = Driver(distilled, tmp_path)
    again.until(f"continuing at step {saved.step} of")
    assert again.end() == 0, again.output
    assert_equal(store, straight)
    (run,) = child_runs("distill")
    assert run.info.status == "FINISHED"


def test_a_second_start_of_a_run_is_refused(distilled: RunConfig, tmp_path: Path) -> None:
    driver = Driver(distilled, tmp_path)
    wait_for_checkpoint(tmp_path / "runs/faults", INTERVAL)
    with pytest.raises(UnicError, match="run faults is being trained by process"):
        steps.distill(distilled, str(tmp_path), steps.prepare(distilled, str(tmp_path)))
    assert driver.end() == 0, driver.output


def test_mlflow_is_away(
    digits: dict[str, str],
    straight: dict[str, torch.Tensor],
    tmp_path: Path,
    clean_environment: pytest.MonkeyPatch,
) -> None:
    """Killed in mid-training and back after its end: no step is repeated, no point is lost."""
    directory = tmp_path / "stack"
    try:
        clean_environment.setenv("MLFLOW_TRACKING_URI", stacks.start(directory).mlflow.endpoint)
        run_id = str(MlflowClient().create_run("0").info.run_id)

        def outage() -> None:
            processes.end([p for p in processes.members(directory) if "mlflow" in " ".join(p.cmdline())], 1)

        run = Run(load_config("smoke", SETTINGS), digits, str(tmp_path / "run"), run_id).go(30, outage)
        assert run.repeated == 0
        stacks.start(directory)
        attempt = tracking.attach(run_id)  # the next one on this machine takes over what could not be sent
        assert attempt.unsent()
        attempt.close()
        points = MlflowClient().get_metric_history(run_id, "distill/loss")
        assert [point.step for point in points] == list(range(1, STEPS + 1))
        assert_equal(open_store(str(tmp_path / "run")), straight)
    finally:
        stacks.stop(tmp_path / "stack")


def child_runs(name: str) -> list[Any]:
    client = MlflowClient()
    experiment = client.get_experiment_by_name("faults")
    return list(client.search_runs([experiment.experiment_id], f"tags.`unic.child` = '{name}'"))


def wait_for_checkpoint(place: Path, step: int) -> None:
    """Until a run has a complete checkpoint of `step` or later."""
    deadline = time.monotonic() + 180
    while not any(info.step >= step and info.complete for info in list_checkpoints(open_store(str(place)))):
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.1)
