"""What follows from a run for its pods."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from unic_core.config import load_config
from unic_core.errors import UnicError
from workflows.launch import LaunchConfig, Owner, job_name
from workflows.launch.manifest import pytorchjob
from workflows.launch.pods import GPU, config_map, peers


@given(workers=st.integers(1, 16), per_pod=st.integers(1, 8), gpus=st.integers(0, 2), cpus=st.integers(1, 12))
def test_pods_hold_every_worker_with_what_it_reserves(workers: int, per_pod: int, gpus: int, cpus: int) -> None:
    cluster = [f"cluster.workers={workers}", f"cluster.gpus_per_worker={gpus}", f"cluster.cpus_per_worker={cpus}"]
    run = load_config("smoke", [*cluster, "training.batch=64"])
    launch = LaunchConfig(workers_per_pod=per_pod)
    pods = launch.pods(run)
    assert (pods - 1) * per_pod < workers <= pods * per_pod
    job = pytorchjob(launch, run, "s3://unic")
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]
    assert worker["replicas"] == pods
    limits = worker["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits.get(GPU, 0) == gpus * per_pod
    assert limits["cpu"] == str(cpus * per_pod)


@pytest.mark.parametrize("name", ["a.b", "0-starts-with-a-digit", "under_score", "x" * 51, "ends-with-"])
def test_a_name_that_the_cluster_refuses_is_refused_before(name: str) -> None:
    with pytest.raises(UnicError, match="can't name a job in a cluster"):
        job_name(load_config("smoke", [f'name="{name}"']))


def test_quantities_are_checked() -> None:
    with pytest.raises(ValidationError):
        LaunchConfig(memory="much")


def test_the_owner_is_on_the_job() -> None:
    run = load_config("smoke")
    owned = LaunchConfig(owner=Owner(name="step-1", uid="u-1"))
    reference = pytorchjob(owned, run, "s3://unic")["metadata"]["ownerReferences"][0]
    assert (reference["kind"], reference["name"], reference["uid"]) == ("Pod", "step-1", "u-1")
    assert "ownerReferences" not in pytorchjob(LaunchConfig(), run, "s3://unic")["metadata"]


def test_a_queue_suspends_the_job_until_it_is_admitted() -> None:
    job = pytorchjob(LaunchConfig(queue="team"), load_config("smoke"), "s3://unic")
    assert job["spec"]["runPolicy"]["suspend"] is True
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"


def test_the_config_map_is_what_the_command_line_reads(tmp_path: object) -> None:
    run = load_config("smoke", ["training.steps=7"])
    text = config_map(LaunchConfig(), run)["data"]["run.yaml"]
    file = tmp_path / "run.yaml"  # type: ignore[operator]
    file.write_text(text)
    assert load_config(str(file)) == run


def test_only_pods_of_the_same_job_may_talk_to_each_other() -> None:
    policies = [peers(LaunchConfig(), load_config("smoke", [f"name={name}"]))["spec"] for name in ("one", "two")]
    assert policies[0]["podSelector"] != policies[1]["podSelector"]
    for policy in policies:
        assert policy["ingress"] == [{"from": [{"podSelector": policy["podSelector"]}]}]
        assert policy["egress"] == [{"to": [{"podSelector": policy["podSelector"]}]}]
