"""The solver against scikit-learn, and the properties its users rely on."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from unic_core.errors import UnicError
from unic_core.evals import logreg, softmax
from unic_core.evals.logreg import Eigenbasis, PathSolver, fit_logreg

GRID = (1e-4, 1e-2, 1.0, 1e2, 1e5)
CLOSE, MEAN = 1e-3, 5e-5  # two solutions at the same C: relative, or where C is large, of the mean cross-entropy


def digits(n: int) -> tuple[Tensor, Tensor, int]:
    data = load_digits()
    return torch.tensor(data.data[:n] / 16).float(), torch.tensor(data.target[:n]), 10


def blobs(n: int, width: int, classes: int, separation: float) -> tuple[Tensor, Tensor, int]:
    """Gaussian classes with a power-law spectrum (as of real features) and a mean far from 0."""
    generator = torch.Generator().manual_seed(1)
    centers = torch.randn(classes, width, generator=generator) * separation
    y = torch.randint(0, classes, (n,), generator=generator)
    spectrum = torch.arange(1, width + 1) ** -0.7
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    x = (centers[y] + torch.randn(n, width, generator=generator)) * spectrum @ rotation + 0.5
    return x, y, classes


DATA = {
    "digits": digits(600),
    "separable": blobs(500, 48, 12, separation=2.0),
    "overlapping": blobs(600, 32, 6, separation=0.2),
    "wide": blobs(80, 200, 5, separation=0.3),
}


def objective(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, c: float) -> float:
    logits = x.double() @ weight.double() + bias.double()
    return float(c * F.cross_entropy(logits, y, reduction="sum") + weight.double().square().sum() / 2)


@pytest.mark.parametrize("name", DATA)
def test_objective_is_no_worse_than_scikit_learns_at_every_c(name: str) -> None:
    x, y, classes = DATA[name]
    fitted = fit_logreg(x, y, GRID, classes)
    assert fitted.converged.all()
    for p, c in enumerate(GRID):
        theirs = LogisticRegression(C=c, max_iter=2000).fit(x.numpy(), y.numpy())
        reference = objective(x, y, torch.tensor(theirs.coef_.T), torch.tensor(theirs.intercept_), c)
        ours = objective(x, y, fitted.weight[p], fitted.bias[p], c)
        assert ours <= reference * (1 + 1e-4)
        assert ours == pytest.approx(fitted.objective[p].item(), rel=1e-4)


@pytest.mark.parametrize("name", ["separable", "overlapping", "wide"])
def test_gradient_vanishes_at_the_solution(name: str) -> None:
    x, y, classes = DATA[name]
    fitted = fit_logreg(x, y, (1e-2, 1.0), classes)
    for p, (c, tolerance) in enumerate(((1e-2, 1e-6), (1.0, 1e-5))):
        weight, bias = (t[p].double().requires_grad_() for t in (fitted.weight, fitted.bias))
        logits = x.double() @ weight + bias
        value = c * F.cross_entropy(logits, y, reduction="sum") + weight.square().sum() / 2
        slope = torch.autograd.grad(value, [weight, bias])
        # the penalty makes the objective 1-strongly convex in the weights: this bounds the distance to the optimum
        assert slope[0].square().sum() / 2 <= 100 * tolerance * value
        assert slope[1].abs().max() <= 1e-2 * c * len(x)


def test_top1_at_the_c_selected_by_each_is_that_of_scikit_learn() -> None:
    data = load_digits()
    x, y = torch.tensor(data.data / 16).float(), torch.tensor(data.target)
    fit, validation, test = slice(0, 600), slice(600, 900), slice(900, None)

    theirs = [LogisticRegression(C=c, max_iter=2000).fit(x[fit], y[fit]) for c in GRID]
    best = max(theirs, key=lambda m: m.score(x[validation], y[validation]))  # the first one among equals
    fitted = fit_logreg(x[fit], y[fit], GRID, 10)
    ours = int((fitted.predict(x[validation]) == y[validation]).double().mean(1).argmax())
    top1 = (fitted.predict(x[test])[ours] == y[test]).double().mean()
    assert top1.item() == pytest.approx(best.score(x[test], y[test]), abs=0.005)


def test_wide_and_tall_paths_agree() -> None:
    x, y, classes = DATA["wide"]
    wide = fit_logreg(x, y, (1.0,), classes)
    rotation = torch.linalg.svd(x - x.mean(0), full_matrices=False)[2]  # the span: at most n - 1 dimensions
    tall = fit_logreg(x @ rotation[: len(x) - 1].T, y, (1.0,), classes)
    assert wide.objective.item() == pytest.approx(tall.objective.item(), rel=1e-5)


def test_result_does_not_depend_on_the_order_of_c_and_is_deterministic() -> None:
    x, y, classes = DATA["overlapping"]
    one, two, shuffled = (fit_logreg(x, y, grid, classes) for grid in ((0.1, 10.0), (0.1, 10.0), (10.0, 0.1)))
    assert torch.equal(one.weight, two.weight)
    assert torch.equal(one.bias, two.bias)
    assert torch.equal(one.weight, shuffled.weight.flip(0))
    assert shuffled.c_values == (10.0, 0.1)


def test_a_c_that_has_converged_leaves_and_the_others_go_on() -> None:
    x, y, classes = DATA["digits"]
    together = fit_logreg(x, y, GRID, classes)
    assert together.iterations[0] < together.iterations.max() / 2
    for p, c in enumerate(GRID):
        alone = fit_logreg(x, y, (c,), classes)
        assert alone.objective.item() == pytest.approx(together.objective[p].item(), rel=CLOSE, abs=MEAN * c * len(x))


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("grid", [(1e6,), (1e-5, 1e6), (1e-5, 1e-2, 1e6)])
def test_a_large_c_ends_at_the_same_weights_whatever_came_before(grid: tuple[float, ...], classes: int) -> None:
    """From zeros it would end at weights that fit the training images, and are many times as large."""
    x, y, _ = DATA["digits"]
    x, y = x[y < classes], y[y < classes]
    path = fit_logreg(x, y, [10.0**i for i in range(-5, 7)], classes)
    other = fit_logreg(x, y, grid, classes)
    assert float(other.weight[-1].norm()) < 1.2 * float(path.weight[-1].norm())
    assert other.objective[-1].item() < 1.5 * path.objective[-1].item()


def test_the_basis_of_all_images_serves_a_part_of_them() -> None:
    for name in ("overlapping", "wide"):
        x, y, classes = DATA[name]
        part = torch.arange(len(y)) % 3 > 0
        shared = PathSolver(Eigenbasis.of(x).take(part), y[part], classes).fit((1e-2, 1.0))
        own = fit_logreg(x[part], y[part], (1e-2, 1.0), classes)
        assert torch.allclose(shared.objective, own.objective, rtol=1e-4)
        for p, c in enumerate((1e-2, 1.0)):
            value = objective(x[part], y[part], shared.weight[p], shared.bias[p], c)
            assert value == pytest.approx(shared.objective[p].item(), rel=1e-4)


def test_groups_of_c_reach_the_same_objectives(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, classes = DATA["overlapping"]
    together = fit_logreg(x, y, GRID, classes)
    monkeypatch.setattr(logreg, "GROUP", 3 * classes)
    groups = fit_logreg(x, y, GRID, classes)
    for p, c in enumerate(GRID):
        expected = together.objective[p].item()
        assert groups.objective[p].item() == pytest.approx(expected, rel=CLOSE, abs=MEAN * c * len(x))


def test_start_near_the_solution_saves_iterations_and_a_bad_start_does_no_harm() -> None:
    x, y, classes = DATA["digits"]
    cold = fit_logreg(x, y, (1e2,), classes)
    warm = fit_logreg(x, y, (1e2,), classes, start=(cold.weight[0], cold.bias[0]))
    assert warm.iterations.item() < cold.iterations.item() / 4
    far = fit_logreg(x, y, (1e-4,), classes, start=(30 * cold.weight[0], 30 * cold.bias[0]))
    assert far.objective.item() == pytest.approx(fit_logreg(x, y, (1e-4,), classes).objective.item(), rel=1e-4)


@given(shift=st.floats(-50, 50), seed=st.integers(0, 100))
@settings(max_examples=10, deadline=None)
def test_shifted_features_change_nothing_because_the_intercept_is_free(shift: float, seed: int) -> None:
    x, y, classes = DATA["overlapping"]
    rotation = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(seed)))[0]
    plain = fit_logreg(x, y, (1.0,), classes)
    moved = fit_logreg(x @ rotation + shift, y, (1.0,), classes)
    assert moved.objective.item() == pytest.approx(plain.objective.item(), rel=1e-4)


def test_heavy_penalty_gives_class_frequencies() -> None:
    x, y, classes = DATA["overlapping"]
    fitted = fit_logreg(x, y, (1e-9,), classes)
    probability = (x @ fitted.weight[0] + fitted.bias[0]).softmax(1).mean(0)
    assert torch.allclose(probability, y.bincount() / len(y), atol=1e-3)
    entropy = -(probability * probability.log()).sum().item()
    assert fitted.objective.item() == pytest.approx(1e-9 * len(y) * entropy, rel=1e-3)


def test_cross_entropy_is_exact_where_it_is_tiny_or_huge_and_yields_no_subnormals() -> None:
    logits = torch.tensor([[30.0, 0.0, -5.0], [0.0, 500.0, 3.0], [95.0, 1.0, 0.0]])  # the true class is 0
    margins = (logits - logits[:, :1])[:, None].clone()
    margins[:, :, 0] = -torch.inf
    for i in range(3):
        loss, wrong = softmax.cross_entropy(margins[i : i + 1].mT)
        exact = math.log1p(sum(math.exp(m) for m in margins[i, 0].tolist()))
        assert loss.item() == pytest.approx(exact, rel=1e-5, abs=1e-29)
        assert ((wrong == 0) | (wrong > torch.finfo(torch.float32).tiny)).all()


def test_iteration_limit_is_kept_and_reported() -> None:
    x, y, classes = DATA["digits"]
    fitted = fit_logreg(x, y, (1.0,), classes, max_iterations=3)
    assert fitted.iterations.item() == 3
    assert not fitted.converged.item()
    assert math.isfinite(fitted.objective.item())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"classes": 1}, "at least two classes"),
        ({"classes": 3}, "labels must lie in 0..2"),
        ({"c_values": (1.0, -1.0)}, "all of them positive"),
        ({"c_values": ()}, "at least one C"),
        ({"x": torch.full((600, 4), torch.nan)}, "not finite"),
        ({"y": torch.zeros(3).long()}, r"labels \[n\]"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(change: dict[str, object], sentence: str) -> None:
    x, y, classes = DATA["digits"]
    arguments = {"x": x, "y": y, "c_values": (1.0,), "classes": classes} | change
    with pytest.raises(UnicError, match=sentence):
        fit_logreg(**arguments)  # type: ignore[arg-type]
