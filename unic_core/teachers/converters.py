"""Key layouts of published checkpoints, turned into timm's.

A converter is a pure function from state dict to state dict; those for ViTs leave one that is in timm's layout
already as it is. `convert` applies one by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from unic_core.errors import UnicError

State = dict[str, Tensor]
Converter = Callable[[State], State]

_CONTAINERS = ("teacher", "state_dict", "model", "model_state", "module")
_PREFIXES = ("module.", "backbone.")


def unwrap(checkpoint: Any) -> State:
    """The tensors of a checkpoint, without containers (`state_dict`, ...) and prefixes (`module.`, `backbone.`)."""
    state = checkpoint
    while isinstance(state, Mapping) and not any(isinstance(value, Tensor) for value in state.values()):
        inner = next((state[key] for key in _CONTAINERS if key in state), None)
        if inner is None:
            raise UnicError(
                f"the checkpoint holds no weights under {', '.join(_CONTAINERS)}; save its state dict alone"
            )
        state = inner
    if not isinstance(state, Mapping):
        raise UnicError(f"the checkpoint is a {type(state).__name__}, not a state dict; save its state dict alone")
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    for prefix in _PREFIXES:
        # a wrapper of backbone and head: the head of the pretext task goes
        if any(key.startswith(prefix) for key in tensors):
            tensors = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return tensors


def from_timm(state: State) -> State:
    """timm's own layout; also that of DINO, iBOT and dBOT, which are plain ViTs."""
    return state


def from_deit3(state: State) -> State:
    """DeiT-III: LayerScale is called gamma_1, gamma_2."""
    return {re.sub(r"\.gamma_([12])$", r".ls\1.gamma", key): value for key, value in state.items()}


def from_dinov2(state: State) -> State:
    """DINOv2 with or without registers: names of the SwiGLU, and timm's place for the class token's position.

    With registers timm keeps positions for patches only, so that of the class token is added to the token itself.
    """
    renames = {".mlp.w12.": ".mlp.fc1.", ".mlp.w3.": ".mlp.fc2."}
    state = {_renamed(key, renames): value for key, value in state.items() if key != "mask_token"}
    if "register_tokens" in state:
        state["reg_token"] = state.pop("register_tokens")
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]
    # training checkpoints number the blocks within chunks
    return {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key): value for key, value in state.items()}


def from_metaclip(state: State) -> State:
    """The image tower of CLIP, in the layout of OpenAI and open_clip or in that of Hugging Face."""
    if any(key.startswith("vision_model.") for key in state):
        return from_clip_hf(state)
    if any(key.removeprefix("visual.") == "conv1.weight" for key in state):
        return from_clip_openai(state)
    return state


def from_clip_openai(state: State) -> State:
    """CLIP as OpenAI and open_clip save it. The projection to the joint space is left out: targets come before it."""
    renames = {
        "conv1.": "patch_embed.proj.",
        "ln_pre.": "norm_pre.",
        "ln_post.": "norm.",
        "transformer.resblocks.": "blocks.",
        ".ln_1.": ".norm1.",
        ".ln_2.": ".norm2.",
        ".attn.in_proj_": ".attn.qkv.",
        ".attn.out_proj.": ".attn.proj.",
        ".mlp.c_fc.": ".mlp.fc1.",
        ".mlp.c_proj.": ".mlp.fc2.",
    }
    if any(key.startswith("visual.") for key in state):
        state = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    tensors = {_renamed(key, renames): value for key, value in state.items() if key != "proj"}
    tensors["cls_token"] = tensors.pop("class_embedding").reshape(1, 1, -1)
    tensors["pos_embed"] = tensors.pop("positional_embedding").unsqueeze(0)
    return tensors


def from_clip_hf(state: State) -> State:
    """CLIP as Hugging Face transformers saves it: query, key and value are separate."""
    renames = {
        "embeddings.patch_embedding.": "patch_embed.proj.",
        "pre_layrnorm.": "norm_pre.",
        "post_layernorm.": "norm.",
        "encoder.layers.": "blocks.",
        ".layer_norm1.": ".norm1.",
        ".layer_norm2.": ".norm2.",
        ".self_attn.": ".attn.",
        ".out_proj.": ".proj.",
    }
    prefix = "vision_model."
    state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    state.pop("embeddings.position_ids", None)
    tensors = {_renamed(key, renames): value for key, value in state.items()}
    tensors["cls_token"] = tensors.pop("embeddings.class_embedding").reshape(1, 1, -1)
    tensors["pos_embed"] = tensors.pop("embeddings.position_embedding.weight").unsqueeze(0)
    for key in [key for key in tensors if ".attn.q_proj." in key]:
        parts = [tensors.pop(key.replace("q_proj", name)) for name in ("q_proj", "k_proj", "v_proj")]
        tensors[key.replace("q_proj", "qkv")] = torch.cat(parts)
    return tensors


def by_order(state: State, model: Mapping[str, Tensor]) -> State:
    """The same architecture under other names: tensors are matched by position, and every shape must agree.

    What is left at the end must be the classifier (a matrix and a vector of the same length).
    """
    items = list(state.items())
    rest = [tuple(value.shape) for _, value in items[len(model) :]]
    is_classifier = len(rest) == 2 and len(rest[0]) == 2 and rest[1] == rest[0][:1]
    if len(items) < len(model) or (rest and not is_classifier):
        raise UnicError(
            f"the checkpoint holds {len(items)} tensors and the model {len(model)}: not the same architecture; "
            "check `model` and `weights`"
        )
    for (theirs, value), (ours, wanted) in zip(items, model.items(), strict=False):
        if value.shape != wanted.shape:
            raise UnicError(
                f"{theirs} of the checkpoint is {tuple(value.shape)}, but {ours} of the model at the same place is "
                f"{tuple(wanted.shape)}: not the same architecture; check `model` and `weights`"
            )
    return {ours: value for ours, (_, value) in zip(model, items, strict=False)}


CONVERTERS: Mapping[str, Converter] = {
    "timm": from_timm,
    "dino": from_timm,
    "ibot": from_timm,
    "dbot": from_timm,
    "deit3": from_deit3,
    "dinov2": from_dinov2,
    "metaclip": from_metaclip,
    "clip_openai": from_clip_openai,
    "clip_hf": from_clip_hf,
}


def convert(name: str, checkpoint: Any, model: Mapping[str, Tensor]) -> State:
    """The weights of a checkpoint in timm's layout.

    Args:
        name: a key of `CONVERTERS`, or `order` for the same architecture under other names.
        checkpoint: content of the file.
        model: state dict of the timm model, whose order and shapes `order` needs.

    Raises:
        UnicError: there is no such converter, or the file is of another layout.
    """
    state = unwrap(checkpoint)
    if name == "order":
        return by_order(state, model)
    if name not in CONVERTERS:
        raise UnicError(f"there is no converter {name!r}; use one of {', '.join(CONVERTERS)}, order")
    try:
        return CONVERTERS[name](state)
    except KeyError as error:
        missing = error.args[0]
        raise UnicError(f"the checkpoint has no {missing}: it is not in the layout {name!r}; set `converter`") from None


def check_fit(state: Mapping[str, Tensor], model: Mapping[str, Tensor], what: str) -> None:
    """UnicError that names the first key where a state dict does not fit a model.

    Args:
        state: converted weights.
        model: state dict of the model.
        what: what to call the weights in the message.
    """
    problem = next(_misfits(state, model), None)
    if problem is not None:
        raise UnicError(f"{what} does not fit the model: {problem}; check `model`, `converter` and `weights`")


def _misfits(state: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> Iterator[str]:
    for key, wanted in model.items():
        if key not in state:
            yield f"{key} is missing"
        elif state[key].shape != wanted.shape:
            yield f"{key} is {tuple(state[key].shape)} instead of {tuple(wanted.shape)}"
    yield from (f"{key} is unknown" for key in state if key not in model)


def _renamed(key: str, renames: Mapping[str, str]) -> str:
    for old, new in renames.items():
        # a leading dot in `old` means "inside the key", anything else "at its beginning"
        if old.startswith("."):
            key = key.replace(old, new)
        elif key.startswith(old):
            key = new + key.removeprefix(old)
    return key
