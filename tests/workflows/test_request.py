"""The pipeline's parameters: what Kubeflow may hand over, and what is refused before anything starts."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unic_core import load_config
from unic_core.config import dump_config
from unic_core.errors import UnicError
from workflows.request import MAX_TEXT, PipelineRequest, choose_datasets, is_yaml, read_request


def test_the_defaults_work() -> None:
    request = read_request({})
    assert request.config() == load_config("smoke")
    assert choose_datasets(request.config(), request.evaluate_datasets) == ["digits"]
    assert json.loads(json.dumps(request.parameters())) == request.parameters()


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"recipe_overrides": [1.0]}, 'recipe_overrides[0] is 1.0; give text, in quotes, such as "training.steps=100"'),
        ({"recipe_overrides": "training.steps=4"}, 'recipe_overrides is "training.steps=4"; give a list of texts'),
        ({"evaluate_datasets": [["digits"]]}, 'evaluate_datasets[0] is ["digits"]; give text'),
        ({"distill_workers_per_pod": 1.5}, "distill_workers_per_pod is 1.5; give a whole number from 1"),
        ({"distill_workers_per_pod": 0}, "distill_workers_per_pod is 0; give a whole number from 1"),
        ({"distill_launcher": "slurm"}, 'distill_launcher is "slurm"; choose from pytorchjob, rayjob, local'),
        (
            {"distill_pod_memory": ""},
            "distill_pod_memory is empty; give a quantity as Kubernetes writes it, as in 16Gi",
        ),
        ({"evaluate_cpu": 4}, "evaluate_cpu is 4; give text, in quotes"),
        ({"evaluate_memory": "16 GB"}, 'evaluate_memory is "16 GB"; give a quantity'),
        ({"evaluate_memory": "16ki"}, 'evaluate_memory is "16ki"; give a quantity'),
        ({"fail_on_missing": "maybe"}, 'fail_on_missing is "maybe"; give true or false'),
        ({"image": ""}, "image is empty; give a value such as unic:"),
        ({"image": "unic 1"}, 'image is "unic 1"; give a value such as unic:'),
        ({"recipe": ""}, "recipe is empty; give a value such as smoke"),
        ({"recipe": 7}, "recipe is 7; give text, in quotes"),
        ({"storage_root": ""}, "storage_root is empty; give a value such as s3://unic"),
        ({"storage_root": "/data"}, "pods can't reach '/data'; set storage_root to a place on S3"),
        ({"storage_root": "file:///data"}, "pods can't reach 'file:///data'; set storage_root to a place on S3"),
        ({"learning_rate": 1}, "the pipeline has no parameter learning_rate; it has distill_launcher, "),
    ],
)
def test_mistakes_are_one_sentence(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(UnicError) as raised:
        read_request(parameters)
    assert str(raised.value).startswith(said)


@pytest.mark.parametrize("quantity", ["4", "0.5", "250m", "512k", "16777216Ki", "16Gi", "2E"])
def test_quantities_are_those_of_kubernetes(quantity: str) -> None:
    assert read_request({"evaluate_memory": quantity}).evaluate_memory == quantity


@pytest.mark.parametrize("value", [2, 2.0, "2"])
def test_whole_numbers_arrive_in_any_form(value: Any) -> None:
    assert read_request({"distill_workers_per_pod": value}).distill_workers_per_pod == 2


@pytest.mark.parametrize(
    ("overrides", "weight_decay"), [(["optimizer.weight_decay=1"], 1.0), (["optimizer.weight_decay=1.0"], 1.0)]
)
def test_a_float_may_be_written_as_a_whole_number(overrides: list[str], weight_decay: float) -> None:
    assert read_request({"recipe_overrides": overrides}).config().optimizer.weight_decay == weight_decay


def test_a_short_yaml_text_is_a_recipe() -> None:
    text = dump_config(load_config("smoke"))
    config = read_request({"recipe": text, "run_name": "other", "recipe_overrides": ["training.steps=5"]}).config()
    assert config == load_config("smoke", ["name=other", "training.steps=5"])


def test_yaml_that_is_wrong_is_named_as_such() -> None:
    with pytest.raises(UnicError, match=r"^the YAML text in recipe: unknown key colour"):
        read_request({"recipe": "name: x\ncolour: red\nteachers: [{name: a, model: efficientnet_lite0}]"}).config()


def test_a_long_yaml_text_belongs_on_s3() -> None:
    text = "name: x\n" + "# more\n" * 2000
    assert len(text) > MAX_TEXT
    with pytest.raises(UnicError, match=r"recipe: 14,008 characters are too many .* give its URI, as in s3://"):
        read_request({"recipe": text})
    with pytest.raises(UnicError, match=r"recipe_overrides: .* are too many"):
        read_request({"recipe_overrides": ["a=" + "x" * 100] * 100})


@pytest.mark.parametrize(
    ("recipe", "wanted"),
    [
        ("smoke", False),
        ("s3://bucket/my recipes/python3.yaml", False),
        ("./my.yaml\n", False),
        ("name: x", True),
        ("{name: x}", True),
        ("a: 1\nb: 2", True),
    ],
)
def test_text_is_told_from_places(recipe: str, wanted: bool) -> None:
    assert is_yaml(recipe) is wanted


def test_names_that_no_job_can_have_are_refused_where_there_will_be_one() -> None:
    with pytest.raises(UnicError, match="can't name a job in a cluster"):
        read_request({"run_name": "my_run"}).config()
    local = {"distill_launcher": "local", "storage_root": "/data"}
    assert read_request({"run_name": "my_run", **local}).config().name == "my_run"


@given(st.text(min_size=1, max_size=60))
def test_any_run_name_is_taken_as_it_is_or_refused_in_a_sentence(name: str) -> None:
    """Quotes, unicode, YAML's own signs: nothing becomes another key or another type."""
    request = PipelineRequest(run_name=name, distill_launcher="local")
    if re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", name):
        assert request.config().name == name
    else:
        with pytest.raises(UnicError, match="name: "):
            request.config()


def test_an_empty_loop_is_refused() -> None:
    config = read_request({"recipe_overrides": ["evaluation.probes=[]"]}).config()
    with pytest.raises(UnicError, match=r"evaluation\.probes is empty; name at least one data set"):
        choose_datasets(config, ())
    with pytest.raises(UnicError, match="no probe 'cars' in the config smoke; choose from digits"):
        choose_datasets(load_config("smoke"), ["cars"])
    assert choose_datasets(load_config("smoke"), ["digits", "digits"]) == ["digits"]
