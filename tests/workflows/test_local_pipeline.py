"""The local runner: values arrive intact, failures are sentences, and no process outlives it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.unic_core.evals.scenes import color_scenes
from unic_core.errors import UnicError
from workflows.local_pipeline import run_locally, run_pipeline
from workflows.request import read_request

SHAPE = """
from kfp import dsl

def component(function):
    return dsl.component(function, base_image="unic:1", install_kfp_package=False)

@component
def prepare(text: str, numbers: dict, probes: list[str]) -> str:
    print("[prepare] " + text, flush=True)
    if text == "bad":
        print("[prepare] error: the text is bad; give another", flush=True)
        raise SystemExit(2)
    if text == "broken":
        raise KeyError("surprise")
    return text

@component
def evaluate(probe: str, run: str, config: dict, target: str) -> str:
    import json
    import time
    begin = time.time()
    print(f"[evaluate {probe}] run {run}", flush=True)
    time.sleep(1.5)
    return json.dumps([probe, run, config, begin, time.time()])

@component
def report(rows: list[str], target: str):
    with open(target, "w") as file:
        file.write("[" + ",".join(rows) + "]")

@component
def hang(target: str):
    import os
    import subprocess
    import time
    with open(target, "w") as file:
        file.write(f"{os.getpid()} {subprocess.Popen(['sleep', '300']).pid}")
    print("[distill] waiting", flush=True)
    time.sleep(300)

@dsl.pipeline(name="probes")
def fan_out(probes: list[str], run: str, config: dict, target: str, image: str) -> list[str]:
    with dsl.ParallelFor(probes) as probe:
        rows = evaluate(probe=probe, run=run, config=config, target=target).set_container_image(image)
    return dsl.Collected(rows.output)

@dsl.pipeline(name="shape")
def shape(text: str, config: dict, probes: list[str], target: str, image: str = "unic:1"):
    prepared = prepare(text=text, numbers=config, probes=probes)
    probed = fan_out(probes=probes, run=prepared.output, config=config, target=target, image=image)
    report(rows=probed.output, target=target)

@dsl.pipeline(name="hanging")
def hanging(target: str):
    hang(target=target)
"""


@pytest.fixture
def shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module with pipelines of the real one's shape, which the runner's process can import."""
    (tmp_path / "shape_for_test.py").write_text(SHAPE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


def test_values_arrive_intact_and_the_probes_run_two_at_a_time(shape: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="workflows")
    target = shape / "python3 out.json"
    text = "python3 'quoted' \"twice\" ünïcode s3://bucket/runs/a"
    config = {"uri": "s3://bucket/python3", "other": "x"}
    arguments = {"text": text, "config": config, "probes": ["b", "a", "python3"], "target": str(target)}
    run_locally("shape_for_test:shape", arguments)

    rows = json.loads(target.read_text())
    assert [row[:3] for row in rows] == [[probe, text, config] for probe in ("b", "a", "python3")]
    spans = [row[3:] for row in rows]
    assert any(a[0] < b[1] and b[0] < a[1] for a in spans for b in spans if a is not b)
    messages = [record.getMessage() for record in caplog.records]
    assert sorted(m for m in messages if "run" in m)[0] == f"[evaluate a] run {text}"
    assert not any("KFP" in m for m in messages)
    assert not list((shape / "tmp").glob("unic-pipeline-*"))


@pytest.mark.parametrize(
    ("text", "said"), [("bad", "prepare: the text is bad; give another"), ("broken", "KeyError: 'surprise'")]
)
def test_a_failing_step_is_one_sentence_and_its_log_is_kept(shape: Path, text: str, said: str) -> None:
    arguments = {"text": text, "config": {}, "probes": ["a"], "target": str(shape / "out")}
    with pytest.raises(UnicError) as raised:
        run_locally("shape_for_test:shape", arguments)
    assert str(raised.value).startswith(said)
    log = Path(str(raised.value).rpartition("log: ")[2].rstrip(")"))
    assert "[prepare]" in log.read_text()
    assert not (shape / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left_however_it_ends(shape: Path, number: signal.Signals) -> None:
    target = shape / "pids"
    script = (
        "import signal, workflows.local_pipeline as p; signal.signal(signal.SIGTERM, signal.default_int_handler);"
        f"p.run_locally('shape_for_test:hanging', {{'target': {str(target)!r}}})"
    )
    runner = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    try:
        pids = _wait_for(lambda: [int(pid) for pid in target.read_text().split()] if target.exists() else [])
        runner.send_signal(number)
        runner.wait(timeout=20)
        assert runner.returncode != 0
        _wait_for(lambda: not any(_runs(pid) for pid in pids))
    finally:
        runner.kill()
        runner.wait()


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _wait_for(condition: Any, seconds: float = 20) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_real_pipeline_runs_from_images_to_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="workflows")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    scenes = color_scenes(tmp_path, "mask")
    task = f"{{dataset: '{scenes}', steps: 2, batch: 2, crop: 32, stride: 21, short_side: 32}}"
    name = f"segmentation-scenes-{scenes.rpartition('/')[2]}"
    overrides = ["training.steps=4", f"evaluation.segmentation=[{task}]"]
    parameters = {"recipe": "smoke", "recipe_overrides": overrides, "run_name": "other"}
    local = {"storage_root": str(tmp_path / "root"), "distill_launcher": "local"}
    run_pipeline(read_request(parameters | local))
    report = tmp_path / "root" / "runs" / "other" / "report"
    rows = json.loads((report / "rows.json").read_text())
    assert {row["model"] for row in rows} >= {"student", "lite0"}
    assert {row["protocol"] for row in rows if row["error"] is None} == {"logreg", "knn", "segmentation"}
    assert "Segmentation" in (report / "index.html").read_text()
    steps = {record.getMessage().partition("] ")[0].lstrip("[") for record in caplog.records}
    assert {"prepare", "distill", "evaluate digits", f"evaluate {name}", "report", "promote"} <= steps
