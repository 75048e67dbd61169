"""An API server that is away, in trouble or silent: what is said, and who waits."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.config import kube_config

from tests.web import web_server
from unic_core import load_config
from unic_core.errors import OutageError, UnicError
from workflows.launch import LaunchConfig, Status, follow, jobs
from workflows.launch.jobs import PYTORCHJOB, ClusterJobs


@pytest.fixture
def api(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of one that answers everything with one status; None: it takes connections and says nothing."""
    if request.param is not None:
        with web_server(request.param) as address:
            yield address
        return
    monkeypatch.setattr(jobs, "TIMEOUT", (1, 0.1))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield f"http://127.0.0.1:{silent.getsockname()[1]}"


@pytest.fixture
def cluster(api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterJobs:
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": api}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (tmp_path / "config").write_text(yaml.safe_dump(kubeconfig))
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return ClusterJobs(PYTORCHJOB, LaunchConfig())


@pytest.mark.parametrize(("api", "said"), [(None, "does not answer"), (503, "503"), (429, "429")], indirect=["api"])
def test_an_api_server_in_trouble_is_an_outage(cluster: ClusterJobs, said: str) -> None:
    with pytest.raises(OutageError, match=f"cannot read the job smoke: .*{said}"):
        cluster.status("smoke")
    with pytest.raises(OutageError, match=f"cannot create the job smoke: .*{said}"):
        cluster.submit(load_config("smoke"), "s3://b/u")


@pytest.mark.parametrize("api", [403], indirect=True)
def test_a_refusal_is_none(cluster: ClusterJobs) -> None:
    with pytest.raises(UnicError, match="ask for the role unic-launcher") as raised:
        cluster.status("smoke")
    assert not isinstance(raised.value, OutageError)


def test_who_follows_a_job_waits_for_the_api_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "PAUSE_S", 0.0)
    answers: list[Status | OutageError] = [Status("running"), OutageError("503"), OutageError("503")]

    class Jobs:
        """What `wait` needs of them."""

        def status(self, name: str) -> Status:
            answer = answers.pop(0) if answers else Status("succeeded")
            if isinstance(answer, OutageError):
                raise answer
            return answer

        def driver(self, name: str) -> None:
            """No pod has started."""

    notes: list[str] = []
    found: Any = Jobs()
    assert follow.wait(found, "smoke", print, notes.append).phase == "succeeded"
    assert notes == ["smoke: 503"]  # said once
