"""The doctor's checks against real places and servers: a directory, a closed port, a small HTTP server."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from workflows.doctor import Check, examine


@pytest.fixture
def checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(config: str = "smoke", overrides: tuple[str, ...] = (), root: str = str(tmp_path)) -> dict[str, Check]:
        return {check.name: check for check in examine(config, overrides, root)}

    return run


@pytest.fixture
def server() -> Iterator[str]:
    """Answers /health as MLflow does."""

    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Health) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_a_sound_machine_has_nothing_broken(checks, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    root = tmp_path / "not" / "yet"
    found = checks(root=str(root))
    assert [check for check in found.values() if check.state == "broken"] == []
    assert {"python", "packages", "torch", "memory", "disk", "storage", "MLflow", "weed", "config"} <= set(found)
    assert not root.parent.exists()  # looking creates nothing
    assert list(tmp_path.iterdir()) == []


def test_whatever_is_not_ok_says_what_to_do(checks) -> None:  # type: ignore[no-untyped-def]
    found = checks("nowhere.yaml", root="ftp://somewhere")
    assert {"storage", "config"} <= {name for name, check in found.items() if check.state == "broken"}
    for check in found.values():
        assert check.state == "ok" or check.advice, check


def test_unknown_teacher_and_key(checks) -> None:  # type: ignore[no-untyped-def]
    assert "unheard" in checks(overrides=("teachers.0.model=unheard",))["config"].found
    assert "student.colour" in checks(overrides=("student.colour=red",))["config"].found


def test_mlflow_down_and_up(checks, server: str, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    assert checks()["MLflow"].state == "warning"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    assert checks()["MLflow"].state == "ok"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://someone:secret@127.0.0.1:{free_port()}")
    down = checks()["MLflow"]
    assert down.state == "broken"
    assert "secret" not in down.found + down.advice


def test_object_store_down(checks, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    storage = checks(root="s3://unic")["storage"]
    assert storage.state == "broken"
    assert "hush" not in storage.found + storage.advice


def test_a_place_that_refuses_writing(checks, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").write_text("")
    assert checks(root=str(tmp_path / "file"))["storage"].state == "broken"
