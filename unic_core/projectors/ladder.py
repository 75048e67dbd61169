"""A two-layer MLP on every block, summed over the blocks, computed for all teachers together.

Mathematically the prediction for teacher t and token kind k is the plain sum over blocks b

    y[t, k] = sum_b  W2[t, k, b] GELU(W1[t, k, b] x[k, b] + c1[t, k, b]) + c2[t, k, b]        (section 1.2)

For each kind it is computed with one matrix product per block (the W1 of all teachers stacked) and one per
teacher (the W2 of all blocks side by side, over the concatenated hidden units). The sum over blocks then
happens inside the accumulator of that product, in fp32 even under autocast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unic_core.projectors.base import Projectors, Targets, init_linear, part_name
from unic_core.tokens import TOKEN_KINDS, Features, Tokens


class Ladder(Projectors):
    """MLPs on the blocks `hidden` ({block number: hidden size}), for cls and patch tokens separately.

    `pre_norm` puts a LayerNorm before each first layer, `mid_norm` one between first layer and GELU;
    `bias` False leaves out the biases of the linear maps. Weights: truncated normal of std `init_std`.
    """

    def __init__(
        self,
        targets: Targets,
        width: int,
        hidden: Mapping[int, int],
        *,
        pre_norm: bool = False,
        mid_norm: bool = False,
        bias: bool = True,
        init_std: float = 0.02,
    ) -> None:
        super().__init__(targets)
        self.hidden = dict(sorted(hidden.items()))
        for kind in TOKEN_KINDS:
            widths = {teacher: kinds[kind] for teacher, kinds in self.targets.items() if kind in kinds}
            if widths:
                self.add_module(kind, FusedMLPs(widths, width, self.hidden, pre_norm, mid_norm, bias))
        init_linear(self, init_std)

    def forward(self, blocks: Sequence[Tokens]) -> Features:
        """See Projectors.forward."""
        features: Features = {teacher: {} for teacher in self.targets}
        for kind in TOKEN_KINDS:
            part = self._modules.get(kind)
            if part is not None:
                for teacher, prediction in part([blocks[number].of(kind) for number in self.hidden]).items():
                    features[teacher][kind] = prediction
        return features


class FusedMLPs(nn.Module):
    """The ladder of one token kind, for the teachers `widths` ({teacher: width})."""

    def __init__(
        self,
        widths: Mapping[str, int],
        width: int,
        hidden: Mapping[int, int],
        pre_norm: bool,
        mid_norm: bool,
        bias: bool,
    ) -> None:
        super().__init__()
        self.teachers = list(widths)
        count = len(widths)
        self.first = nn.ModuleDict(
            {str(b): StackedLinear(count, width, size, pre_norm, mid_norm, bias) for b, size in hidden.items()}
        )
        total = sum(hidden.values())
        self.second = nn.ModuleDict(
            {part_name(teacher): SummedLinear(len(hidden), total, out, bias) for teacher, out in widths.items()}
        )

    def forward(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """inputs: per block [..., D]. Returns {teacher: [..., D_t]}."""
        # [block][teacher] -> [..., hidden]; the pieces are views, the concatenation below is the only copy
        hidden = [first(x).chunk(len(self.teachers), -1) for first, x in zip(self.first.values(), inputs, strict=True)]
        predictions = {}
        for i, teacher in enumerate(self.teachers):
            joined = torch.cat([pieces[i] for pieces in hidden], dim=-1)
            predictions[teacher] = self.second[part_name(teacher)](F.gelu(joined))
        return predictions


class StackedLinear(nn.Linear):
    """The first layers of `count` MLPs with the same input, and their norms: [..., D] -> [..., count * hidden]."""

    def __init__(self, count: int, width: int, hidden: int, pre_norm: bool, mid_norm: bool, bias: bool) -> None:
        super().__init__(width, count * hidden, bias)
        self.count = count
        self.pre_norm = StackedAffine(count * width) if pre_norm else None
        self.mid_norm = StackedAffine(count * hidden) if mid_norm else None

    def forward(self, input: Tensor) -> Tensor:
        """input: the tokens of one block, [..., D]."""
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if self.pre_norm is not None:
            # The MLPs' norms differ in their affine part alone: W (g * n + b) + c = (W g) n + (W b + c).
            input = F.layer_norm(input, (self.in_features,))
            per_mlp = weight.view(self.count, -1, self.in_features)
            scale, shift = (p.view(self.count, 1, -1) for p in (self.pre_norm.weight, self.pre_norm.bias))
            offset = (per_mlp * shift).sum(-1).flatten()
            weight = (per_mlp * scale).flatten(0, 1)
            bias = offset if bias is None else bias + offset
        hidden = F.linear(input, weight, bias)
        if self.mid_norm is None:
            return hidden
        per_mlp = hidden.view(*hidden.shape[:-1], self.count, -1)
        normed = F.layer_norm(per_mlp, per_mlp.shape[-1:]).flatten(-2)
        return torch.addcmul(self.mid_norm.bias, normed, self.mid_norm.weight)


class StackedAffine(nn.Module):
    """Scale and shift of several LayerNorms, one after the other: two vectors."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))


class SummedLinear(nn.Linear):
    """The second layers of all blocks' MLPs and their sum: [..., total hidden] -> [..., D_t].

    There is one bias per block, [blocks, D_t], as in the plain sum: under AdamW a single, pre-summed bias
    would learn more slowly.
    """

    def __init__(self, blocks: int, total: int, out: int, bias: bool) -> None:
        super().__init__(total, out, bias=False)
        if bias:
            self.bias = nn.Parameter(torch.zeros(blocks, out))

    def forward(self, input: Tensor) -> Tensor:
        """input: the hidden units of all blocks, [..., total hidden]."""
        return F.linear(input, self.weight, None if self.bias is None else self.bias.sum(0))
