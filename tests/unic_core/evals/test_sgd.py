"""Heads trained together against torch's SGD, one head at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unic_core.errors import UnicError
from unic_core.evals import sgd
from unic_core.evals.sgd import Heads, draw_settings, fit_heads, learning_rate

LRS, DECAYS = (0.5, 5.0, 30.0), (1e-4, 1e-6, 0.05)


def blobs(n: int = 300, width: int = 6, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % classes
    centers = torch.randn(classes, width, generator=generator)
    return centers[y] + torch.randn(n, width, generator=generator) / 2, y


def alone(x: Tensor, y: Tensor, lr: float, decay: float, epochs: int, seed: int) -> nn.Linear:
    """The protocol with torch's own parts."""
    head = nn.Linear(x.shape[1], int(y.max()) + 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.SGD(head.parameters(), lr, momentum=0.9, weight_decay=decay)
    rng = np.random.default_rng(seed)
    x = F.normalize(x, dim=1)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(lr, epoch, epochs)
        for chosen in torch.from_numpy(rng.permutation(len(x))).split(sgd.BATCH):
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(head(x[chosen]), y[chosen]))
            optimizer.step()
    return head


def test_heads_equal_torch_sgd_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sgd, "BATCH", 64)
    x, y = blobs()
    heads = fit_heads(x, y, LRS, DECAYS, 4, epochs=6, seed=3)
    for h, (lr, decay) in enumerate(zip(LRS, DECAYS, strict=True)):
        head = alone(x, y, lr, decay, epochs=6, seed=3)
        assert torch.allclose(heads.weight[h], head.weight, rtol=1e-3, atol=1e-4)
        assert torch.allclose(heads.bias[h], head.bias, rtol=1e-3, atol=1e-4)
        assert torch.equal(heads.predict(x)[h], head(F.normalize(x, dim=1)).argmax(1))


def test_groups_of_heads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = blobs()
    together = fit_heads(x, y, LRS, DECAYS, 4, epochs=4, seed=0)
    monkeypatch.setattr(sgd, "LOGITS", 1)
    apart = fit_heads(x, y, LRS, DECAYS, 4, epochs=4, seed=0)
    assert torch.allclose(together.weight, apart.weight, rtol=1e-3, atol=1e-4)


def test_rate_is_full_in_the_first_two_epochs_and_falls_to_almost_nothing() -> None:
    rates = [learning_rate(2.0, epoch, 100) for epoch in range(100)]
    assert rates[0] == rates[1] == 2.0
    assert rates == sorted(rates, reverse=True)
    assert rates[51] == pytest.approx(1.0)
    assert 0 < rates[-1] < 0.01


def test_settings_fill_the_ranges_and_depend_on_the_seed_alone() -> None:
    lrs, decays = draw_settings(400, seed=22)
    assert (lrs, decays) == draw_settings(400, seed=22)
    assert 0.1 <= min(lrs) < 0.2
    assert 50 < max(lrs) <= 100
    assert 1e-12 <= min(decays) < 1e-11
    assert 1e-5 < max(decays) <= 1e-4
    assert np.median(np.log10(lrs)) == pytest.approx(0.5, abs=0.2)


def test_scale_of_features_does_not_matter() -> None:
    x, y = blobs()
    plain, scaled = (fit_heads(x * s, y, LRS, DECAYS, 4, epochs=2, seed=0) for s in (1, 1000))
    assert torch.allclose(plain.weight, scaled.weight, rtol=1e-3, atol=1e-4)


def test_bad_input_is_refused() -> None:
    x, y = blobs()
    with pytest.raises(UnicError, match="needs images and pairs of settings"):
        fit_heads(x, y, (1.0,), (), 4, epochs=1, seed=0)
    with pytest.raises(UnicError, match="every head of the SGD probe diverged"):
        fit_heads(x.fill_(torch.nan), y, (1.0,), (0.0,), 4, epochs=1, seed=0)
    assert Heads(torch.zeros(2, 3, 4), torch.zeros(2, 3)).predict(torch.ones(5, 4)).shape == (2, 5)
