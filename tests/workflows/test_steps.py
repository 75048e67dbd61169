"""The stages one after another, on a real S3 server, a real MLflow and a real Ray cluster."""

from __future__ import annotations

import pytest
from mlflow import MlflowClient

from unic_core.config import RunConfig, load_config
from unic_core.errors import UnicError
from unic_core.export import load_student
from unic_core.storage import open_store
from workflows import steps
from workflows.stack import Stack

pytestmark = pytest.mark.slow
ROOT = "s3://unic/steps"


@pytest.fixture
def config(stack: Stack) -> RunConfig:
    assert stack.mlflow.state in {"running", "external"}
    probes = "[{dataset: digits}, {dataset: /nowhere/images, train_on: digits, group: shift}]"
    return load_config("smoke", ["name=steps", f"evaluation.probes={probes}", "tracking.experiment=steps"])


def test_the_chain_from_images_to_report(config: RunConfig) -> None:
    datasets = steps.prepare(config, ROOT)
    assert steps.prepare(config, ROOT) == datasets
    run = steps.distill(config, ROOT, datasets)
    assert load_student(f"{run}/student").num_classes == 0

    assert steps.probe_groups(config) == ["digits"]
    rows = steps.evaluate(config, ROOT, "digits", datasets, run)
    measured = {(row.model, row.protocol) for row in rows if row.dataset == "digits"}
    assert measured == {(m, p) for m in ("student", "random student", "lite0") for p in ("logreg", "knn")}
    failed = [row for row in rows if row.dataset == "nowhere-images"]
    assert len(failed) == 6
    assert all(row.error and "no finished data set" in row.error for row in failed)

    lines: list[str] = []
    again = steps.evaluate(config, ROOT, "digits", datasets, run, lines.append)
    assert "lite0: known from an earlier run" in lines
    assert [r.top1 for r in again if r.role == "teacher"] == [r.top1 for r in rows if r.role == "teacher"]

    metrics = steps.report(config, run)
    assert metrics["probe/failed"] == 6
    assert {"report/index.html", "report/report.md", "report/rows.csv", "report/accuracy.png"} <= set(
        open_store(run).list("report/")
    )
    assert "first champion" in steps.promote(config)
    _check_tracking(config, metrics)


def _check_tracking(config: RunConfig, metrics: dict[str, float]) -> None:
    client = MlflowClient()
    experiment = client.get_experiment_by_name("steps")
    runs = client.search_runs([experiment.experiment_id])
    parent = next(run for run in runs if run.data.tags.get("stage") == "pipeline")
    children = {r.info.run_name: r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert set(children) == {"distill", "probe-digits"}
    assert {r.info.status for r in (parent, *children.values())} == {"FINISHED"}
    assert parent.data.metrics["probe/digits/top1"] == metrics["probe/digits/top1"]
    assert len(client.get_metric_history(children["distill"].info.run_id, "distill/loss")) == 7
    assert {i.dataset.name for i in children["distill"].inputs.dataset_inputs} == {"digits"}
    assert {a.path for a in client.list_artifacts(parent.info.run_id)} == {"config.yaml", "report"}
    model = client.get_model_version_by_alias(config.tracking.registered_model, "champion")
    assert model.run_id == parent.info.run_id


def test_steps_say_what_has_to_come_before(config: RunConfig) -> None:
    with pytest.raises(UnicError, match="has no student yet; run `unic distill` first"):
        steps.evaluate(config, ROOT, "digits", {}, f"{ROOT}/runs/none")
    with pytest.raises(UnicError, match="trains no probe on 'nowhere'; choose from digits"):
        steps.evaluate(config, ROOT, "nowhere", {}, f"{ROOT}/runs/none")
    with pytest.raises(UnicError, match="has no results yet; run `unic evaluate` first"):
        steps.report(config, f"{ROOT}/runs/none")
