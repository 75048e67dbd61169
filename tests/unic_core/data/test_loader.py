from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unic_core.data.conftest import encoded, picture
from unic_core.config import DataConfig, DatasetConfig, MixConfig
from unic_core.data.dataset import ShardedDataset
from unic_core.data.decode import decode
from unic_core.data.eval_loader import eval_batches, own_batches
from unic_core.data.geometry import center
from unic_core.data.loader import RawBatch, TrainLoader
from unic_core.data.order import locate
from unic_core.data.prepare import prepare_dataset
from unic_core.errors import UnicError

SIZE = 32


def config(workers: int = 0, **changes: object) -> DataConfig:
    return DataConfig(
        **{"train": (MixConfig(dataset="waves"),), "workers": workers, "chunk": 4, "window": 4, **changes}
    )


def batches(dataset: ShardedDataset, count: int, workers: int = 0, **changes: object) -> list[RawBatch]:
    arguments: dict[str, object] = {"image_size": SIZE, "seed": 5, "batch": 12, **changes}
    iterator = iter(TrainLoader([dataset], config(workers), **arguments))  # type: ignore[arg-type]
    result = list(itertools.islice(iterator, count))
    iterator.close()  # type: ignore[attr-defined]
    return result


def same(a: RawBatch, b: RawBatch) -> bool:
    return torch.equal(a.images, b.images) and torch.equal(a.samples, b.samples) and a[2:] == b[2:]


def test_batches_are_uint8_crops_of_the_epochs_order(train: ShardedDataset) -> None:
    loader = TrainLoader([train], config(), SIZE, seed=5, batch=12)
    assert loader.steps_per_epoch == 5
    first = batches(train, 11)
    for step, batch in enumerate(first):
        assert batch.images.shape == (12, 3, SIZE, SIZE)
        assert batch.images.dtype == torch.uint8
        assert (batch.step, batch.epoch, batch.micro, batch.global_size) == (step, step // 5, 0, 12)
    for epoch in range(2):
        seen = torch.cat([batch.samples for batch in first[5 * epoch : 5 * epoch + 5]])
        assert sorted(seen.tolist()) == list(range(60))
    assert not torch.equal(first[0].samples, first[5].samples)


@pytest.mark.parametrize("world", [2, 4, 5])
@pytest.mark.parametrize("micro", [1, 3])
def test_the_world_size_changes_nothing(world: int, micro: int, train: ShardedDataset) -> None:
    alone = batches(train, 7 * micro, micro_batches=micro)
    ranks = [batches(train, 7 * micro, micro_batches=micro, rank=rank, world=world) for rank in range(world)]
    for i, batch in enumerate(alone):
        parts = [rank[i] for rank in ranks]
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert torch.equal(torch.cat([part.samples for part in parts]), batch.samples)
        assert all(part[2:] == batch[2:] for part in parts)
        assert max(len(part.samples) for part in parts) - min(len(part.samples) for part in parts) <= 1


def test_micro_batches_are_the_batch(train: ShardedDataset) -> None:
    whole = batches(train, 3)
    parts = batches(train, 9, micro_batches=3)
    assert [part.micro for part in parts] == [0, 1, 2] * 3
    for i, batch in enumerate(whole):
        assert torch.equal(torch.cat([part.images for part in parts[3 * i : 3 * i + 3]]), batch.images)


@pytest.mark.parametrize("start", [1, 4, 5, 8])
def test_resuming_gives_the_identical_tail(start: int, train: ShardedDataset) -> None:
    tail = batches(train, 12)[start:]
    for a, b in zip(batches(train, 12 - start, start_step=start), tail, strict=True):
        assert same(a, b)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_tail_is_the_same_wherever_and_however_it_is_continued(data: st.DataObject, prepared: str) -> None:
    """Any step, world, number of workers and of micro-batches, with one data set or a weighted mixture of two."""
    datasets, mix = [ShardedDataset(prepared, "train")], [MixConfig(dataset="waves")]
    if data.draw(st.booleans(), label="mixture"):
        datasets.append(ShardedDataset(prepared, "test"))
        mix.append(MixConfig(dataset="waves", split="test", weight=data.draw(st.floats(0.3, 3.0))))
    batch = data.draw(st.integers(4, 24), label="batch")
    seed, start = data.draw(st.integers(0, 99)), data.draw(st.integers(0, 40), label="start")

    def steps(first: int, world: int, workers: int, micro: int, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        changes = {"train": tuple(mix), "chunk": chunk, "window": window}
        ranks = []
        for rank in range(world):
            loader = TrainLoader(datasets, config(workers, **changes), SIZE, seed, batch, micro, rank, world, first)
            with contextlib.closing(iter(loader)) as iterator:  # type: ignore[type-var]
                ranks.append(list(itertools.islice(iterator, count * micro)))
        result = []
        for step in range(count):
            parts = [rank[step * micro + m] for m in range(micro) for rank in ranks]
            assert {part.step for part in parts} == {first + step}
            result.append((torch.cat([part.samples for part in parts]), torch.cat([part.images for part in parts])))
        return result

    chunk, window = data.draw(st.integers(1, 16)), data.draw(st.integers(1, 8))
    straight = steps(0, 1, 0, 1, start + 3)[start:]
    world, workers = data.draw(st.sampled_from([1, 2, 4])), data.draw(st.sampled_from([0, 0, 1, 2, 3]))
    continued = steps(start, world, workers, data.draw(st.integers(1, 3)), 3)
    for (a, x), (b, y) in zip(continued, straight, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(x, y)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers: int, train: ShardedDataset) -> None:
    for a, b in zip(batches(train, 8, workers=workers), batches(train, 8), strict=True):
        assert same(a, b)


def test_the_seed_changes_everything(train: ShardedDataset) -> None:
    assert not torch.equal(batches(train, 1, seed=6)[0].samples, batches(train, 1)[0].samples)


def test_data_sets_are_mixed_by_weight(prepared: str) -> None:
    datasets = [ShardedDataset(prepared, "train"), ShardedDataset(prepared, "test")]
    mix = (MixConfig(dataset="waves", weight=0.5), MixConfig(dataset="waves", split="test", weight=3.0))
    loader = TrainLoader(datasets, config(train=mix), SIZE, seed=5, batch=12)
    assert loader.steps_per_epoch == 5
    seen = list(itertools.islice(loader, 5))
    numbers, indices = locate(torch.cat([batch.samples for batch in seen]).numpy(), [60, 10])
    assert (numbers == 0).sum() == 30
    assert sorted(indices[numbers == 1].tolist()) == sorted(list(range(10)) * 3)
    repeats = {}
    for batch in seen:
        for sample, image in zip(batch.samples.tolist(), batch.images, strict=True):
            if sample % 70 == 65:
                repeats[sample] = image
    assert len(repeats) == 3
    assert not torch.equal(*list(repeats.values())[:2]), "repeats are cropped differently"


def test_too_few_images_for_a_batch(train: ShardedDataset) -> None:
    with pytest.raises(UnicError, match="60 images, fewer than one batch of 61"):
        TrainLoader([train], config(), SIZE, seed=5, batch=61)
    with pytest.raises(UnicError, match="names 1 data sets, 2 were opened"):
        TrainLoader([train, train], config(), SIZE, seed=5, batch=6)


# ---------------------------------------------------------------- what can go wrong


@pytest.fixture
def damaged(tmp_path: Path) -> ShardedDataset:
    """40 images, of which two are made unreadable inside their shard."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(40):
        (folder / f"{i:03d}.jpg").write_bytes(encoded(picture(i)))
    uri = prepare_dataset(DatasetConfig(name="damaged", source=f"folder:{folder}"), str(tmp_path))
    dataset = ShardedDataset(uri, "train")
    with (Path(uri) / "train-00000.tar").open("r+b") as file:
        for i in (7, 21):
            file.seek(int(dataset._index[i, 0]))
            file.write(bytes(100))
    return ShardedDataset(uri, "train")


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_are_replaced_by_others(
    workers: int, damaged: ShardedDataset, caplog: pytest.LogCaptureFixture
) -> None:
    def images(workers: int, world: int) -> torch.Tensor:
        parts = []
        for rank in range(world):
            loader = TrainLoader([damaged], config(workers, max_broken=2), SIZE, 5, batch=20, rank=rank, world=world)
            parts.append(torch.stack([batch.images for batch in itertools.islice(loader, 4)]))
        return torch.cat(parts, dim=1)

    reference = images(workers=0, world=1)
    assert damaged.key(7) in caplog.text
    assert torch.equal(images(workers, world=2), reference)
    assert (reference.float().std(dim=(2, 3, 4)) > 1).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_more_broken_images_than_allowed(workers: int, damaged: ShardedDataset) -> None:
    loader = TrainLoader([damaged], config(workers, max_broken=1), SIZE, 5, batch=20)
    with pytest.raises(UnicError, match=r"epoch 0 met more unreadable images than data.max_broken = 1: .*train-00000/"):
        list(itertools.islice(loader, 2))


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_workers_stay_one_sentence(workers: int, damaged: ShardedDataset) -> None:
    (Path(damaged.uri) / "train-00000.tar").unlink()
    with pytest.raises(UnicError) as caught:
        next(iter(TrainLoader([damaged], config(workers), SIZE, 5, batch=20)))
    assert "train-00000.tar is missing" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def _children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=10)[1]


@pytest.mark.parametrize("micro", [1, 2])
def test_killed_workers_are_replaced_and_no_batch_is_lost(
    micro: int, train: ShardedDataset, caplog: pytest.LogCaptureFixture
) -> None:
    expected = batches(train, 50, micro_batches=micro)
    before = set(_children())
    iterator = iter(TrainLoader([train], config(2), SIZE, 5, batch=12, micro_batches=micro))
    seen = [next(iterator) for _ in range(3)]
    for worker in [process for process in _children() if process not in before]:
        worker.kill()
    seen += itertools.islice(iterator, 47)
    assert all(same(a, b) for a, b in zip(seen, expected, strict=True))
    assert "a data worker was killed; new ones continue at the same batch (1 of 3)" in caplog.text


def test_workers_killed_again_and_again_are_one_sentence(train: ShardedDataset) -> None:
    before = set(_children())
    iterator = iter(TrainLoader([train], config(1, chunk=1), SIZE, 5, batch=1))
    with pytest.raises(UnicError, match=r"a data worker was killed, .*lower data.workers"):  # noqa: PT012
        for _ in range(50):
            next(iterator)
            for worker in [process for process in _children() if process not in before]:
                worker.kill()


def test_no_worker_outlives_the_iterator(train: ShardedDataset) -> None:
    before = set(_children())

    def interrupted(iterator: Iterator[RawBatch]) -> None:
        for _ in iterator:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(iter(TrainLoader([train], config(2), SIZE, 5, batch=12)))
    assert _gone([process for process in _children() if process not in before])


@pytest.mark.slow
def test_ctrl_c_ends_a_training_process_and_its_workers(prepared: str) -> None:
    code = (
        "import sys\nfrom unic_core.config import DataConfig\nfrom unic_core.data.dataset import ShardedDataset\n"
        "from unic_core.data.loader import TrainLoader\n"
        "dataset = ShardedDataset(sys.argv[1], 'train')\n"
        "try:\n    for batch in TrainLoader([dataset], DataConfig(workers=2), 32, seed=1, batch=12):\n"
        "        print(batch.step, flush=True)\nexcept KeyboardInterrupt:\n    sys.exit(130)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, prepared],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    start = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert time.monotonic() - start < 10
    assert _gone(workers)


# ---------------------------------------------------------------- evaluation


@pytest.mark.parametrize("workers", [0, 2])
def test_eval_batches_are_all_images_in_order(workers: int, prepared: str) -> None:
    test = ShardedDataset(prepared, "test")
    result = list(eval_batches(test, SIZE, batch=4, workers=workers))
    assert [len(images) for images, _ in result] == [4, 4, 2]
    assert torch.cat([labels for _, labels in result]).tolist() == test.labels.tolist()
    images = torch.cat([images for images, _ in result])
    assert torch.equal(images, torch.stack([center(decode(test.read(i)), SIZE) for i in range(10)]))


def test_an_unreadable_test_image_is_named(damaged: ShardedDataset) -> None:
    with pytest.raises(UnicError) as caught:
        list(eval_batches(damaged, SIZE, batch=16))
    assert damaged.key(7) in str(caught.value)


@given(images=st.integers(1, 300), batch=st.integers(1, 40), world=st.integers(1, 8))
def test_processes_share_whole_batches_evenly_and_in_order(images: int, batch: int, world: int) -> None:
    parts = [own_batches(images, batch, rank, world) for rank in range(world)]
    assert [number for part in parts for number in part] == list(range(-(-images // batch)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
