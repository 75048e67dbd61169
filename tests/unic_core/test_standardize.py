"""Standardizers against the formulas, their inverses, their state, and real process groups."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from unic_core.config import BatchConfig, EmaConfig, FrozenConfig, IdentityConfig, PhiSConfig
from unic_core.errors import UnicError
from unic_core.hadamard import hadamard
from unic_core.standardize import (
    BatchStatistics,
    Config,
    EmaStatistics,
    FrozenStatistics,
    PhiSStatistics,
    Standardizer,
    build_standardizer,
)
from unic_core.tokens import Features, TokenKind

TARGETS: dict[str, dict[TokenKind, int]] = {"dino.v2": {"cls": 12, "patch": 8}, "clip": {"patch": 5}}
CONFIGS: tuple[Config, ...] = (
    EmaConfig(),
    BatchConfig(),
    FrozenConfig(steps=3),
    PhiSConfig(steps=3),
    IdentityConfig(),
)
KINDS = [config.kind for config in CONFIGS]


def _features(batch: int, seed: int, tokens: int = 6) -> Features:
    """Correlated channels with offsets and scales of their own."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        width = shape[-1]
        mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(width))
        return torch.randn(*shape, generator=generator) @ mixing * 2 + torch.arange(width) * 0.7

    return {
        teacher: {
            kind: draw(batch, width) if kind == "cls" else draw(batch, tokens, width) for kind, width in kinds.items()
        }
        for teacher, kinds in TARGETS.items()
    }


def _flat(features: Features) -> dict[str, Tensor]:
    return {f"{teacher}/{kind}": x for teacher, kinds in features.items() for kind, x in kinds.items()}


def _assert_equal(actual: Features, expected: Features, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(_flat(actual), _flat(expected), rtol=tolerance, atol=tolerance)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    rows = x.double().reshape(-1, x.shape[-1])
    return rows.mean(0), rows.std(0)


# ---------------------------------------------------------------- formulas


def test_ema_is_the_paper_s() -> None:
    config = EmaConfig()
    standardizer = build_standardizer(config, TARGETS)
    mean, std = torch.zeros(12, dtype=torch.float64), torch.ones(12, dtype=torch.float64)
    for step in range(5):
        features = _features(16, seed=step)
        x = features["dino.v2"]["cls"].double()
        targets = standardizer(features, progress=step / 5)
        expected = (x - mean) / (std + config.eps)
        torch.testing.assert_close(targets["dino.v2"]["cls"].double(), expected, rtol=1e-5, atol=1e-5)
        momentum = 0.001 + 0.4995 * (1 + math.cos(math.pi * step / 5))
        mean = (1 - momentum) * mean + momentum * x.mean(0)
        std = (1 - momentum) * std + momentum * (x.std(0) + config.eps)


def test_ema_starts_raw_and_then_uses_exactly_the_first_batch() -> None:
    standardizer = build_standardizer(EmaConfig(), TARGETS)
    first, second = _features(8, seed=0), _features(8, seed=1)
    _assert_equal(standardizer(first, 0.0), first, tolerance=2e-6)
    mean, std = _moments(first["clip"]["patch"])
    expected = (second["clip"]["patch"] - mean) / std
    torch.testing.assert_close(standardizer(second, 0.1)["clip"]["patch"], expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("progress", "momentum"), [(0, 1), (0.25, 0.854), (0.5, 0.5005), (0.75, 0.147), (1, 0.001)])
def test_ema_momentum_follows_the_cosine(progress: float, momentum: float) -> None:
    standardizer = build_standardizer(EmaConfig(), {"t": {"cls": 2}})
    standardizer.update({"t": {"cls": torch.tensor([[0.0, 0.0], [2.0, 2.0]])}}, progress)
    statistics = standardizer.statistics("t", "cls")
    assert isinstance(statistics, EmaStatistics)
    assert statistics.mean[0].item() == pytest.approx(momentum, abs=1e-3)


def test_batch_uses_the_current_batch_and_averages_for_evaluation() -> None:
    standardizer = build_standardizer(BatchConfig(momentum=0.3), TARGETS)
    means = []
    for step in range(3):
        features = _features(16, seed=step)
        target = standardizer(features, 0.0)["dino.v2"]["patch"]
        mean, std = _moments(features["dino.v2"]["patch"])
        means.append(mean)
        expected = (features["dino.v2"]["patch"] - mean) / (std + 1e-6)
        torch.testing.assert_close(target, expected.float(), rtol=1e-5, atol=1e-5)
    statistics = standardizer.statistics("dino.v2", "patch")
    assert isinstance(statistics, BatchStatistics)
    torch.testing.assert_close(statistics.mean, torch.stack(means).mean(0).float(), rtol=1e-5, atol=1e-5)
    standardizer.update(_features(16, seed=9), 0.0)  # 1/4 is below the momentum: from now on an EMA
    mean, _ = _moments(_features(16, seed=9)["dino.v2"]["patch"])
    expected = 0.7 * torch.stack(means).mean(0) + 0.3 * mean
    torch.testing.assert_close(statistics.mean, expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [FrozenConfig(steps=3), PhiSConfig(steps=3)], ids=["frozen", "phi_s"])
def test_measuring_covers_everything_seen_and_then_stops(config: Config) -> None:
    standardizer = build_standardizer(config, TARGETS)
    batches = [_features(5 + step, seed=step) for step in range(3)]
    for batch in batches:
        assert standardizer.measuring
        standardizer(batch, 0.0)
    assert not standardizer.measuring
    before = copy.deepcopy(standardizer.state_dict())
    standardizer(_features(16, seed=9), 0.5)
    standardizer.update(_features(16, seed=9), 0.5)
    torch.testing.assert_close(standardizer.state_dict(), before, rtol=0, atol=0)
    statistics = standardizer.statistics("dino.v2", "patch")
    assert isinstance(statistics, FrozenStatistics | PhiSStatistics)
    seen = torch.cat([batch["dino.v2"]["patch"] for batch in batches]).double()
    assert statistics.count == seen.numel() // 8
    torch.testing.assert_close(statistics.mean, seen.mean((0, 1)), rtol=1e-5, atol=1e-5)
    covariance = torch.cov(seen.reshape(-1, 8).T)
    expected = covariance if statistics.covariance else covariance.diagonal()
    torch.testing.assert_close(statistics.moments.variance, expected, rtol=1e-5, atol=1e-5)


def test_frozen_uses_the_statistics_so_far() -> None:
    standardizer = build_standardizer(FrozenConfig(steps=3), {"t": {"cls": 12}})
    batches = [_features(8, seed=step)["dino.v2"]["cls"] for step in range(2)]
    targets = [standardizer({"t": {"cls": batch}}, 0.0)["t"]["cls"] for batch in batches]
    for n, target in enumerate(targets):
        mean, std = _moments(torch.cat(batches[: n + 1]))
        torch.testing.assert_close(target.double(), (batches[n].double() - mean) / (std + 1e-6), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [8, 12, 20, 192])
def test_phi_s_gives_every_channel_unit_variance_and_keeps_proportions(width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(width, width, generator=generator) * torch.logspace(0, -2, width)
    x = torch.randn(4 * width, width, generator=generator) @ mixing.T + 3
    standardizer = build_standardizer(PhiSConfig(steps=1), {"t": {"cls": width}})
    y = standardizer({"t": {"cls": x}}, 0.0)["t"]["cls"]
    torch.testing.assert_close(y.mean(0), torch.zeros(width), rtol=0, atol=1e-4)
    torch.testing.assert_close(y.var(0), torch.ones(width), rtol=1e-3, atol=1e-3)
    alpha = torch.cov(x.double().T).diagonal().mean().rsqrt()
    torch.testing.assert_close(torch.pdist(y), (torch.pdist(x) * alpha).float(), rtol=1e-4, atol=1e-4)
    # by definition, the covariance of H U^T x is H diag(lambda) H^T, whatever the signs of the eigenvectors
    values = torch.linalg.eigvalsh(torch.cov(x.double().T))
    expected = alpha**2 * hadamard(width) @ values.diag() @ hadamard(width).T
    torch.testing.assert_close(torch.cov(y.double().T), expected, rtol=1e-3, atol=1e-3)


def test_phi_s_of_a_width_without_hadamard_matrix_keeps_the_total_variance() -> None:
    x = _features(64, seed=0)["clip"]["patch"]
    standardizer = build_standardizer(PhiSConfig(steps=1), {"t": {"patch": 5}})
    y = standardizer({"t": {"patch": x}}, 0.0)["t"]["patch"].reshape(-1, 5)
    assert y.var(0).mean().item() == pytest.approx(1, abs=1e-4)


def test_phi_s_measuring_uses_mean_and_one_scale() -> None:
    x = _features(64, seed=0)["dino.v2"]["cls"]
    standardizer = build_standardizer(PhiSConfig(steps=2), {"t": {"cls": 12}})
    y = standardizer({"t": {"cls": x}}, 0.0)["t"]["cls"]
    expected = (x - x.mean(0)) / x.var(0).mean().sqrt()
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


def test_none_passes_everything() -> None:
    features = _features(4, seed=0)
    standardizer = build_standardizer(IdentityConfig(), TARGETS)
    assert not standardizer.measuring
    _assert_equal(standardizer(features, 0.0), features, tolerance=0)


# ---------------------------------------------------------------- properties of all kinds


@settings(max_examples=40, deadline=None)
@given(config=st.sampled_from(CONFIGS), updates=st.integers(0, 5), seed=st.integers(0, 99), batch=st.integers(0, 9))
def test_the_inverse_is_exact(config: Config, updates: int, seed: int, batch: int) -> None:
    standardizer = build_standardizer(config, TARGETS)
    for step in range(updates):
        standardizer.update(_features(batch, seed=seed + step), step / 5)
    features = _features(4, seed=seed + 50)
    _assert_equal(standardizer.denormalize(standardizer.normalize(features)), features, tolerance=1e-4)
    _assert_equal(standardizer.normalize(standardizer.denormalize(features)), features, tolerance=1e-4)


@pytest.mark.parametrize("config", CONFIGS, ids=KINDS)
@pytest.mark.parametrize("updates", [0, 2, 4])
def test_state_survives_a_round_trip(config: Config, updates: int) -> None:
    original = build_standardizer(config, TARGETS)
    for step in range(updates):
        original(_features(8, seed=step), step / 10)
    restored = build_standardizer(config, TARGETS)
    restored.load_state_dict(original.state_dict())
    assert restored.measuring == original.measuring
    for step in range(updates, updates + 4):
        features = _features(8, seed=step)
        _assert_equal(restored(features, step / 10), original(features, step / 10), tolerance=0)
    torch.testing.assert_close(restored.state_dict(), original.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("config", CONFIGS, ids=KINDS)
def test_forward_updates_as_update_does(config: Config) -> None:
    one, two = build_standardizer(config, TARGETS), build_standardizer(config, TARGETS)
    for step in range(4):
        one(_features(8, seed=step), step / 4)
        two.update(_features(8, seed=step), step / 4)
    torch.testing.assert_close(one.state_dict(), two.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("config", CONFIGS, ids=KINDS)
def test_targets_are_fp32_without_gradient_and_usable_in_a_loss(config: Config) -> None:
    standardizer = build_standardizer(config, {"t": {"cls": 4}})
    with torch.inference_mode():
        features: Features = {"t": {"cls": torch.randn(3, 4)}}
    prediction = torch.randn(3, 4, requires_grad=True)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16):
            target = standardizer({"t": {"cls": features["t"]["cls"].to(dtype)}}, 0.0)["t"]["cls"]
        assert target.dtype == torch.float32
        assert not target.requires_grad
        (prediction * target).sum().backward()


@pytest.mark.parametrize("config", CONFIGS, ids=KINDS)
def test_an_empty_global_batch_changes_no_statistics(config: Config) -> None:
    standardizer = build_standardizer(config, TARGETS)
    standardizer(_features(8, seed=0), 0.0)
    before = standardizer.normalize(_features(4, seed=1))
    assert standardizer(_features(0, seed=2), 0.1)["dino.v2"]["patch"].shape == (0, 6, 8)
    assert standardizer({}, 0.2) == {}
    if not isinstance(config, PhiSConfig):  # the third update ends its measuring and rotates
        _assert_equal(standardizer.normalize(_features(4, seed=1)), before, tolerance=1e-6)
    assert all(x.isfinite().all() for x in _flat(standardizer(_features(1, seed=3), 0.3)).values())


@pytest.mark.parametrize("config", CONFIGS, ids=KINDS)
def test_constant_channels_stay_finite(config: Config) -> None:
    standardizer = build_standardizer(config, {"t": {"cls": 4}})
    for step in range(4):
        target = standardizer({"t": {"cls": torch.full((6, 4), 3.0)}}, step / 4)["t"]["cls"]
        assert target.isfinite().all()


def test_gradients_flow_through_the_inverse() -> None:
    standardizer = build_standardizer(FrozenConfig(steps=1), {"t": {"cls": 12}})
    standardizer.update({"t": {"cls": _features(16, seed=0)["dino.v2"]["cls"]}}, 0.0)
    prediction = torch.randn(2, 12, requires_grad=True)
    standardizer.denormalize({"t": {"cls": prediction}})["t"]["cls"].sum().backward()  # type: ignore[no-untyped-call]
    assert prediction.grad is not None
    assert (prediction.grad > 0).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("config", CONFIGS, ids=KINDS)
def test_the_host_never_waits_for_the_device(config: Config) -> None:
    standardizer, reference = build_standardizer(config, TARGETS).cuda(), build_standardizer(config, TARGETS)
    for step in range(2):  # the third step of PHI-S is its decomposition
        features = _features(8, seed=step)
        on_device = {t: {k: x.cuda() for k, x in kinds.items()} for t, kinds in features.items()}
        torch.cuda.set_sync_debug_mode("error")
        try:
            targets = standardizer(on_device, step / 4)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        on_host: Features = {t: {k: x.cpu() for k, x in kinds.items()} for t, kinds in targets.items()}
        _assert_equal(on_host, reference(features, step / 4), tolerance=1e-4)
    standardizer(on_device, 0.5)
    restored = build_standardizer(config, TARGETS)
    restored.load_state_dict(standardizer.state_dict())
    assert restored.measuring == standardizer.measuring


def test_mistakes_are_named() -> None:
    standardizer = build_standardizer(EmaConfig(), TARGETS)
    with pytest.raises(UnicError, match="no statistics of other/cls"):
        standardizer({"other": {"cls": torch.zeros(1, 3)}}, 0.0)
    with pytest.raises(UnicError, match="clip/patch has 6 channels, but its statistics have 5"):
        standardizer({"clip": {"patch": torch.zeros(1, 2, 6)}}, 0.0)
    with pytest.raises(UnicError, match=r"progress is 1\.5"):
        standardizer.update(_features(4, seed=0), 1.5)


# ---------------------------------------------------------------- several processes

SIZES = {2: ((5, 3), (4, 0), (1, 7)), 4: ((3, 1, 4, 2), (0, 5, 0, 2), (2, 2, 2, 2))}


def _start(worker: Callable[[int, int, str], None], world: int, directory: Path) -> None:
    """Run `worker(rank, world, store)` in fresh processes; a clean server forks them after importing torch once."""
    mp.get_context("forkserver").set_forkserver_preload(["pytest", "hypothesis", "unic_core.standardize"])
    args = (world, str(directory / "store"))
    start_processes(worker, args, nprocs=world, start_method="forkserver")  # type: ignore[no-untyped-call]


def _slice(features: Features, start: int, stop: int) -> Features:
    return {t: {k: x[start:stop] for k, x in kinds.items()} for t, kinds in features.items()}


def _count_collectives(calls: list[str]) -> None:
    """Note the name of every collective that this process calls."""
    for name in ("all_reduce", "all_gather_into_tensor", "broadcast"):
        original = getattr(dist, name)

        def counted(*args: object, _name: str = name, _original: object = original, **kwargs: object) -> object:
            calls.append(_name)
            return _original(*args, **kwargs)  # type: ignore[operator]

        setattr(dist, name, counted)


def _compare_with_one_process(number: int, world: int, store: str) -> None:
    """Every kind, uneven and empty parts: targets and state are those of the concatenated features."""
    torch.set_num_threads(1)
    batches = [_features(sum(sizes), seed=step) for step, sizes in enumerate(SIZES[world])]
    alone: dict[str, tuple[Standardizer, list[Features]]] = {}
    for config in CONFIGS:
        single = build_standardizer(config, TARGETS)
        alone[config.kind] = (single, [single(batch, step / 3) for step, batch in enumerate(batches)])
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=world)
    calls: list[str] = []
    _count_collectives(calls)
    for config in CONFIGS:
        single, expected = alone[config.kind]
        shared = build_standardizer(config, TARGETS)
        for step, sizes in enumerate(SIZES[world]):
            start, stop = sum(sizes[:number]), sum(sizes[: number + 1])
            part = _slice(batches[step], start, stop) if stop > start or number % 2 == 0 else {}
            calls.clear()
            targets = shared(part, step / 3)
            _assert_equal(targets, _slice(expected[step], start, stop) if part else {}, tolerance=2e-4)
            vectors = isinstance(config, EmaConfig | BatchConfig | FrozenConfig)
            assert not vectors or calls == ["all_gather_into_tensor"]
        _assert_equal(shared.normalize(batches[0]), single.normalize(batches[0]), tolerance=2e-4)
        for state in shared.state_dict().values():  # the same bits in all processes
            copies = [torch.empty_like(state) for _ in range(world)]
            dist.all_gather(copies, state)
            assert all(torch.equal(other, state) for other in copies)
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_statistics_of_the_concatenated_features(world: int, tmp_path: Path) -> None:
    _start(_compare_with_one_process, world, tmp_path)
