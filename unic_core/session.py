"""One process of a distillation run, from config to student: builds the parts, resumes, trains, saves."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from unic_core.checkpoint import (
    CheckpointWriter,
    Loaded,
    Retention,
    check_same_run,
    load_checkpoint,
    load_newest,
    restore,
)
from unic_core.config import RunConfig
from unic_core.cost import cost_table, render_cost, store_cost
from unic_core.data.augment import DeviceAugment
from unic_core.data.dataset import ShardedDataset
from unic_core.data.eval_loader import eval_batches
from unic_core.data.loader import TrainLoader
from unic_core.distributed import all_sum, rank, world_size
from unic_core.errors import UnicError
from unic_core.evals.in_training import InTrainingKnn
from unic_core.export import save_student
from unic_core.history import History, Record
from unic_core.hooks import CheckpointHook, KnnHook, MetricsHook, Stopwatch
from unic_core.interrupt import InterruptHook, Wish
from unic_core.optim import Schedule, build_optimizer, build_schedule
from unic_core.provenance import versions
from unic_core.storage import Store, open_store
from unic_core.task import DistillationModel, DistillationTask, build_task
from unic_core.train import Hook, TrainState, device_batches, train


def training_sets(config: RunConfig, datasets: dict[str, str], cache: Path | None) -> list[ShardedDataset]:
    """The prepared data sets of `config.data.train`; each is named by a key of `datasets` or by its URI."""
    sets = []
    for mix in config.data.train:
        uri = datasets.get(mix.dataset, mix.dataset)
        if uri == mix.dataset and "/" not in uri:
            raise UnicError(
                f"data.train names {uri!r}, which is not prepared; add it to datasets and run `unic prepare`, "
                "or give the URI of a prepared data set"
            )
        sets.append(ShardedDataset(uri, mix.split, cache, config.data.cache_bytes))
    return sets


@dataclass(frozen=True)
class Surroundings:
    """What a session needs of the platform that runs it.

    Attributes:
        emit: called in process 0 with the metrics of a step.
        say: called in process 0 with lines for people.
        alongside: called in process 0, in a background thread, before every checkpoint is written.
        wish: what this process wants after a step, see `InterruptHook`; None where nobody interrupts.
        preempted: whether a machine is about to be taken away; a collective.
    """

    emit: Callable[[int, Record], None]
    say: Callable[[str], None]
    alongside: Callable[[], None] = lambda: None
    wish: Callable[[], Wish] | None = None
    preempted: Callable[[], bool] = lambda: False


def run_session(
    config: RunConfig, datasets: dict[str, str], run: str, device: torch.device, around: Surroundings
) -> TrainState:
    """Train (or continue) the run stored at the URI `run`, in this process of the process group.

    Args:
        datasets: URI of every prepared data set by name.

    Returns:
        The state that was reached: the last step, or less after a wish to stop.

    Raises:
        UnicError: whatever the user can put right; raised in every process.
    """
    store = open_store(run)
    cache = Path(config.data.cache) if config.data.cache else None
    sets = training_sets(config, datasets, cache)
    task = build_task(config, device, cache)
    model = task.model
    assert isinstance(model, DistillationModel)  # noqa: S101 (not wrapped yet)
    optimizer = build_optimizer(model, config.optimizer)
    scaler = torch.amp.GradScaler(device.type, enabled=config.training.precision == "fp16")
    teachers = [teacher.manifest() for teacher in task.teachers]
    data = [{"fingerprint": s.fingerprint, "split": m.split} for s, m in zip(sets, config.data.train, strict=True)]
    state = TrainState()
    loaded = _load_same(run, device)
    if loaded is not None:
        check_same_run(loaded.state, config, teachers, data)
        restore(loaded, model, optimizer, task.standardizer)
        scaler.load_state_dict(loaded.state["scaler"])
        state = TrainState(loaded.state["step"])
    elif rank() == 0:
        cost = cost_table(model.student, model.projectors, {t.name: t for t in task.teachers})
        around.say(render_cost(cost))
        store_cost(cost, store)

    loader = TrainLoader(sets, config.data, config.student.image_size, config.seed, config.training.batch,
                         config.training.accumulate, rank(), world_size(), state.step)  # fmt: skip
    schedule = build_schedule(config, loader.steps_per_epoch)
    if rank() == 0:
        around.say(_plan(config, schedule, loader.steps_per_epoch, state.step))
    if state.step < schedule.total:
        about = {"config": config.model_dump(mode="json"), "teachers": teachers, "data": data, "versions": versions()}
        probe = _in_training_probe(config, datasets, cache)
        state = _train(config, task, optimizer, scaler, loader, schedule, store, state, about, probe, device, around)
    if rank() == 0 and state.step >= schedule.total:
        save_student(model.student, config, store.child("student"), teachers)
    return state


def _train(
    config: RunConfig,
    task: DistillationTask,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    loader: TrainLoader,
    schedule: Schedule,
    store: Store,
    state: TrainState,
    about: dict[str, Any],
    probe: InTrainingKnn | None,
    device: torch.device,
    around: Surroundings,
) -> TrainState:
    """Hang the hooks on the loop and run it; returns when the last checkpoint is stored."""
    training, model = config.training, task.model
    assert isinstance(model, DistillationModel)  # noqa: S101 (not wrapped yet)
    history, stopwatch = History(store, state.step), Stopwatch()

    def record(step: int, values: Record) -> None:
        history.add(step, values)
        around.emit(step, values)

    def alongside() -> None:
        history.save()
        around.alongside()

    metrics = MetricsHook(task, schedule, training.batch, training.log_every, record, stopwatch, loader.describe)
    retention = Retention(training.keep_last, training.keep_every, training.keep_best)
    with closing(CheckpointWriter(store, retention, alongside)) as writer:
        checkpoint = CheckpointHook(model, task, optimizer, scaler, metrics, writer, about, training.checkpoint_every)
        interrupt = InterruptHook(around.wish or (lambda: Wish.NONE), around.preempted, checkpoint.save)
        hooks: list[Hook] = [metrics, checkpoint, *([interrupt] if around.wish else [])]
        if probe is not None and config.evaluation.knn_every is not None:
            every = max(1, round(config.evaluation.knn_every * loader.steps_per_epoch))
            hooks.append(KnnHook(probe, model.student, every, record))
        if world_size() > 1:
            task.model = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
        batches = stopwatch.watch(device_batches(loader, DeviceAugment(config.data.augment), config, device))
        return train(task, batches, optimizer, schedule, scaler, hooks, state,
                     lambda s: interrupt.stopped or s.step >= schedule.total,
                     training.precision, config.optimizer.clip_norm)  # fmt: skip


def _in_training_probe(config: RunConfig, datasets: dict[str, str], cache: Path | None) -> InTrainingKnn | None:
    """kNN on the first probe of the config, where the config asks for it."""
    evaluation = config.evaluation
    if evaluation.knn_every is None:
        return None
    first, size = evaluation.probes[0], config.student.image_size
    name = first.trained_on
    train = ShardedDataset(datasets.get(name, name), first.train_split, cache, config.data.cache_bytes)
    test = ShardedDataset(datasets.get(first.dataset, first.dataset), first.test_split, cache, config.data.cache_bytes)
    return InTrainingKnn(
        partial(eval_batches, train, size, evaluation.batch),
        partial(eval_batches, test, size, evaluation.batch),
        evaluation.knn_k,
        evaluation.knn_temperature,
        evaluation.token,
    )


def _load_same(run: str, device: torch.device) -> Loaded | None:
    """The newest valid checkpoint, the same one in all processes: process 0 chooses."""
    store = open_store(run)
    loaded = load_newest(store) if rank() == 0 else None
    step = int(all_sum(torch.tensor([loaded.state["step"] if loaded else 0], device=device)).item())
    if step and loaded is None:
        loaded = load_checkpoint(store, step)
    return loaded


def _plan(config: RunConfig, schedule: Schedule, steps_per_epoch: int, step: int) -> str:
    """One line on what is about to happen."""
    begin = f"continuing at step {step:,} of" if step else "training"
    epochs = schedule.total / steps_per_epoch
    return (
        f"{begin} {schedule.total:,} steps ({epochs:.1f} epochs), {config.training.batch} images a step "
        f"in {world_size()} process(es), peak learning rate {schedule.peak:.2g}"
    )
