"""What L-BFGS remembers, against the two loops of the textbook, pair by pair."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unic_core.evals.curvature import Curvature
from unic_core.evals.inverse_hessian import MEMORY, InverseHessian, Pairs

CS, CLASSES, WIDTH = 2, 3, 7
SHAPE = (CS, CLASSES, WIDTH)


def start() -> Curvature:
    """A positive definite starting matrix with a block."""
    root = torch.randn(CS, CLASSES * 2, CLASSES * 2).double()
    return Curvature(torch.rand(SHAPE).double() + 0.5, root @ root.mT + torch.eye(CLASSES * 2).double())


def steps_and_changes(count: int) -> list[tuple[Tensor, Tensor]]:
    """Of a quadratic function for every C: all have positive curvature."""
    root = torch.randn(CS, CLASSES * WIDTH, CLASSES * WIDTH).double()
    hessian = root @ root.mT + torch.eye(CLASSES * WIDTH).double()
    steps = [torch.randn(SHAPE).double() for _ in range(count)]
    return [(step, (hessian @ step.flatten(1)[:, :, None]).view(SHAPE)) for step in steps]


def two_loops(gradient: Tensor, curvature: Curvature, p: int, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Nocedal & Wright, algorithm 7.4, for one C, the starting matrix scaled as in equation 7.20."""
    pairs = [(s[p].flatten(), y[p].flatten()) for s, y in pairs]
    only = Curvature(curvature.diagonal[p : p + 1], curvature.block[p : p + 1])

    def first(vector: Tensor) -> Tensor:
        return only.apply(vector.view(1, CLASSES, WIDTH)).flatten()

    q, alphas = gradient[p].flatten(), []
    for s, y in reversed(pairs):
        alphas.append(s @ q / (s @ y))
        q = q - alphas[-1] * y
    s, y = pairs[-1]
    r = (s @ y) / (y @ first(y)) * first(q)
    for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
        r = r + (alpha - y @ r / (s @ y)) * s
    return r.view(CLASSES, WIDTH)


def learned(curvature: Curvature, pairs: list[tuple[Tensor, Tensor]]) -> InverseHessian:
    inverse = InverseHessian(curvature, Pairs.none(torch.zeros(SHAPE).double()))
    for step, change in pairs:
        inverse.learn(step, change)
    return inverse


@given(count=st.integers(1, 2 * MEMORY + 3))
@settings(max_examples=20, deadline=None)
def test_both_forms_are_the_same_matrix(count: int) -> None:
    curvature, pairs, gradient = start(), steps_and_changes(count), torch.randn(SHAPE).double()
    found = learned(curvature, pairs).apply(gradient)
    for p in range(CS):
        expected = two_loops(gradient, curvature, p, pairs[-MEMORY:])
        assert torch.allclose(found[p], expected, rtol=1e-6, atol=1e-8)


def test_the_last_change_leads_back_to_its_step() -> None:
    pairs = steps_and_changes(5)
    step, change = pairs[-1]
    assert torch.allclose(learned(start(), pairs).apply(change), step)


def test_without_steps_the_starting_matrix_stands_alone() -> None:
    curvature, gradient = start(), torch.randn(SHAPE).double()
    assert torch.equal(learned(curvature, []).apply(gradient), curvature.apply(gradient))


def test_a_step_without_curvature_teaches_nothing_where_it_lacks_it() -> None:
    curvature, pairs, gradient = start(), steps_and_changes(4), torch.randn(SHAPE).double()
    step, change = (t.clone() for t in pairs[1])
    change[0] = -change[0]  # the first C alone
    found = learned(curvature, [pairs[0], (step, change), *pairs[2:]]).apply(gradient)
    assert torch.allclose(found[0], two_loops(gradient, curvature, 0, [pairs[0], *pairs[2:]]))
    assert torch.allclose(found[1], two_loops(gradient, curvature, 1, pairs))


def test_another_starting_matrix_keeps_the_steps() -> None:
    pairs, gradient = steps_and_changes(MEMORY + 5), torch.randn(SHAPE).double()
    other = start()
    moved = InverseHessian(other, learned(start(), pairs).pairs)
    assert torch.allclose(moved.apply(gradient), learned(other, pairs).apply(gradient))


def test_some_values_of_c_are_as_all_of_them() -> None:
    inverse, gradient = learned(start(), steps_and_changes(6)), torch.randn(SHAPE).double()
    chosen = torch.tensor([False, True])
    assert torch.allclose(inverse.take(chosen).apply(gradient[chosen]), inverse.apply(gradient)[chosen])


def test_at_another_c_only_the_loss_changes_its_share() -> None:
    """A quadratic loss with Hessian A: the change of the gradient is (C * A + penalty) times the step."""
    penalty = torch.cat([torch.ones(WIDTH - 1), torch.zeros(1)]).double()
    old, new = (torch.tensor(c).double()[:, None, None] for c in ([0.5, 2.0], [5.0, 1.0]))
    quadratic = steps_and_changes(4)
    before = learned(start(), [(step, old * change + penalty * step) for step, change in quadratic])
    after = learned(start(), [(step, new * change + penalty * step) for step, change in quadratic])
    moved = before.pairs.at(penalty, (new / old).flatten())
    assert torch.allclose(moved.changes, after.pairs.changes)
    assert torch.equal(moved.steps, after.pairs.steps)


def test_a_step_that_loses_its_curvature_at_another_c_is_dropped() -> None:
    step, penalty = torch.randn(SHAPE).double(), torch.ones(WIDTH).double()
    before = learned(start(), [(step, 0.5 * step)]).pairs  # the loss bends down by half as much as the penalty up
    moved = before.at(penalty, torch.tensor([1.0, 4.0]).double())
    assert torch.equal(moved.steps[0], before.steps[0])
    assert not moved.steps[1].any()
    assert not moved.changes[1].any()
