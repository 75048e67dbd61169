"""The search for C: the protocol's trials, each solved like a fit of its own."""

from __future__ import annotations

import optuna
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from unic_core.evals.logreg import Eigenbasis, PathSolver, fit_logreg, objective
from unic_core.evals.search import by_grid, by_optuna

BOUNDS = (1e-5, 1e6)


@pytest.fixture
def split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    data = load_digits()
    x, y = torch.tensor(data.data / 16).float(), torch.tensor(data.target)
    return x[:300], y[:300], x[300:500], y[300:500]


def test_trials_are_those_of_optuna_alone(split: tuple[Tensor, ...]) -> None:
    """Asking for the random trials at once and solving them together changes nothing that TPE sees."""
    x, y, valid_x, valid_y = split
    solver = PathSolver(Eigenbasis.of(x), y, 10)
    found = by_optuna(solver, BOUNDS, 15, 4, valid_x, valid_y)

    def top1(trial: optuna.Trial) -> float:
        c = trial.suggest_float("C", *BOUNDS, log=True)
        return float((fit_logreg(x, y, [c], 10).predict(valid_x)[0] == valid_y).double().mean())

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=4))
    study.optimize(top1, n_trials=15)
    assert found.top1 == pytest.approx(study.best_value, abs=0.01)
    asked = [trial.params["C"] for trial in study.trials[:10]]
    best = min((t for t in study.trials if t.value == study.best_value), key=lambda t: t.params["C"])
    if best.number < 10:
        assert found.c in asked


def test_grid_takes_the_smallest_of_the_best(split: tuple[Tensor, ...]) -> None:
    x, y, valid_x, valid_y = split
    solver = PathSolver(Eigenbasis.of(x), y, 10)
    grid = (1e3, 1e-4, 1.0, 0.1)
    found = by_grid(solver, grid, valid_x, valid_y)
    again = PathSolver(Eigenbasis.of(x), y, 10).fit(grid)
    scores = dict(zip(grid, (again.predict(valid_x) == valid_y).double().mean(1).tolist(), strict=True))
    assert found.c == min(c for c, score in scores.items() if score == max(scores.values()))
    assert found.top1 == max(scores.values())


def test_later_fits_start_from_earlier_ones_and_end_at_the_same_optimum(split: tuple[Tensor, ...]) -> None:
    x, y, _, _ = split
    solver = PathSolver(Eigenbasis.of(x), y, 10)
    solver.fit((1e-2, 1.0, 1e2))
    between = solver.fit([3.0])
    alone = fit_logreg(x, y, [3.0], 10)
    assert between.iterations.item() < alone.iterations.item()
    values = objective(
        x, y, torch.cat([between.weight, alone.weight]), torch.cat([between.bias, alone.bias]), [3.0] * 2
    )
    assert values[0].item() == pytest.approx(values[1].item(), rel=2e-3)


def test_the_search_is_quiet(split: tuple[Tensor, ...], capfd: pytest.CaptureFixture[str]) -> None:
    x, y, valid_x, valid_y = split
    by_optuna(PathSolver(Eigenbasis.of(x), y, 10), (0.1, 10.0), 2, 0, valid_x, valid_y)
    assert capfd.readouterr() == ("", "")
