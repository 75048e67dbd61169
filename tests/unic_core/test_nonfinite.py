from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unic_core.nonfinite import FiniteWatch
from unic_core.task import LossReport


def report(losses: Tensor, first_sample: int) -> LossReport:
    samples = torch.arange(first_sample, first_sample + losses.shape[1])
    return LossReport(losses.mean(), losses, {}, torch.ones_like(losses), samples)


@given(
    step=st.integers(0, 5), teacher=st.integers(0, 1), image=st.integers(0, 3), value=st.sampled_from(["nan", "inf"])
)
def test_names_the_first_step_image_and_teacher(step: int, teacher: int, image: int, value: str) -> None:
    watch = FiniteWatch(["a", "b"], lambda sample: f"image-{sample}")
    for i in range(6):
        losses = torch.ones(2, 4)
        if i == step:
            losses[teacher, image] = float(value)
        if i > step:
            losses[:] = float("nan")
        watch.add(10 + i, [report(losses, 100 * i)])
    expected = (
        f"at step {10 + step} for 1 of 4 images, first image-{100 * step + image} against teacher {'ab'[teacher]}"
    )
    assert watch.explain() == expected


def test_weights_that_broke_show_in_all_images() -> None:
    watch = FiniteWatch(["a"], str)
    watch.add(3, [report(torch.full((1, 2), float("nan")), 0), report(torch.full((1, 2), float("nan")), 2)])
    assert watch.explain() == "at step 3 for all images, first 0 against teacher a"


def test_a_broken_sum_of_finite_losses_is_said() -> None:
    watch = FiniteWatch(["a"], str)
    watch.add(3, [report(torch.ones(1, 2), 0)])
    assert "although every image's loss is finite" in watch.explain()
