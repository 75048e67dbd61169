"""kNN against a plain definition in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unic_core.errors import UnicError
from unic_core.evals import knn
from unic_core.evals.knn import classify_knn


def by_definition(train: Tensor, labels: Tensor, test: Tensor, k: int, temperature: float, classes: int) -> list[int]:
    a, b = (t.double().numpy() / np.linalg.norm(t.double().numpy(), axis=1, keepdims=True) for t in (train, test))
    predictions = []
    for row in b @ a.T:
        votes = np.zeros(classes)
        for i in np.argsort(-row)[:k]:
            votes[labels[i]] += np.exp(row[i] / temperature)
        predictions.append(int(votes.argmax()))
    return predictions


@given(
    n=st.integers(1, 30),
    m=st.integers(1, 12),
    width=st.integers(2, 8),
    classes=st.integers(1, 5),
    ks=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    temperature=st.sampled_from([0.07, 0.5, 5.0]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_every_k_equals_the_definition(
    n: int, m: int, width: int, classes: int, ks: list[int], temperature: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    train, test = (torch.randn(rows, width, generator=generator) for rows in (n, m))
    labels = torch.randint(0, classes, (n,), generator=generator)
    found = classify_knn(train, labels, test, ks, temperature, classes)
    assert set(found) == set(ks)
    for k in ks:
        assert found[k].tolist() == by_definition(train, labels, test, k, temperature, classes)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test, labels = torch.randn(50, 6), torch.randn(33, 6), torch.randint(0, 4, (50,))
    whole = classify_knn(train, labels, test, (3, 9), 0.07, 4)
    monkeypatch.setattr(knn, "SIMILARITIES", 50 * 4)
    blocks = classify_knn(train, labels, test, (3, 9), 0.07, 4)
    assert all(torch.equal(whole[k], blocks[k]) for k in (3, 9))


def test_scale_of_features_and_small_temperatures_do_no_harm() -> None:
    train, labels = torch.randn(40, 5), torch.randint(0, 3, (40,))
    own = classify_knn(train * 1e4, labels, train * 1e-4, (40,), 1e-4, 3)[40]
    assert torch.equal(own, labels)  # the image itself outvotes all others


def test_many_weak_votes_beat_a_close_one_at_high_temperature() -> None:
    train = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.8, 0.6], [0.8, 0.6]])
    labels = torch.tensor([0, 1, 1, 1])
    test = torch.tensor([[1.0, 0.0]])
    assert classify_knn(train, labels, test, (4,), 100.0, 2)[4].item() == 1
    assert classify_knn(train, labels, test, (4,), 0.07, 2)[4].item() == 0


@pytest.mark.parametrize(
    ("train", "ks", "temperature", "sentence"),
    [
        (torch.zeros(0, 4), (1,), 0.07, "cannot compare"),
        (torch.zeros(3, 5), (1,), 0.07, "cannot compare"),
        (torch.zeros(3, 4), (0,), 0.07, "positive k"),
        (torch.zeros(3, 4), (1,), 0.0, "positive k and temperature"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(
    train: Tensor, ks: tuple[int, ...], temperature: float, sentence: str
) -> None:
    with pytest.raises(UnicError, match=sentence):
        classify_knn(train, torch.zeros(len(train)).long(), torch.zeros(2, 4), ks, temperature, 2)
