from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unic_core.checkpoint import list_checkpoints
from unic_core.config import RunConfig, load_config
from unic_core.data.prepare import prepare_dataset
from unic_core.errors import UnicError
from unic_core.history import Record, read_history
from unic_core.interrupt import Wish
from unic_core.session import Surroundings, run_session
from unic_core.storage import LocalStore

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("root")
    return {"digits": prepare_dataset(load_config("smoke").datasets[0], str(root))}


def run(config: RunConfig, datasets: dict[str, str], place: Path) -> tuple[list[tuple[int, Record]], list[str]]:
    metrics: list[tuple[int, Record]] = []
    lines: list[str] = []
    around = Surroundings(lambda step, record: metrics.append((step, record)), lines.append)
    run_session(config, datasets, str(place), CPU, around)
    return metrics, lines


def final_state(place: Path) -> dict[str, torch.Tensor]:
    newest = place / list_checkpoints(LocalStore(str(place)))[-1].key
    files = sorted(newest.glob("*.safetensors"))
    return {f"{f.stem}/{key}": value for f in files for key, value in load_file(f).items()}


def test_a_run_ends_with_student_checkpoint_and_history(digits: dict[str, str], tmp_path: Path) -> None:
    config = load_config("smoke", ["training.keep_last=1"])
    metrics, lines = run(config, digits, tmp_path)
    assert [step for step, _ in metrics][-1] == 12
    assert {"loss", "lr", "images_per_s", "data_wait", "loss/lite0", "kept/lite0", "loss/lite0/cls"} <= set(
        metrics[0][1]
    )
    assert any("12 steps" in line for line in lines)
    assert any("GFLOPs" in line for line in lines)
    assert [info.step for info in list_checkpoints(LocalStore(str(tmp_path)))] == [12]
    assert (tmp_path / "student" / "model.safetensors").is_file()
    assert [r["step"] for r in read_history(LocalStore(str(tmp_path)))][-1] == 12


def test_an_interrupted_run_ends_bit_equal(digits: dict[str, str], tmp_path: Path) -> None:
    """12 steps straight equal 5 steps, an end in the middle of the 8th, and the rest: weights, moments, statistics."""
    run(load_config("smoke"), digits, tmp_path / "straight")

    class StoppedError(Exception):
        pass

    def stop(step: int, _: Record) -> None:
        if step >= 8:
            raise StoppedError

    with pytest.raises(StoppedError):
        run_session(load_config("smoke"), digits, str(tmp_path / "broken"), CPU, Surroundings(stop, str))
    _, lines = run(load_config("smoke"), digits, tmp_path / "broken")
    assert any("continuing at step 5" in line for line in lines)
    straight, resumed = final_state(tmp_path / "straight"), final_state(tmp_path / "broken")
    assert straight.keys() == resumed.keys()
    assert not [key for key in straight if not torch.equal(straight[key], resumed[key])]


def test_a_wish_to_stop_saves_the_very_step(digits: dict[str, str], tmp_path: Path) -> None:
    wishes = iter([Wish.NONE] * 6 + [Wish.STOP])
    around = Surroundings(lambda *_: None, str, wish=lambda: next(wishes))
    state = run_session(load_config("smoke"), digits, str(tmp_path), CPU, around)
    assert state.step == 7
    assert [info.step for info in list_checkpoints(LocalStore(str(tmp_path)))] == [5, 7]
    assert not (tmp_path / "student").exists()


def test_an_announced_preemption_saves_once_and_goes_on(digits: dict[str, str], tmp_path: Path) -> None:
    announced = iter([False, True, True, True])
    wishes = iter([Wish.NONE, Wish.ASK] * 4 + [Wish.NONE] * 4)
    around = Surroundings(lambda *_: None, str, wish=lambda: next(wishes), preempted=lambda: next(announced))
    config = load_config("smoke", ["training.checkpoint_every=100", "training.keep_last=10"])
    assert run_session(config, digits, str(tmp_path), CPU, around).step == 12
    assert [info.step for info in list_checkpoints(LocalStore(str(tmp_path)))] == [4, 12]


def test_knn_during_training_changes_nothing_that_is_learned(digits: dict[str, str], tmp_path: Path) -> None:
    run(load_config("smoke"), digits, tmp_path / "without")
    config = load_config("smoke", ["evaluation.knn_every=0.1"])
    metrics, _ = run(config, digits, tmp_path / "with")
    scores = {step: record["knn/top1_k10"] for step, record in metrics if "knn/top1_k10" in record}
    assert sorted(scores) == [4, 8, 12]
    assert all(0.1 < score <= 1 for score in scores.values())
    without, probed = final_state(tmp_path / "without"), final_state(tmp_path / "with")
    assert not [key for key in without if not torch.equal(without[key], probed[key])]


def test_a_finished_run_is_left_alone(digits: dict[str, str], tmp_path: Path) -> None:
    run(load_config("smoke"), digits, tmp_path)
    metrics, _ = run(load_config("smoke"), digits, tmp_path)
    assert metrics == []


def test_another_recipe_under_the_same_name_is_refused(digits: dict[str, str], tmp_path: Path) -> None:
    run(load_config("smoke"), digits, tmp_path)
    with pytest.raises(UnicError, match=r"began with optimizer\.weight_decay=0\.03"):
        run(load_config("smoke", ["optimizer.weight_decay=0.1"]), digits, tmp_path)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    digits: dict[str, str], tmp_path: Path
) -> None:
    config = load_config("smoke", ["optimizer.lr=1e30", "optimizer.warmup=6"])
    with pytest.raises(
        UnicError,
        match=r"the loss became (nan|inf) at step \d+ for .* images, first .*/train-00000/\S+ against teacher lite0",
    ):
        run(config, digits, tmp_path)
    for value in final_state(tmp_path).values() if list_checkpoints(LocalStore(str(tmp_path))) else ():
        assert torch.isfinite(value).all()


def test_accumulated_micro_batches_see_the_images_of_the_whole_batch(digits: dict[str, str], tmp_path: Path) -> None:
    plain = ["standardizer.kind=none", "balancer.kind=none", "student.drop_path=0", "training.steps=3"]
    run(load_config("smoke", plain), digits, tmp_path / "whole")
    run(load_config("smoke", [*plain, "training.accumulate=4"]), digits, tmp_path / "parts")
    whole, parts = final_state(tmp_path / "whole"), final_state(tmp_path / "parts")
    for key in (k for k in whole if k.startswith("student/")):
        assert torch.allclose(whole[key], parts[key], atol=2e-4), key


def test_data_sets_that_are_not_prepared_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnicError, match="'digits', which is not prepared"):
        run(load_config("smoke"), {}, tmp_path)
