"""What is learned does not depend on where a run was interrupted, on how many processes it had, or on what broke."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch.multiprocessing.spawn import start_processes

from unic_core.checkpoint import list_checkpoints
from unic_core.config import RunConfig, load_config
from unic_core.data.prepare import prepare_dataset
from unic_core.errors import UnicError
from unic_core.interrupt import Wish
from unic_core.session import Surroundings, run_session
from unic_core.storage import LocalStore

CPU = torch.device("cpu")
STEPS = 30
SETTINGS = [f"training.steps={STEPS}", "training.checkpoint_every=4", "training.log_every=1", "training.keep_last=3"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("root")
    return {"digits": prepare_dataset(load_config("smoke").datasets[0], str(root))}


@pytest.fixture(scope="module")
def straight(digits: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The final state of the run that nothing disturbed."""
    place = tmp_path_factory.mktemp("straight")
    train(load_config("smoke", SETTINGS), digits, place)
    return final_state(place)


def train(config: RunConfig, datasets: dict[str, str], place: Path, stop_after: int | None = None) -> int:
    """Run the session in this process; returns the step that was reached."""
    done = 0

    def wish() -> Wish:
        nonlocal done
        done += 1
        return Wish.STOP if done == stop_after else Wish.NONE

    torch.set_num_threads(1)
    return run_session(config, datasets, str(place), CPU, Surroundings(lambda *_: None, str, wish=wish)).step


def final_state(place: Path) -> dict[str, torch.Tensor]:
    newest = place / list_checkpoints(LocalStore(str(place)))[-1].key
    assert newest.name == f"step-{STEPS:08d}"
    files = sorted(newest.glob("*.safetensors"))
    return {f"{file.stem}/{key}": value for file in files for key, value in load_file(file).items()}


def assert_equal(place: Path, straight: dict[str, torch.Tensor]) -> None:
    """Weights, moments and statistics are the same bits."""
    state = final_state(place)
    assert state.keys() == straight.keys()
    assert not [key for key, value in straight.items() if not torch.equal(state[key], value)]


CHILD = """
import sys, torch
from unic_core.config import load_config
from unic_core.session import Surroundings, run_session
torch.set_num_threads(1)
around = Surroundings(lambda step, _: print(step, flush=True), str)
run_session(load_config("smoke", sys.argv[3:]), {"digits": sys.argv[1]}, sys.argv[2], torch.device("cpu"), around)
"""


def test_kill_9_after_13_steps_changes_no_bit(
    digits: dict[str, str], straight: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", CHILD, digits["digits"], str(tmp_path), *SETTINGS]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert any(int(line) == 13 for line in child.stdout)
    child.send_signal(signal.SIGKILL)
    child.wait(30)
    train(load_config("smoke", SETTINGS), digits, tmp_path)
    assert_equal(tmp_path, straight)


@pytest.mark.parametrize("fault", ["truncated", "no manifest", "flipped byte"])
def test_a_damaged_newest_checkpoint_costs_one_interval(
    digits: dict[str, str], straight: dict[str, torch.Tensor], tmp_path: Path, fault: str
) -> None:
    config = load_config("smoke", SETTINGS)
    assert train(config, digits, tmp_path, stop_after=14) == 14
    newest = tmp_path / "checkpoints" / "step-00000014"
    file = newest / "optimizer.safetensors"
    if fault == "truncated":
        os.truncate(file, file.stat().st_size // 2)
    elif fault == "no manifest":
        (newest / "MANIFEST.json").unlink()
    else:
        data = bytearray(file.read_bytes())
        data[-5] ^= 1
        file.write_bytes(data)
    lines: list[str] = []
    run_session(config, digits, str(tmp_path), CPU, Surroundings(lambda *_: None, lines.append))
    assert any("continuing at step 12 of" in line for line in lines)
    assert_equal(tmp_path, straight)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_full_disk_is_one_sentence_and_loses_nothing(
    digits: dict[str, str], straight: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, place = tmp_path / "small", tmp_path / "run"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=True)
    try:
        with monkeypatch.context() as patch:
            patch.setattr("tempfile.tempdir", str(small))
            with pytest.raises(
                UnicError, match=r"cannot write the checkpoint of step 4 to .*; free some space or set TMPDIR"
            ):
                train(load_config("smoke", SETTINGS), digits, place)
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert list_checkpoints(LocalStore(str(place))) == []
    train(load_config("smoke", SETTINGS), digits, place)
    assert_equal(place, straight)


def _member(rank: int, world: int, rendezvous: str, datasets: dict[str, str], place: str, steps: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    train(load_config("smoke", SETTINGS), datasets, Path(place), stop_after=steps if rank == 0 else None)
    dist.destroy_process_group()


@pytest.mark.slow
def test_four_then_two_then_four_processes_learn_what_one_does(
    digits: dict[str, str], straight: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """Sums over processes are made in another order; beyond that rounding nothing differs."""
    # a clean server imports torch once and forks the processes
    mp.get_context("forkserver").set_forkserver_preload(["pytest", "unic_core.session"])
    for attempt, (world, steps) in enumerate([(4, 9), (2, 10), (4, STEPS)]):
        arguments = (world, str(tmp_path / f"rendezvous-{attempt}"), digits, str(tmp_path / "run"), steps)
        start_processes(_member, arguments, nprocs=world, start_method="forkserver")  # type: ignore[no-untyped-call]
    state = final_state(tmp_path / "run")
    for key, value in straight.items():
        if key.startswith(("student/", "projectors/", "standardizer/")):
            torch.testing.assert_close(state[key], value, atol=2e-3, rtol=1e-3, msg=key)
