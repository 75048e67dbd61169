"""A job as a process of this machine that outlives the command that started it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from unic_core.config import RunConfig, dump_config
from unic_core.errors import UnicError
from workflows.launch.config import LaunchConfig, Status, job_name
from workflows.processes import end_descendants
from workflows.stack import processes

PAUSE_S = 0.5
EXIT = "exit"  # written by the job's process when it ends by itself


class LocalJobs:
    """Jobs below one directory: each has a folder with its config, log and record."""

    def __init__(self, launch: LaunchConfig, directory: Path) -> None:
        self.launch, self.directory = launch, directory.absolute()

    def submit(self, run: RunConfig, root: str) -> bool:
        """Start the run in the background, unless it is running or done; True when it was started."""
        name = job_name(run)
        place, text = self.directory / name, dump_config(run)
        file = place / "run.yaml"
        phase = self.status(name).phase
        if phase in {"running", "succeeded"}:
            if file.read_text() != text:
                raise UnicError(
                    f"there is a job {name} with another config; choose another name, or end it first with "
                    f"`unic cancel {name} --backend local`"
                )
            return False
        place.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        (place / EXIT).unlink(missing_ok=True)
        command = [sys.executable, "-m", "workflows.launch.local", str(place / EXIT)]
        command += [sys.executable, "-m", "workflows", self.launch.stage, str(file), "--root", root]
        process = processes.spawn(command, os.environ, place, Path.cwd(), place / "log")
        processes.private_write(place / "job.json", json.dumps([process.pid, processes.started(process)]))
        return True

    def status(self, name: str) -> Status:
        """Where the job stands; the reason of a failure is the last line of its log."""
        place = self.directory / name
        if not (place / "job.json").exists():
            return Status("absent")
        if self._process(name) is not None:
            return Status("running")
        if (place / EXIT).exists() and (place / EXIT).read_text() == "0":
            return Status("succeeded")
        lines = (place / "log").read_text(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "it ended without a word")
        return Status("failed", (last.removeprefix("error: "),))

    def wait(self, name: str, say: Callable[[str], None], note: Callable[[str], None]) -> Status:
        """Return when the job has ended; `say` gets the lines of its log meanwhile."""
        del note  # nothing keeps a process waiting
        path, rest = self.directory / name / "log", ""
        if not path.exists():
            return self.status(name)
        with path.open(errors="replace") as log:
            while True:
                status = self.status(name)
                *whole, rest = (rest + log.read()).split("\n")
                for line in whole:
                    say(line)
                if status.finished:
                    return status
                time.sleep(PAUSE_S)

    def cancel(self, name: str) -> bool:
        """End the job's processes; what it has stored stays. False when there is none."""
        place, process = self.directory / name, self._process(name)
        if process is not None:
            end_descendants(of=process.pid, grace_s=60)
        existed = (place / "job.json").exists()
        (place / "job.json").unlink(missing_ok=True)
        return existed

    def _process(self, name: str) -> psutil.Process | None:
        record = self.directory / name / "job.json"
        return processes.find(*json.loads(record.read_text())) if record.exists() else None


def _main(exit_file: str, command: list[str]) -> None:
    """The job's first process: runs the command and writes down how it ended, when it did so by itself."""
    import subprocess

    done = subprocess.run(command, check=False)
    Path(exit_file).write_text(str(done.returncode))


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2:])
