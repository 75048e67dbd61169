"""The confusion matrix for the page of a run."""

from __future__ import annotations

import torch

from workflows.confusion import count, most_confused, names


def test_rows_are_the_truth_and_columns_the_predictions() -> None:
    truth, predicted = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 0, 2, 3])
    assert count(truth, predicted).tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 1, 1], [0, 0, 0, 0]]


def test_the_most_confused_classes_are_kept_in_their_order() -> None:
    counts = torch.tensor([[5, 0, 2], [0, 9, 0], [1, 0, 4]])
    found = most_confused(counts, ["a", "b", "c"], most=2)
    assert found.classes == ["a", "c"]
    assert found.matrix == [[5, 2], [1, 4]]
    assert most_confused(counts, ["a", "b", "c"]).matrix == counts.tolist()


def test_a_class_without_a_name_is_its_number() -> None:
    assert [names(("cat",), label) for label in range(2)] == ["cat", "1"]
