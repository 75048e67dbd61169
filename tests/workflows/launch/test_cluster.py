"""An API server that is away, in trouble or silent: what is said, and who waits."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.config import kube_config

from unic_core import load_config
from unic_core.errors import OutageError, UnicError
from workflows.launch import LaunchConfig, Status, follow, jobs
from workflows.launch.jobs import PYTORCHJOB, ClusterJobs


@pytest.fixture
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    """Of a server that answers everything with one status; None: it takes connections and says nothing."""
    if request.param is None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            yield silent.getsockname()[1]
        return

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(request.param)
            self.end_headers()

        do_POST = do_GET  # noqa: N815 (the name that http.server calls)

        def log_message(self, *_: object) -> None:
            """Keep the terminal quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,)).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture
def cluster(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterJobs:
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (tmp_path / "config").write_text(yaml.safe_dump(kubeconfig))
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(jobs, "TIMEOUT", (1, 0.1))
    return ClusterJobs(PYTORCHJOB, LaunchConfig())


@pytest.mark.parametrize(("port", "said"), [(None, "does not answer"), (503, "503"), (429, "429")], indirect=["port"])
def test_an_api_server_in_trouble_is_an_outage(cluster: ClusterJobs, said: str) -> None:
    with pytest.raises(OutageError, match=f"cannot read the job smoke: .*{said}"):
        cluster.status("smoke")
    with pytest.raises(OutageError, match=f"cannot create the job smoke: .*{said}"):
        cluster.submit(load_config("smoke"), "s3://b/u")


@pytest.mark.parametrize("port", [403], indirect=True)
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
