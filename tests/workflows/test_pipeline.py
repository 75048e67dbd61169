"""The compiled pipeline: its parameters, its wiring, and how its pods run."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from unic_core import __version__
from unic_core.errors import UnicError
from workflows import components
from workflows.launch.pods import POD_SECURITY
from workflows.pipeline.compile import compile_pipeline
from workflows.request import PipelineRequest

STEPS = ("prepare", "distill", "evaluate", "report", "promote")
CACHED = {"distill"}


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    file = tmp_path_factory.mktemp("ir") / "unic.yaml"
    compile_pipeline(file)
    ir, platform = yaml.safe_load_all(file.read_text())
    return ir, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


@pytest.fixture(scope="module")
def ir(documents: tuple[dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    return documents[0]


def dags(ir: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "root", ir["root"]
    yield from ((name, component) for name, component in ir["components"].items() if "dag" in component)


def tasks(ir: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: task for _, component in dags(ir) for name, task in component["dag"]["tasks"].items()}


# ---------------------------------------------------------------- structure


def test_parameters_have_types_and_working_defaults(ir: dict[str, Any]) -> None:
    parameters = ir["root"]["inputDefinitions"]["parameters"]
    assert len(parameters) <= 12  # the form shows names only: few, and each one says what it is
    assert {name: p["parameterType"] for name, p in parameters.items() if p["parameterType"] != "STRING"} == {
        "distill_workers_per_pod": "NUMBER_INTEGER",
        "evaluate_datasets": "LIST",
        "fail_on_missing": "BOOLEAN",
        "recipe_overrides": "LIST",
    }
    for name, parameter in parameters.items():
        assert parameter["description"], name
        assert name in ir["pipelineInfo"]["description"] or name in {"image", "storage_root", "distill_pod_memory"}
    assert {name: p["defaultValue"] for name, p in parameters.items()} == PipelineRequest().parameters()


def test_quantities_have_real_defaults(ir: dict[str, Any]) -> None:
    """Empty ones fail the driver."""
    parameters = ir["root"]["inputDefinitions"]["parameters"]
    named = [name for name in parameters if name.endswith(("cpu", "memory", "image"))]
    assert len(named) == 4
    assert all(parameters[name]["defaultValue"] for name in named)


def test_every_reference_in_every_dag_resolves(ir: dict[str, Any]) -> None:
    """The compiler itself leaves out what a loop's body uses for its resources only."""
    for dag, component in dags(ir):
        known = component.get("inputDefinitions", {}).get("parameters", {})
        for name, task in component["dag"]["tasks"].items():
            inputs = task.get("inputs", {}).get("parameters", {})
            for key, source in inputs.items():
                if "componentInputParameter" in source:
                    assert source["componentInputParameter"] in known, f"{dag}.{name}.{key}"
                if "taskOutputParameter" in source:
                    producer = component["dag"]["tasks"][source["taskOutputParameter"]["producerTask"]]
                    outputs = ir["components"][producer["componentRef"]["name"]]["outputDefinitions"]["parameters"]
                    assert source["taskOutputParameter"]["outputParameterKey"] in outputs, f"{dag}.{name}.{key}"
            used = json.dumps([inputs, _container(ir, task)])
            for channel in (word for word in used.split("'") if word.startswith("pipelinechannel--")):
                assert channel in inputs, f"{dag}.{name} uses {channel}"


def _container(ir: dict[str, Any], task: dict[str, Any]) -> Any:
    label = ir["components"][task["componentRef"]["name"]].get("executorLabel")
    return ir["deploymentSpec"]["executors"][label]["container"].get("resources") if label else None


def test_the_loop_takes_nothing_from_an_upstream_task(ir: dict[str, Any]) -> None:
    loops = [c for _, c in dags(ir) if any("parameterIterator" in t for t in c["dag"]["tasks"].values())]
    assert [sorted(loop["dag"]["tasks"]) for loop in loops] == [["for-loop-1"]]
    sources = [source for task in loops[0]["dag"]["tasks"].values() for source in task["inputs"]["parameters"].values()]
    assert sources
    assert all(set(source) == {"componentInputParameter"} for source in sources)
    assert "artifacts" not in loops[0]["inputDefinitions"]


def test_pods_pass_a_restricted_namespace_and_end_some_day(
    documents: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    ir, platform = documents
    assert set(platform) == set(ir["deploymentSpec"]["executors"]) == {f"exec-{step}" for step in STEPS}
    user = str(POD_SECURITY["runAsUser"])  # of the image
    for name, executor in platform.items():
        assert executor["securityContext"] == {"runAsUser": user, "runAsGroup": user, "runAsNonRoot": True}, name
        assert int(executor["activeDeadlineSeconds"]) >= 3600, name
        assert executor["fieldPathAsEnv"] == [{"name": "KFP_RUN_ID", "fieldPath": "metadata.labels['pipeline/runid']"}]
        assert all(source["optional"] for source in executor["secretAsEnv"] + executor["configMapAsEnv"]), name
        assert executor["nodeSelector"] == {"labels": {"kubernetes.io/os": "linux"}}, name
        assert executor["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
        (mount,) = executor["emptyDirMounts"]
        assert (mount["mountPath"], mount["medium"]) == ("/dev/shm", "Memory")  # noqa: S108


def test_only_evaluations_may_hold_a_gpu(ir: dict[str, Any]) -> None:
    """The step that trains waits for pods of its own."""
    executors = ir["deploymentSpec"]["executors"]
    holders = {name for name, e in executors.items() if "accelerator" in e["container"]["resources"]}
    assert holders == {"exec-evaluate"}
    assert executors["exec-distill"]["container"]["resources"]["resourceMemoryLimit"] == "1Gi"


def test_no_step_hides_the_failure_of_another(ir: dict[str, Any]) -> None:
    for name, task in tasks(ir).items():
        assert task.get("triggerPolicy", {}).get("strategy") in {None, "ALL_UPSTREAM_TASKS_SUCCEEDED"}, name
        assert "retryPolicy" not in task, name  # the stock controller ignores it: retries are inside the steps


def test_caching_is_decided_step_by_step_and_depends_on_the_code_version(ir: dict[str, Any]) -> None:
    found = tasks(ir)
    for step in STEPS:
        assert found[step]["inputs"]["parameters"]["code_version"]["runtimeValue"]["constant"] == __version__, step
        assert found[step]["cachingOptions"].get("enableCache", False) is (step in CACHED), step


def test_report_emits_what_the_user_interface_shows(ir: dict[str, Any]) -> None:
    artifacts = ir["components"]["comp-report"]["outputDefinitions"]["artifacts"]
    assert {a["artifactType"]["schemaTitle"] for a in artifacts.values()} == {
        "system.HTML",
        "system.Markdown",
        "system.Metrics",
    }
    kinds = [
        a["artifactType"]["schemaTitle"]
        for c in ir["components"].values()
        for a in c.get("outputDefinitions", {}).get("artifacts", {}).values()
    ]
    assert kinds.count("system.Metrics") == 1  # the compare page has a column per Metrics artifact
    assert {"system.Dataset", "system.Model", "system.ClassificationMetrics"} <= set(kinds)


@pytest.mark.parametrize("step", STEPS)
def test_component_hands_its_inputs_over_by_name(ir: dict[str, Any], step: str) -> None:
    """The shipped source is text that no type checker sees inside the container."""
    executor = ir["deploymentSpec"]["executors"][f"exec-{step}"]
    source = executor["container"]["command"][-1]
    assert "pip install" not in json.dumps(executor)
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    (call,) = [c for c in calls if isinstance(c.func, ast.Attribute) and ast.unparse(c.func) == f"components.{step}"]
    given = [ast.unparse(argument).removesuffix(".path") for argument in call.args]
    assert given == list(inspect.signature(getattr(components, step)).parameters)


def test_the_first_step_is_given_the_whole_form(ir: dict[str, Any]) -> None:
    source = ir["deploymentSpec"]["executors"]["exec-prepare"]["container"]["command"][-1]
    (handed,) = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Dict)]
    pairs = zip(handed.keys, handed.values, strict=True)
    assert [(ast.literal_eval(key), ast.unparse(value)) for key, value in pairs if key] == [
        (name, name) for name in sorted(PipelineRequest.model_fields)
    ]


def test_image_default_can_be_chosen(tmp_path: Path) -> None:
    compile_pipeline(tmp_path / "deep" / "unic.yaml", image="registry.example.com/unic:7")
    ir = next(yaml.safe_load_all((tmp_path / "deep" / "unic.yaml").read_text()))
    assert ir["root"]["inputDefinitions"]["parameters"]["image"]["defaultValue"] == "registry.example.com/unic:7"


def test_output_must_be_yaml_and_writable(tmp_path: Path) -> None:
    with pytest.raises(UnicError, match=r"must end in \.yaml"):
        compile_pipeline(tmp_path / "unic.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(UnicError, match="choose another place"):
        compile_pipeline(tmp_path / "file" / "unic.yaml")
