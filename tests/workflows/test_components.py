"""What the components do beside calling the steps: refusals, failures as data, numbers for the compare page."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from unic_core.errors import OutageError
from workflows import components, patience

VERSION = components.__version__


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """A component's process is its own: handlers of signals and logs are put back here."""
    handler, handlers = signal.getsignal(signal.SIGTERM), logging.root.handlers[:]
    yield
    signal.signal(signal.SIGTERM, handler)
    logging.root.handlers[:] = handlers


def test_a_step_starts_light() -> None:
    """The image has kfp without what its client and compiler need, and a small pod must not load torch to wait."""
    script = "import sys, workflows.components; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"kfp", "kfp_server_api", "torch", "ray", "mlflow", "kubernetes"} & set(done.stdout.split())


def test_a_mistake_in_the_form_ends_the_first_step_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        components.prepare({"recipe_overrides": [1.0]}, VERSION)
    assert raised.value.code == 2
    assert capsys.readouterr().out.startswith("[prepare] error: recipe_overrides[0] is 1.0; give text, in quotes")


def test_a_cluster_does_not_train_inside_a_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KFP_POD_NAME", "unic-abc")
    with pytest.raises(SystemExit):
        components.prepare({"recipe": "smoke", "distill_launcher": "local"}, VERSION)
    assert "choose pytorchjob or rayjob" in capsys.readouterr().out


def test_another_code_in_the_image_is_mentioned(capsys: pytest.CaptureFixture[str]) -> None:
    with components.step("report", "0.0.0"):
        pass
    assert f"[report] warning: the pipeline was compiled by unic 0.0.0, the image has {VERSION}" in (
        capsys.readouterr().out
    )


def test_a_step_in_a_cluster_waits_for_a_server_that_is_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(patience, "PAUSE_S", 0.0)
    attempts: list[int] = []

    def body() -> str:
        attempts.append(1)
        if len(attempts) % 3:
            raise OutageError("S3 at http://s3 cannot be reached; start it")
        return "done"

    monkeypatch.setenv("KFP_POD_NAME", "unic-abc")
    assert components.in_step("report", VERSION, body) == "done"
    assert capsys.readouterr().out.count("[report] S3 at http://s3 cannot be reached; trying again") == 2
    monkeypatch.delenv("KFP_POD_NAME")  # a person at a laptop mends it at once
    with pytest.raises(SystemExit):
        components.in_step("report", VERSION, body)
    assert len(attempts) == 4


def test_every_model_has_its_number_for_the_compare_page() -> None:
    rows = [
        {"model": model, "dataset": "digits", "protocol": protocol, "top1": top1, "error": error}
        for model, protocol, top1, error in (
            *(("student", "logreg", 0.9, None), ("lite0", "logreg", 0.8, None), ("lite0", "knn", 0.7, None)),
            *(
                ("random student", "sgd", 0.2, None),
                ("lite2", "logreg", None, "gone"),
                ("lite0", "zeroshot", 0.6, None),
            ),
        )
    ]
    assert components.top1_by_model(rows) == {"digits/top1/lite0": 0.8, "digits/top1/random-student": 0.2}
