"""Tiny checkpoints in the layouts of the published models, and plain forward passes written for those layouts.

They are written from the papers' equations and know nothing of timm: what a converter gives is compared with them.
Each forward pass returns all normed tokens [B, P + N, D].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

DIM, DEPTH, HEADS, PATCH, SIZE = 32, 2, 2, 8, 32
TOKENS = (SIZE // PATCH) ** 2
State = dict[str, Tensor]


def values(*shape: int) -> Tensor:
    return torch.randn(*shape) * 0.2


def linear(state: State, name: str, out: int, inside: int) -> None:
    state[f"{name}.weight"], state[f"{name}.bias"] = values(out, inside), values(out)


def norm(state: State, name: str, dim: int = DIM) -> None:
    state[f"{name}.weight"], state[f"{name}.bias"] = 1 + values(dim), values(dim)


def apply(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def normed(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention over heads, written out: [B, N, D] -> [B, N, D]."""
    q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (q, k, v))
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def embed(weight: Tensor, bias: Tensor | None, images: Tensor) -> Tensor:
    return F.conv2d(images, weight, bias, stride=weight.shape[-1]).flatten(2).transpose(1, 2)


# ---------------------------------------------------------------- DINO, iBOT, DeiT-III, dBOT, DINOv2


def vit_state(
    scale: str | None = None, swiglu: bool = False, positions: int = 1 + TOKENS, final: str = "norm", dim: int = DIM
) -> State:
    """A ViT as the DINO family saves it; `scale` names the two LayerScales."""
    state: State = {"cls_token": values(1, 1, dim), "pos_embed": values(1, positions, dim)}
    state["patch_embed.proj.weight"], state["patch_embed.proj.bias"] = values(dim, 3, PATCH, PATCH), values(dim)
    for i in range(DEPTH):
        block = f"blocks.{i}."
        norm(state, block + "norm1", dim)
        linear(state, block + "attn.qkv", 3 * dim, dim)
        linear(state, block + "attn.proj", dim, dim)
        norm(state, block + "norm2", dim)
        if swiglu:
            linear(state, block + "mlp.w12", 2 * 88, dim)
            linear(state, block + "mlp.w3", dim, 88)
        else:
            linear(state, block + "mlp.fc1", 4 * dim, dim)
            linear(state, block + "mlp.fc2", dim, 4 * dim)
        if scale is not None:
            for n in (1, 2):
                state[block + scale.format(n=n)] = values(dim)
    norm(state, final, dim)
    return state


def vit_blocks(state: State, x: Tensor, scale: str | None = None) -> list[Tensor]:
    """The raw residual stream after every block."""
    streams = []
    for i in range(DEPTH):
        block = f"blocks.{i}."
        gains = [state[block + scale.format(n=n)] if scale else 1.0 for n in (1, 2)]
        qkv = apply(state, block + "attn.qkv", normed(state, block + "norm1", x, 1e-6))
        x = x + gains[0] * apply(state, block + "attn.proj", attend(*qkv.chunk(3, -1)))
        inner = normed(state, block + "norm2", x, 1e-6)
        if block + "mlp.w12.weight" in state:
            gate, value = apply(state, block + "mlp.w12", inner).chunk(2, -1)
            branch = apply(state, block + "mlp.w3", F.silu(gate) * value)
        else:
            branch = apply(state, block + "mlp.fc2", F.gelu(apply(state, block + "mlp.fc1", inner)))
        x = x + gains[1] * branch
        streams.append(x)
    return streams


def vit_tokens(state: State, images: Tensor) -> Tensor:
    """Class token and patches with their positions: DINO, iBOT, dBOT, DINOv2."""
    patches = embed(state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], images)
    x = torch.cat([state["cls_token"].expand(len(images), -1, -1), patches], 1)
    return x + state["pos_embed"]


def dino(state: State, images: Tensor) -> Tensor:
    return normed(state, "norm", vit_blocks(state, vit_tokens(state, images))[-1], 1e-6)


def deit3(state: State, images: Tensor) -> Tensor:
    """Positions belong to patches alone; the class token is put in front afterwards."""
    patches = embed(state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], images) + state["pos_embed"]
    x = torch.cat([state["cls_token"].expand(len(images), -1, -1), patches], 1)
    return normed(state, "norm", vit_blocks(state, x, "gamma_{n}")[-1], 1e-6)


def dinov2(state: State, images: Tensor) -> Tensor:
    """Registers are put between class token and patches after the positions are added."""
    x = vit_tokens(state, images)
    if "register_tokens" in state:
        registers = state["register_tokens"].expand(len(images), -1, -1)
        x = torch.cat([x[:, :1], registers, x[:, 1:]], 1)
    return normed(state, "norm", vit_blocks(state, x, "ls{n}.gamma")[-1], 1e-6)


def dbot(state: State, images: Tensor) -> tuple[Tensor, Tensor]:
    """(mean patch token through fc_norm, raw patch tokens)."""
    patches = vit_blocks(state, vit_tokens(state, images))[-1][:, 1:]
    return normed(state, "fc_norm", patches.mean(1), 1e-6), patches


# ---------------------------------------------------------------- CLIP


def clip_openai_state() -> State:
    state: State = {"class_embedding": values(DIM), "positional_embedding": values(1 + TOKENS, DIM)}
    state["conv1.weight"], state["proj"] = values(DIM, 3, PATCH, PATCH), values(DIM, 16)
    norm(state, "ln_pre")
    norm(state, "ln_post")
    for i in range(DEPTH):
        block = f"transformer.resblocks.{i}."
        norm(state, block + "ln_1")
        norm(state, block + "ln_2")
        state[block + "attn.in_proj_weight"], state[block + "attn.in_proj_bias"] = values(3 * DIM, DIM), values(3 * DIM)
        linear(state, block + "attn.out_proj", DIM, DIM)
        linear(state, block + "mlp.c_fc", 4 * DIM, DIM)
        linear(state, block + "mlp.c_proj", DIM, 4 * DIM)
    return state


def clip_openai(state: State, images: Tensor) -> Tensor:
    x = torch.cat([state["class_embedding"].expand(len(images), 1, -1), embed(state["conv1.weight"], None, images)], 1)
    x = normed(state, "ln_pre", x + state["positional_embedding"], 1e-5)
    for i in range(DEPTH):
        block = f"transformer.resblocks.{i}."
        inner = normed(state, block + "ln_1", x, 1e-5)
        qkv = inner @ state[block + "attn.in_proj_weight"].T + state[block + "attn.in_proj_bias"]
        x = x + apply(state, block + "attn.out_proj", attend(*qkv.chunk(3, -1)))
        hidden = apply(state, block + "mlp.c_fc", normed(state, block + "ln_2", x, 1e-5))
        x = x + apply(state, block + "mlp.c_proj", hidden * torch.sigmoid(1.702 * hidden))
    return normed(state, "ln_post", x, 1e-5)


def clip_hf_state() -> State:
    state: State = {
        "embeddings.class_embedding": values(DIM),
        "embeddings.patch_embedding.weight": values(DIM, 3, PATCH, PATCH),
        "embeddings.position_embedding.weight": values(1 + TOKENS, DIM),
        "embeddings.position_ids": torch.arange(1 + TOKENS)[None],
    }
    norm(state, "pre_layrnorm")
    norm(state, "post_layernorm")
    for i in range(DEPTH):
        block = f"encoder.layers.{i}."
        norm(state, block + "layer_norm1")
        norm(state, block + "layer_norm2")
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(state, f"{block}self_attn.{name}", DIM, DIM)
        linear(state, block + "mlp.fc1", 4 * DIM, DIM)
        linear(state, block + "mlp.fc2", DIM, 4 * DIM)
    return state


def clip_hf(state: State, images: Tensor) -> Tensor:
    patches = embed(state["embeddings.patch_embedding.weight"], None, images)
    x = torch.cat([state["embeddings.class_embedding"].expand(len(images), 1, -1), patches], 1)
    x = normed(state, "pre_layrnorm", x + state["embeddings.position_embedding.weight"], 1e-5)
    for i in range(DEPTH):
        block = f"encoder.layers.{i}."
        inner = normed(state, block + "layer_norm1", x, 1e-5)
        q, k, v = (apply(state, f"{block}self_attn.{n}_proj", inner) for n in "qkv")
        x = x + apply(state, block + "self_attn.out_proj", attend(q, k, v))
        hidden = apply(state, block + "mlp.fc1", normed(state, block + "layer_norm2", x, 1e-5))
        x = x + apply(state, block + "mlp.fc2", hidden * torch.sigmoid(1.702 * hidden))
    return normed(state, "post_layernorm", x, 1e-5)
