"""`unic pipeline`: files for Kubeflow, and what is refused before Kubeflow is asked."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from click.testing import CliRunner

from tests.web import web_server
from unic_core import load_config
from unic_core.config import dump_config
from unic_core.errors import OutageError, UnicError
from workflows.commands.pipeline import _recipe, _request, pipeline
from workflows.pipeline.submit import Kubeflow, Submission, Submitted, states, wait
from workflows.request import PipelineRequest


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address where nothing listens."""
    with socket.socket() as taken:  # bound, but deaf
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def invoke(*arguments: str) -> None:
    """Run the command; what it raises goes through."""
    CliRunner().invoke(pipeline, arguments, catch_exceptions=False, standalone_mode=False)


def refusal(*arguments: str) -> str:
    result = CliRunner().invoke(pipeline, ["submit", *arguments], standalone_mode=False)
    assert isinstance(result.exception, UnicError), result
    return str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("smoke", "evaluation.probes=[]"), "evaluation.probes is empty"),
        (("smoke", "--probe", "cars"), "no probe 'cars'"),
        (("smoke", "training.steps=0"), "training.steps"),
        (("smoke", "name=my_run"), "can't name a job"),
        (("smoke", "--root", "./results"), "pods can't reach './results'"),
        (("smoke", "--image", ""), "image is empty"),
        (("smoke", "--evaluate-cpu", "four"), 'evaluate_cpu is "four"'),
        (("smoke", "--workers-per-pod", "0"), "distill_workers_per_pod is 0"),
        (("nowhere",), "no config at nowhere"),
        (("smoke",), "Kubeflow's address is not known; give --host"),
        (("smoke", "--host", "http://localhost:1", "--token-file", "/none"), "there is no file /none"),
    ],
)
def test_mistakes_are_found_before_kubeflow_is_asked(
    arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("KFP_HOST", "KFP_NAMESPACE", "UNIC_ROOT", "UNIC_IMAGE", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    assert said in refusal(*arguments)


def test_a_kubeflow_that_is_away_is_one_sentence(nobody: str) -> None:
    with pytest.raises(OutageError, match=f"Kubeflow at {nobody} does not answer; correct --host"):
        Kubeflow(host=nobody).connect()


@pytest.mark.parametrize(
    ("status", "page", "said"),
    [
        (200, "<html>log in</html>", "is not Kubeflow Pipelines but perhaps a login; give --token-file"),
        (403, "no", r"refuses access \(403\); give --token-file"),
        (404, "no", "refuses the request: 404"),
        (429, "slowly", "answers 429; try again"),
        (503, "later", "answers 503; try again"),
    ],
)
def test_whatever_else_answers_is_one_sentence(
    status: int, page: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with web_server(status, page) as host, pytest.raises(UnicError, match=said):
        Kubeflow(host=host).connect()
    assert not caplog.records


def test_a_login_that_comes_later_ends_the_waiting() -> None:
    with web_server(200, "<html>log in</html>", health="{}") as host:
        client = Kubeflow(host=host).connect()
        with pytest.raises(UnicError, match="perhaps a login"):
            wait(client, Submitted("1", "smoke", f"{host}/#/runs/details/1"), print)


def test_a_host_without_a_certificate_is_one_sentence() -> None:
    with web_server(200, "{}") as host, pytest.raises(UnicError, match=r"no secure connection .* give --ca-file"):
        Kubeflow(host=host.replace("http", "https")).connect()


@pytest.mark.parametrize("content", [b"\n", b"\xff\xfe"])
def test_a_file_without_a_token_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(UnicError, match="there is no token in the file"):
        Kubeflow(host="http://localhost:1", token_file=tmp_path / "token").connect()


@pytest.mark.parametrize("arguments", [("compile", "--output", "x.yaml"), ("submit", "smoke")])
def test_where_kfp_is_not_whole_a_sentence_says_so(arguments: tuple[str, ...]) -> None:
    """As in the image."""
    script = (
        "import sys; sys.modules['kfp.compiler'] = sys.modules['kfp_server_api'] = None\n"
        "from workflows.cli import main; sys.argv[1:1] = ['pipeline']; main()"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: kfp")
    assert "is not installed here" in line


def test_a_file_travels_as_text_and_a_long_one_belongs_on_s3(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(dump_config(load_config("smoke", ["name=mine"])))
    options = {"root": "s3://b/u", "launcher": "rayjob", "workers_per_pod": 2, "pod_memory": "8Gi", "image": None}
    options |= {"evaluate_cpu": "2", "evaluate_memory": "4Gi", "fail_on_missing": True}
    request = _request(str(path), ("training.steps=3",), (), options)
    assert request.recipe == path.read_text()
    assert request.config() == load_config("smoke", ["name=mine", "training.steps=3"])
    assert (request.distill_launcher, request.distill_workers_per_pod) == ("rayjob", 2)
    assert request.fail_on_missing
    path.write_text(path.read_text() + "# long\n" * 3000)
    with pytest.raises(UnicError, match="store the YAML on S3 and give its URI"):
        _request(str(path), (), (), options)


def test_a_file_that_is_no_text_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_bytes(b"\xff\xfe")
    assert f"cannot read {tmp_path / 'my.yaml'}" in refusal(str(tmp_path / "my.yaml"))
    assert "no config at" in refusal("a" * 5000)  # no file can have this name


def test_a_recipe_goes_before_a_file_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As everywhere else."""
    monkeypatch.chdir(tmp_path)
    Path("smoke").write_text("name: other")
    assert _recipe("smoke") == "smoke"


@pytest.mark.parametrize(
    ("recipe", "run_name", "start"),
    [
        ("smoke", "", "smoke 20"),
        ("s3://b/my.yaml", "", "my 20"),
        ("a: 1\nb: 2", "", "recipe 20"),
        ("{name: a/b}", "", "recipe 20"),
        ("smoke", "x", "x 20"),
    ],
)
def test_runs_are_named_after_what_they_run(recipe: str, run_name: str, start: str) -> None:
    assert Submission(PipelineRequest(recipe=recipe, run_name=run_name)).name().startswith(start)


def test_steps_of_a_run_are_told_apart() -> None:
    def task(name: str, state: str | None) -> SimpleNamespace:
        return SimpleNamespace(display_name=name, state=state)

    tasks = [
        *(task("root", "RUNNING"), task("root-driver", "SUCCEEDED"), task("prepare", "SUCCEEDED")),
        *(task("evaluate", "SUCCEEDED"), task("evaluate", "FAILED"), task("report", None)),
    ]
    run = SimpleNamespace(run_details=SimpleNamespace(task_details=tasks))
    assert states(run) == {"prepare": "SUCCEEDED", "evaluate": "SUCCEEDED", "evaluate 2": "FAILED"}
    tasks[3] = task("evaluate", None)  # it has not begun: the other one keeps its number
    assert states(run) == {"prepare": "SUCCEEDED", "evaluate 2": "FAILED"}
    assert states(SimpleNamespace(run_details=None)) == {}


def test_compile_writes_either_form(tmp_path: Path) -> None:
    invoke("compile", "--output", str(tmp_path / "a.yaml"), "--image", "registry.example.com/unic:7")
    ir, platform = yaml.safe_load_all((tmp_path / "a.yaml").read_text())
    assert ir["root"]["inputDefinitions"]["parameters"]["image"]["defaultValue"] == "registry.example.com/unic:7"
    assert "kubernetes" in platform["platforms"]
    invoke("compile", "--output", str(tmp_path / "b.yaml"), "--resources", "team-a")
    resources = list(yaml.safe_load_all((tmp_path / "b.yaml").read_text()))
    assert [(r["kind"], r["metadata"]["namespace"]) for r in resources] == [
        ("Pipeline", "team-a"),
        ("PipelineVersion", "team-a"),
    ]
