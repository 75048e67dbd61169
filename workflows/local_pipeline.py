"""Runs the Kubeflow pipeline on this machine, with kfp's own local runner.

kfp swaps `print` and the root logger's handlers from several threads and leaves a running task behind when it is
killed. So it runs in a process of its own with its own process group: this side reads its output, shows the lines
of the steps (each begins with the step's name) and ends the whole group when anything goes wrong.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from unic_core.errors import UnicError
from workflows.request import PipelineRequest

logger = logging.getLogger(__name__)

STEP_LINE = re.compile(r"^\s*(\[(?P<step>prepare|distill|evaluate [^\]]+|report|promote)\] (?P<text>.*))$")
GRACE_S = 8.0
STEP_BYTES = 2 * 2**30  # what one evaluation takes, torch and a model of the usual size


def run_pipeline(request: PipelineRequest) -> None:
    """Run the whole chain as Kubeflow would, each step in a process of its own; training happens in its step.

    The steps see this process's environment (storage and tracking addresses). Results lie under `storage_root`
    as with any other way to run.

    Raises:
        UnicError: a step failed; the sentence is the step's own, or names the log.
    """
    arguments = request.model_copy(update={"distill_launcher": "local"}).parameters()
    run_locally("workflows.pipeline.definition:unic_pipeline", arguments)


def run_locally(pipeline: str, arguments: dict[str, Any]) -> None:
    """Run a pipeline, named as `module:attribute`; its log is kept only when it fails.

    Raises:
        UnicError: a step failed.
    """
    scratch = Path(tempfile.mkdtemp(prefix="unic-pipeline-"))
    log = scratch / "pipeline.log"
    try:
        with _child(scratch, pipeline, arguments) as child:
            mistake = _follow(child, log)
            failed = child.wait() != 0
    except KeyboardInterrupt:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    if failed:
        reason = mistake or _last_words(log)
        raise UnicError(f"{reason} (the whole log: {log})")
    shutil.rmtree(scratch)


@contextmanager
def _child(scratch: Path, pipeline: str, arguments: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """The runner's process, ended with everything it started when the block is left."""
    from workflows.processes import end_descendants

    # kfp starts its tasks as `python3`: that must be this interpreter
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    # steps that run at a time share the cores: with all cores for each, they would wait for each other's threads
    parallel = parallel_steps()
    threads = str(max(1, processors() // parallel))
    command = [sys.executable, "-m", "workflows.local_pipeline", str(scratch), pipeline, json.dumps(arguments)]
    with subprocess.Popen(
        [*command, str(parallel)],
        env={"OMP_NUM_THREADS": threads, **os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as child:
        try:
            yield child
        finally:
            end_descendants(of=child.pid, grace_s=GRACE_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # what was started during the grace


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def parallel_steps() -> int:
    """How many evaluations this machine can do at a time: one for each processor, as far as the memory goes."""
    return max(1, min(processors(), int(psutil.virtual_memory().available) // STEP_BYTES))


def _follow(child: subprocess.Popen[str], log: Path) -> str | None:
    """Write the child's output to `log` and the steps' lines to the logger; returns a step's last error."""
    mistake = None
    assert child.stdout is not None  # noqa: S101 (opened as a pipe)
    with log.open("w") as file:
        for line in child.stdout:
            file.write(line)
            file.flush()
            match = STEP_LINE.match(line)
            if not match:
                continue
            logger.info("%s", match[1])
            if match["text"].startswith("error: "):
                mistake = f"{match['step']}: {match['text'].removeprefix('error: ')}"
    return mistake


def _last_words(log: Path) -> str:
    """The last line that says something: an exception, where there is one."""
    lines = [line.strip() for line in log.read_text().splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(\w+\.)*\w*(Error|Exception|Killed)\b.*:", line)]
    # kfp's own "inner task failed" comes last and says less than the exception of the task
    own = [line for line in errors if "Inner task failed" not in line]
    return next(iter([*own[-1:], *errors[-1:], *lines[-1:]]), "the pipeline's process ended without a word")


def _end_with_parent() -> None:
    """End this process group when the parent is gone: its end of our standard input closes with it."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def _widen(workers: int) -> None:
    """Let kfp run so many iterations of a loop at a time; by itself it runs two, whatever the machine."""
    from kfp.local.orchestrator.enhanced_dag_orchestrator import ParallelExecutor

    def initialize(self: Any, max_workers: int | None = None) -> None:
        self.conservative_max = workers
        self.max_workers = max_workers or workers

    ParallelExecutor.__init__ = initialize


def _main(scratch: str, pipeline: str, arguments: dict[str, Any], parallel: int) -> None:
    """The child: kfp's local runner, in this process."""
    _end_with_parent()
    # it warns of every setting that only a cluster knows, and of image names without "python"
    warnings.simplefilter("ignore")
    from kfp import local

    module, _, name = pipeline.partition(":")
    run = getattr(importlib.import_module(module), name)
    _widen(parallel)
    # kfp replaces "python3" in commands, parameters included, by sys.executable: made equal, nothing changes.
    sys.executable = "python3"
    local.init(
        local.SubprocessRunner(use_venv=False),
        pipeline_root=f"{scratch}/artifacts",
        workspace_root=f"{scratch}/workspace",
    )
    run(**arguments)


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]))
