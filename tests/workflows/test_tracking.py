"""MLflow: layout, resuming, statuses, model registry; without a server and with a real one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.artifacts import download_artifacts

from tests.faults import FaultProxy
from tests.workflows.conftest import S3
from unic_core.config import RunConfig, parse_config
from unic_core.errors import UnicError
from workflows import stack as stacks
from workflows import tracking
from workflows.stack import processes, services
from workflows.tracking import server
from workflows.tracking.server import client


def make_config(name: str, **tracking_keys: object) -> RunConfig:
    keys = {"experiment": "tests", "registered_model": f"student-{name}", "system_metrics": False, **tracking_keys}
    data = {
        "name": name,
        "student": {"model": "vit_tiny_patch16_224"},
        "teachers": [
            {
                "name": "a",
                "model": "timm:resnet18",
                "weights": "https://user:hunter2@host/w.pth?X-Amz-Signature=hunter3",
            },
            {"name": "b", "model": "timm:resnet26"},
        ],
        "tracking": keys,
    }
    return parse_config(data)


@pytest.fixture(scope="session")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory for runs without a server; its database is made once."""
    return tmp_path_factory.mktemp("laptop")


@pytest.fixture(params=["database", pytest.param("server", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, laptop: Path, clean_environment: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Both places where runs can be tracked: a database below the working directory, and a server."""
    if request.param == "server":
        request.getfixturevalue("stack")
    else:
        clean_environment.chdir(laptop)
    tracking.check_reachable()
    return str(request.param)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return make_config(tmp_path.name.lower().replace("_", "-")[:40].strip("-.[]").replace("[", "-").replace("]", ""))


def test_layout(place: str, config: RunConfig, laptop: Path) -> None:
    parent = tracking.parent_run(config)
    assert tracking.parent_run(config) == parent
    with tracking.child_run(config, parent, "probe-eurosat", {"dataset": "eurosat"}) as run:
        run.log_metrics(3, {"top1": 0.5, "top5": 0.9})
        run.log_params({"c": 1.0, "nested": {"k": [10, 20]}, "none": None})
        run.log_artifacts({"rows/eurosat.json": b"{}", "card.md": Path(__file__)})
        run.log_dataset("eurosat", "s3://unic/datasets/eurosat/abc", "test", "f" * 64, "evaluation")
        assert client().get_run(run.run_id).info.status == "RUNNING"

    stored = client().get_run(parent)
    assert stored.info.run_name == config.name
    tags = stored.data.tags
    assert tags["unic.run"] == config.name
    assert tags["stage"] == "pipeline"
    assert tags["teachers"] == "a (timm:resnet18), b (timm:resnet26)"
    assert tags["student"] == "vit_tiny_patch16_224"
    assert len(tags["recipe_sha256"]) == 64
    assert stored.data.params["teachers.1.model"] == "timm:resnet26"
    assert stored.data.params["optimizer.lr"] == "0.0003"
    assert stored.data.params["teachers.0.weights"] == "https://host/w.pth"
    assert "hunter" not in json.dumps(stored.to_dictionary())

    child = client().get_run(run.run_id)
    assert child.info.status == "FINISHED"
    assert child.info.run_name == "probe-eurosat"
    assert child.data.tags["mlflow.parentRunId"] == parent
    assert child.data.tags["dataset"] == "eurosat"
    assert child.data.metrics == {"top1": 0.5, "top5": 0.9}
    assert child.data.params == {"c": "1.0", "nested.k.0": "10", "nested.k.1": "20", "none": "null"}
    (used,) = child.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("eurosat", "f" * 36)
    assert {tag.key: tag.value for tag in used.tags} == {"mlflow.data.context": "evaluation", "split": "test"}
    fetched = download_artifacts(run_id=run.run_id, tracking_uri=tracking.tracking_uri())
    assert Path(fetched, "rows", "eurosat.json").read_bytes() == b"{}"
    assert Path(fetched, "card.md").read_bytes() == Path(__file__).read_bytes()
    if place == "database":
        assert (laptop / ".unic" / "mlflow.db").exists()
        assert child.info.artifact_uri.startswith((laptop / ".unic" / "mlartifacts").as_uri())
        assert not (laptop / "mlruns").exists()
    else:
        assert child.info.artifact_uri.startswith("mlflow-artifacts:/")


def test_resumed_stage_continues_its_run(place: str, config: RunConfig) -> None:
    parent = tracking.parent_run(config)
    with pytest.raises(ValueError, match="boom"):  # noqa: PT012, SIM117
        with tracking.child_run(config, parent, "distill") as first:
            first.log_params({"steps": 10})
            first.log_metrics(1, {"loss": 2.0})
            raise ValueError("boom")
    stored = client().get_run(first.run_id)
    assert stored.info.status == "FAILED"
    assert stored.data.metrics == {"loss": 2.0}
    with tracking.child_run(config, parent, "distill") as second:
        assert second.run_id == first.run_id
        assert client().get_run(second.run_id).info.status == "RUNNING"
        second.log_params({"steps": 20, "new": 1})  # no error; MLflow keeps the first value
        second.log_metrics(2, {"loss": 1.0})
    with tracking.child_run(config, parent, "other") as other:
        assert other.run_id != first.run_id
    stored = client().get_run(first.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.params == {"steps": "10", "new": "1"}
    assert [point.step for point in client().get_metric_history(first.run_id, "loss")] == [1, 2]
    tracking.finish_parent(parent)
    assert client().get_run(parent).info.status == "FINISHED"
    assert tracking.parent_run(config) == parent
    assert client().get_run(parent).info.status == "RUNNING"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(1), "FAILED"),
        (SystemExit(143), "KILLED"),
        (SystemExit(0), "FINISHED"),
    ],
)
def test_status_of_an_exit(
    laptop: Path, clean_environment: pytest.MonkeyPatch, config: RunConfig, error: BaseException, status: str
) -> None:
    clean_environment.chdir(laptop)
    parent = tracking.parent_run(config)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(type(error)), tracking.child_run(config, parent, "distill") as run:
        raise error
    assert client().get_run(run.run_id).info.status == status
    assert signal.getsignal(signal.SIGTERM) == before


STAGE = """
import sys, time
from unic_core.config import load_config
from workflows import tracking
config = load_config(sys.argv[1])
with tracking.child_run(config, sys.argv[2], "distill") as run:
    run.log_metrics(1, {"loss": 1.0})
    print(run.run_id, flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -2)])
def test_killed_process_marks_its_run(
    place: str, config: RunConfig, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    from unic_core.config import dump_config

    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    parent = tracking.parent_run(config)
    command = [sys.executable, "-c", STAGE, str(path), parent]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    run_id = process.stdout.readline().strip()
    begin = time.monotonic()
    process.send_signal(number)
    assert process.wait(30) == code
    assert time.monotonic() - begin < 15
    stored = client().get_run(run_id)
    assert stored.info.status == "KILLED"
    assert stored.data.metrics == {"loss": 1.0}


def test_runs_made_by_kubeflow_are_used(place: str, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = server.experiment_id("kubeflow")
    pipeline = client().create_run(experiment, run_name="pipeline").info.run_id
    task = client().create_run(experiment, tags={"mlflow.parentRunId": pipeline}, run_name="evaluate").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", task)
    monkeypatch.setenv("KFP_MLFLOW_CONFIG", json.dumps({"parentRunId": pipeline}))
    assert tracking.parent_run(config) == pipeline
    assert client().get_run(pipeline).data.params["unic.name"] == config.name
    with tracking.child_run(config, pipeline, "probe-eurosat") as run:
        assert run.run_id == task
        run.log_params({"dataset": "eurosat"})
    stored = client().get_run(task)
    assert stored.data.params == {"unic.dataset": "eurosat"}  # Kubeflow logs `dataset` itself, and must be able to
    assert stored.info.run_name == "probe-eurosat"
    with tracking.child_run(config, pipeline, "probe-dtd") as second:  # the same step, something else
        assert second.run_id != task
    assert client().get_run(second.run_id).data.tags["mlflow.parentRunId"] == task
    tracking.finish_parent(pipeline)
    assert client().get_run(pipeline).info.status == "RUNNING"  # Kubeflow's to end

    monkeypatch.delenv("KFP_MLFLOW_CONFIG")
    assert tracking.parent_run(config) == task  # a plain MLFLOW_RUN_ID is resumed
    monkeypatch.setenv("KFP_MLFLOW_CONFIG", "[")
    with pytest.raises(UnicError, match="KFP_MLFLOW_CONFIG"):
        tracking.parent_run(config)


def test_runs_of_the_pipeline_are_tagged_with_kubeflows(
    place: str, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second pipeline run that reuses the first one's distillation finds everything under one parent."""
    monkeypatch.setenv("KFP_UI_URL", "https://kubeflow.example.com/pipeline/")
    monkeypatch.setenv("KFP_RUN_ID", "run-1")
    parent = tracking.parent_run(config)
    with tracking.child_run(config, parent, "distill") as distilled:
        pass
    page = "https://kubeflow.example.com/pipeline/#/runs/details/run-1"
    stored = client().get_run(parent)
    assert stored.data.tags["mlflow.note.content"] == f"[Run in Kubeflow]({page})"
    for run in (stored, client().get_run(distilled.run_id)):
        assert run.data.tags["kfp.pipeline_run_id"] == "run-1"
        assert run.data.tags["kfp.pipeline_run_url"] == page

    monkeypatch.setenv("KFP_RUN_ID", "run-2")  # distill is cached now
    assert tracking.parent_run(config) == parent
    with tracking.child_run(config, parent, "probe-digits") as probed:
        pass
    tracking.reuse(parent, distilled.run_id)
    assert client().get_run(parent).data.tags["unic.distill_run"] == distilled.run_id
    experiment = stored.info.experiment_id
    for name, wanted in (
        ("run-1", {parent, distilled.run_id}),
        ("run-2", {parent, distilled.run_id, probed.run_id}),
    ):
        found = client().search_runs([experiment], f"tags.`kfp.run.{name}` = '{parent}'")
        assert {run.info.run_id for run in found} == wanted


def test_a_failed_stage_ends_the_parent_until_the_next_attempt(place: str, config: RunConfig) -> None:
    parent = tracking.parent_run(config)
    with pytest.raises(ValueError, match="boom"), tracking.child_run(config, parent, "distill"):
        raise ValueError("boom")
    assert client().get_run(parent).info.status == "FAILED"
    assert tracking.parent_run(config) == parent
    assert client().get_run(parent).info.status == "RUNNING"


def test_links_lead_to_where_people_find_the_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.unic.svc:5000")
    monkeypatch.setenv("MLFLOW_UI_URL", "https://mlflow.example.com/")
    assert server._page("experiments/1") == "https://mlflow.example.com/#/experiments/1"
    monkeypatch.delenv("MLFLOW_UI_URL")
    assert server._page("experiments/1") == "http://mlflow.unic.svc:5000/#/experiments/1"


def write_student(directory: Path, weights: bytes) -> Path:
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(weights)
    (directory / "config.json").write_text("{}")
    return directory


def test_student_is_registered_once(
    place: str, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = tracking.parent_run(config)
    directory = write_student(tmp_path / "student", b"weights")
    first = tracking.log_student(parent, directory, config, {"probe/mean_top1": 0.5})
    assert tracking.log_student(parent, directory, config) == first
    name = config.tracking.registered_model
    (version,) = client().search_model_versions(f"name = '{name}'")
    assert version.run_id == parent
    assert version.tags["unic.sha256"] == first.sha256
    assert str(client().get_model_version_by_alias(name, "candidate").version) == first.version
    model = client().get_logged_model(first.model_id)
    assert str(model.status) == "READY"
    assert model.source_run_id == parent
    assert [(metric.key, metric.value) for metric in model.metrics] == [("probe/mean_top1", 0.5)]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.tracking_uri())
    fetched = Path(download_artifacts(first.uri))
    assert fetched.joinpath("model.safetensors").read_bytes() == b"weights"
    assert {path.suffix for path in fetched.iterdir()} <= {".safetensors", ".json", ".yaml"}  # no pickle

    other = tracking.log_student(parent, write_student(tmp_path / "second", b"better"), config)
    assert other.version != first.version
    assert str(client().get_model_version_by_alias(name, "candidate").version) == other.version


def test_only_a_better_student_becomes_champion(place: str, config: RunConfig, tmp_path: Path) -> None:
    name = config.tracking.registered_model

    def report(run: str, **scores: float) -> tuple[str, str]:
        one = config.model_copy(update={"name": f"{config.name}-{run}"})
        parent = tracking.parent_run(one)
        directory = tmp_path / run
        student = tracking.log_student(parent, write_student(directory, run.encode()), one)
        metrics = {f"probe/{key}/top1": value for key, value in scores.items()}
        metrics["probe/mean_top1"] = sum(scores.values()) / len(scores)
        metrics["probe/mean_top1_error"] = 0.01
        tracking.log_report(one, parent, {"index.html": b"<html>"}, metrics, {"winner.x": "student"})
        assert client().get_run(parent).data.tags["winner.x"] == "student"
        assert {m.key for m in client().get_logged_model(student.model_id).metrics} == set(metrics)
        assert [f.path for f in client().list_artifacts(parent, "report")] == ["report/index.html"]
        return student.version, tracking.promote(one, parent)

    def champion() -> str:
        return str(client().get_model_version_by_alias(name, "champion").version)

    first, said = report("first", x=0.5, y=0.7)
    assert champion() == first
    assert "first champion, with a mean top-1 of 0.6000" in said
    _, said = report("worse", x=0.4, y=0.7)
    assert champion() == first
    assert "0.5500 does not beat the 0.6000" in said
    _, said = report("equal", x=0.7, y=0.5)
    assert champion() == first
    _, said = report("easier", x=0.9)
    assert champion() == first
    assert "other data sets (the difference is y)" in said
    _, said = report("by-chance", x=0.52, y=0.72)
    assert champion() == first
    assert f"0.6200 does not beat the 0.6000 of champion version {first} beyond chance" in said
    assert "+0.0200 (95 % interval -0.0077 to +0.0477, as if measured on different images)" in said
    better, said = report("better", x=0.6, y=0.7)
    assert champion() == better
    assert f"beats version {first} by +0.0500" in said
    empty = config.model_copy(update={"name": f"{config.name}-empty"})
    with pytest.raises(UnicError, match="no student in the model registry"):
        tracking.promote(empty, tracking.parent_run(empty))


def test_missing_weights(laptop: Path, config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(UnicError, match=r"cannot read .*model\.safetensors"):
        tracking.log_student("any", tmp_path, config)


def test_impossible_artifact_names(tmp_path: Path) -> None:
    for name in ("../up", "/etc/x"):
        with pytest.raises(UnicError, match="no name of an artifact"):
            tracking.attach("any", tmp_path).log_artifacts({name: b""})


def test_server_down_is_reported_soon(clean_environment: pytest.MonkeyPatch) -> None:
    uri = f"http://user:hunter2@127.0.0.1:{processes.free_ports(1)[0]}"
    clean_environment.setenv("MLFLOW_TRACKING_URI", uri)
    begin = time.monotonic()
    with pytest.raises(UnicError, match=r"MLflow at http://127.0.0.1:.* cannot be reached; start it") as caught:
        tracking.check_reachable()
    assert time.monotonic() - begin < 8
    assert "hunter2" not in str(caught.value)


def test_wrong_server_is_reported(s3: object, clean_environment: pytest.MonkeyPatch) -> None:
    clean_environment.setenv("MLFLOW_TRACKING_URI", os.environ["AWS_ENDPOINT_URL_S3"])  # answers, but is no MLflow
    with pytest.raises(UnicError, match="MLflow at"):
        tracking.check_reachable()


def test_outage_at_the_end_does_not_fail_the_stage(
    laptop: Path, clean_environment: pytest.MonkeyPatch, config: RunConfig
) -> None:
    clean_environment.chdir(laptop)
    parent = tracking.parent_run(config)
    clean_environment.setattr(server, "PATIENCE_SECONDS", 0.5)
    with tracking.child_run(config, parent, "distill"):
        endpoint = f"http://127.0.0.1:{processes.free_ports(1)[0]}"
        clean_environment.setenv("MLFLOW_TRACKING_URI", endpoint)
        clean_environment.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    # nothing raised: the stage's own result stands


def test_deleted_experiment(laptop: Path, clean_environment: pytest.MonkeyPatch) -> None:
    clean_environment.chdir(laptop)
    config = make_config("deleted", experiment="gone")
    client().delete_experiment(server.experiment_id("gone"))
    with pytest.raises(UnicError, match="'gone' is deleted; restore it"):
        tracking.parent_run(config)


def test_urls(place: str, config: RunConfig) -> None:
    parent = tracking.parent_run(config)
    if place == "database":
        assert tracking.run_url(parent) is None
        assert tracking.compare_url([parent]) is None
        return
    experiment = client().get_run(parent).info.experiment_id
    uri = tracking.tracking_uri()
    assert tracking.run_url(parent) == f"{uri}/#/experiments/{experiment}/runs/{parent}"
    expected = f"{uri}/#/compare-runs?runs=%5B%22{parent}%22%5D&experiments=%5B%22{experiment}%22%5D"
    assert tracking.compare_url([parent]) == expected


@pytest.mark.slow
def test_two_processes_may_open_a_new_database(tmp_path: Path, clean_environment: pytest.MonkeyPatch) -> None:
    code = "from workflows import tracking; tracking.check_reachable()"
    commands = [[sys.executable, "-c", code]] * 2
    running = [subprocess.Popen(c, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for c in commands]
    assert [(process.wait(120), process.stderr.read()) for process in running if process.stderr] == [(0, ""), (0, "")]


@pytest.mark.slow
def test_system_metrics(stack: stacks.Stack, clean_environment: pytest.MonkeyPatch, config: RunConfig) -> None:
    clean_environment.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
    watched = make_config(config.name, system_metrics=True)
    parent = tracking.parent_run(watched)
    deadline = time.monotonic() + 30
    with tracking.child_run(watched, parent, "distill") as run:
        while "system/cpu_utilization_percentage" not in client().get_run(run.run_id).data.metrics:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.slow
def test_files_come_through_the_server(s3: S3, tmp_path: Path, clean_environment: pytest.MonkeyPatch) -> None:
    """MLflow offers signed addresses of its S3, which a client elsewhere cannot reach: none is used."""
    (port,), log = processes.free_ports(1), tmp_path / "mlflow.log"
    uri = f"http://{processes.HOST}:{port}"
    with FaultProxy(s3.endpoint) as behind:
        command = services.mlflow_command(port, tmp_path / "mlflow.db", "s3://unic/artifacts")
        keys = {"AWS_ACCESS_KEY_ID": s3.keys[0], "AWS_SECRET_ACCESS_KEY": s3.keys[1]}
        environment = services.server_environment(keys | {"MLFLOW_S3_ENDPOINT_URL": behind.endpoint})
        running = processes.spawn(command, environment, tmp_path, tmp_path, log)
        try:
            processes.wait_until(lambda: processes.answers(f"{uri}/health") == 200, running, "MLflow", log, 90)
            clean_environment.setenv("MLFLOW_TRACKING_URI", uri)
            run = client().create_run("0").info.run_id
            client().log_text(run, "[]", "report/rows.json")
            assert tracking.read_artifact(run, "report/rows.json") == b"[]"
        finally:
            processes.end(processes.members(tmp_path), 10)
    assert any("rows.json" in path for _, path in behind.requests)
    assert not [path for _, path in behind.requests if "X-Amz-Signature" in path]
