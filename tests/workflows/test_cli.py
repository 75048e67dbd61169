"""The command line as a process: speed, sentences, exit codes, Ctrl-C."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

UNIC = Path(sys.executable).parent / "unic"
HEAVY = {"torch", "timm", "kfp", "mlflow", "ray", "boto3", "numpy", "pydantic", "rich", "kubernetes"}


def unic(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    env.pop("UNIC_ROOT", None)
    return subprocess.run(
        [str(UNIC), *arguments], capture_output=True, text=True, timeout=120, cwd=cwd, env=env, check=False
    )


def test_help_imports_nothing_heavy() -> None:
    script = "import sys, workflows.cli; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )
    assert loaded & HEAVY == set()


def test_help_answers_in_under_half_a_second() -> None:
    """Measured as CPU time, the best of three: what else the machine does is not counted."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert unic("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5


def test_every_command_has_help() -> None:
    from workflows.cli import unic as group

    names = {"demo", "prepare", "distill", "evaluate", "report", "run", "pipeline", "teachers", "import", "export"}
    assert set(group.commands) == names | {
        *("stack", "doctor", "config", "launch", "logs", "cancel", "checkpoints", "compare", "datasets")
    }
    for command in group.commands.values():
        assert command.help, command.name
        assert not command.get_short_help_str(60).endswith("..."), command.name


def test_version() -> None:
    from unic_core import __version__

    assert unic("--version").stdout.strip() == f"unic, version {__version__}"


def test_shown_config_is_complete_and_can_be_used_again(tmp_path: Path) -> None:
    shown = unic("config", "show", "smoke", "training.steps=7")
    assert yaml.safe_load(shown.stdout)["training"]["steps"] == 7
    (tmp_path / "again.yaml").write_text(shown.stdout)
    assert unic("config", "show", str(tmp_path / "again.yaml")).stdout == shown.stdout


def test_schema_is_a_json_schema() -> None:
    schema = json.loads(unic("config", "schema").stdout)
    assert schema["properties"]["teachers"]["type"] == "array"


def test_teachers_are_listed_with_license_and_size() -> None:
    lines = unic("teachers").stdout.splitlines()
    (lite,) = [line.split() for line in lines if line.startswith("efficientnet_lite0 ")]
    assert "Apache-2.0" in lite
    assert "3.37" in lite


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("distill", "nowhere.yaml"), "no config at nowhere.yaml"),
        (("distill", "smoke", "student.colour=red"), "unknown key student.colour"),
        (("prepare", "smoke", "training.steps"), "write it as key.path=value"),
        (("prepare", "smoke", "training.steps=many"), "training.steps"),
        (("prepare", "smoke", "--root", "ftp://somewhere/x"), "ftp://"),
        pytest.param(("evaluate", "smoke", "--probe", "cars"), "no probe 'cars'", marks=pytest.mark.slow),
        pytest.param(("pipeline", "run", "smoke", "--probe", "cars"), "no probe 'cars'", marks=pytest.mark.slow),
        pytest.param(
            ("pipeline", "run", "smoke", "evaluation.probes=[]"), "evaluation.probes is empty", marks=pytest.mark.slow
        ),
        (("pipeline", "compile", "--output", "unic.json"), "must end in .yaml"),
        (("pipeline", "compile", "--output", "unic.yaml", "--image", ""), "image is empty"),
        (("pipeline", "compile", "--output", "unic.yaml", "--image", "a b"), 'image is "a b"'),
        (("launch", "smoke", "--memory", "16ki"), "--memory '16ki' can't be used; give a quantity as Kubernetes"),
        pytest.param(
            ("export", "nowhere", "--format", "timm", "--output", "out"),
            "there is no student at nowhere",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_mistakes_are_one_sentence(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = unic(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert list(tmp_path.iterdir()) == []  # nothing half-written


@pytest.mark.parametrize("arguments", [("nonsense",), ("distill",), ("export", "x", "--format", "tf", "--output", "y")])
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...]) -> None:
    done = unic(*arguments)
    assert done.returncode == 2
    assert "Usage" in done.stderr
    assert "Traceback" not in done.stderr


def test_compile_writes_both_documents(tmp_path: Path) -> None:
    assert unic("pipeline", "compile", "--output", "unic.yaml", cwd=tmp_path).returncode == 0
    assert len(list(yaml.safe_load_all((tmp_path / "unic.yaml").read_text()))) == 2


@pytest.mark.slow
def test_doctor_exits_with_2_when_something_required_is_broken(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = unic("doctor", "smoke", "--root", str(tmp_path / "file"))
    assert done.returncode == 2
    assert "broken" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_leaves_no_process(number: signal.Signals) -> None:
    script = """
import subprocess, sys, time
from workflows import cli
@cli.unic.command()
def wait():
    print(subprocess.Popen(["sleep", "300"], start_new_session=True).pid, flush=True)
    time.sleep(300)
sys.argv = ["unic", "wait"]
cli.main()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child = psutil.Process(int(process.stdout.readline()))
    begin = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert time.monotonic() - begin < 10
    assert process.returncode == 130
    assert errors.strip() == "stopped; run the same command again to continue"
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
