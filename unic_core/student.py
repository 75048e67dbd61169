"""The encoder to train: a timm model that shows the residual stream after every block (section 1.1).

It departs from timm in two places: drop path is counter-based, and position embeddings can be resized as in
the published model.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, cast

import timm
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from unic_core.backbone import is_vit, known_arguments, token_stride, use_offset
from unic_core.config import StudentConfig
from unic_core.draw import Draw
from unic_core.errors import UnicError
from unic_core.teachers.hub import create_pretrained
from unic_core.tokens import Tokens

# What timm's constructors call our settings; the first name that a model takes is used.
_TIMM_NAMES = {
    "patch_size": ("patch_size",),
    "width": ("embed_dim",),
    "depth": ("depth",),
    "heads": ("num_heads",),
    "layer_scale": ("init_values", "ls_init_value"),
    "registers": ("reg_tokens", "num_reg_tokens"),
}


class Student(nn.Module):
    """A timm backbone as a list of token sets, one per block.

    Backbones without a constant-width stack of blocks (ConvNeXt, EfficientNet, ...) have `has_blocks` False
    and `depth` 1: their only tokens are the final feature map (patch) and its mean (cls). ViTs without a class
    token have the mean patch as cls. Every parameter is used by the last block's tokens: the final norm has no
    affine part, and heads, poolers and mask tokens are removed.

    Raises UnicError for a model name, override or pretrained weights that timm does not have.
    """

    mean: Tensor
    std: Tensor
    drop_rates: Tensor

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        self.image_size = config.image_size
        arguments = _arguments(config)
        with torch.device("meta"):
            skeleton = _create(config, arguments)
        self.has_blocks = is_vit(skeleton)
        self.grid, self.width, unused = _inspect(skeleton, config, self.has_blocks)

        self.encoder: Any = _create(config, arguments, pretrained=config.pretrained)
        self.depth = len(self.encoder.blocks) if self.has_blocks else 1
        if self.has_blocks:
            norm = self.encoder.norm if hasattr(self.encoder.norm, "eps") else self.encoder.fc_norm
            self.encoder.norm = nn.LayerNorm(self.width, getattr(norm, "eps", 1e-6), elementwise_affine=False)
        _remove(self.encoder, unused)
        if config.position_embedding == "offset":
            use_offset(self.encoder, config.model)

        self._drop_paths = _replace_drop_path(self.encoder)
        rates = torch.tensor([path.rate for path in self._drop_paths])
        self.register_buffer("drop_rates", rates, persistent=False)
        cfg = self.encoder.pretrained_cfg if config.pretrained else {}
        for name, default in (("mean", IMAGENET_DEFAULT_MEAN), ("std", IMAGENET_DEFAULT_STD)):
            value = torch.tensor(cfg.get(name, default)).view(1, 3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def forward(self, images: Tensor, draw: Draw | None = None) -> list[Tokens]:
        """The raw residual stream after every block, before the final norm.

        images: [B, 3, H, W] float in [0, 1]. Returns `depth` entries of cls [B, D] and patch [B, N, D].
        `draw` decides drop path; it is required in training when there is any (UnicError).
        """
        self._set_drop_paths(self._path_scales(draw, len(images)) if self.training else None)
        return _tokens_per_block(self.encoder, self._normalize(images), self.has_blocks)

    def features(self, images: Tensor) -> Tokens:
        """Evaluation features (section 1.1): the last tokens after a LayerNorm without affine part, no drop path.

        images: [B, 3, H, W] float in [0, 1]. Backbones without blocks give their feature map as it is.
        """
        self._set_drop_paths(None)
        images = self._normalize(images)
        if not self.has_blocks:
            return _tokens_per_block(self.encoder, images, has_blocks=False)[0]
        return _split(self.encoder, self.encoder.forward_features(images))

    @property
    def stride(self) -> int:
        """Pixels per side of what one patch token stands for; UnicError where timm does not say."""
        return token_stride(self.encoder, f"student {self.config.model}")

    def compile_blocks(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile every block in place (regional compilation): names and state dict stay as they are."""
        for child in self.encoder.children():
            if isinstance(child, nn.Sequential | nn.ModuleList):
                for block in child:
                    block.compile(backend=backend)

    def timm_arguments(self) -> dict[str, Any]:
        """The arguments that make `timm.create_model(config.model, ...)` a model of this architecture."""
        arguments = _arguments(self.config)
        arguments.pop("drop_path_rate", None)
        if self.has_blocks:
            has_cls = self.encoder.cls_token is not None
            arguments["global_pool"] = "token" if has_cls else "avg"
            if not has_cls:  # or timm would norm the pooled vector instead of the tokens
                arguments["fc_norm" if isinstance(self.encoder, VisionTransformer) else "use_fc_norm"] = False
        return arguments

    def to_timm(self) -> nn.Module:
        """A plain timm model without classifier, in eval mode on the CPU, whose features are `features`.

        It has the parameters that were removed here, as timm initializes them: norms of scale 1 and offset 0.

        Raises:
            UnicError: timm's model has not the parameters of this one.
        """
        model = cast(nn.Module, timm.create_model(self.config.model, **self.timm_arguments()))
        try:
            unknown = model.load_state_dict(self.encoder.state_dict(), strict=False).unexpected_keys
        except RuntimeError as error:  # other shapes
            reason = str(error).strip().splitlines()[-1].strip()
            raise UnicError(f"student {self.config.model} does not fit timm's model of that name: {reason}") from None
        if unknown:
            raise UnicError(f"student {self.config.model} has parameters that timm's model lacks: {unknown}")
        return model.eval()

    def _normalize(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (self.image_size, self.image_size) and self.has_blocks:
            height, width = images.shape[-2:]
            patch = self.image_size // self.grid[0]
            if not getattr(self.encoder, "dynamic_img_size", False):
                raise UnicError(
                    f"student {self.config.model} takes only {self.image_size} px square images, not {height} x {width}"
                )
            if height % patch or width % patch:
                raise UnicError(
                    f"an image of {height} x {width} pixels cannot be cut into patches of {patch} x {patch}"
                )
        return (images - self.mean) / self.std

    def _path_scales(self, draw: Draw | None, batch: int) -> Tensor | None:
        """The scale of every drop path for every image, [paths, B]: a function of the draw alone."""
        if not self._drop_paths:
            return None
        if draw is None or len(draw.samples) != batch:
            raise UnicError("a student with drop path needs one draw per image in training: pass draw")
        keep = draw.uniform("drop_path", len(self._drop_paths)) >= self.drop_rates
        gain = torch.where(self.drop_rates < 1, 1 / (1 - self.drop_rates), 0)
        return (keep * gain).T.contiguous()

    def _set_drop_paths(self, scales: Tensor | None) -> None:
        """Hand out the scales. They stay until the next call, so that blocks can be recomputed in backward."""
        for i, path in enumerate(self._drop_paths):
            path.scale = None if scales is None else scales[i]


class SampleDropPath(nn.Module):
    """Stochastic depth whose per-image decision is handed in: `scale` [B] is 0 or 1 / (1 - rate)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.scale: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x: the residual branch, [B, ...]."""
        if self.scale is None or not self.training:
            return x
        return x * self.scale.to(x.dtype).view(-1, *[1] * (x.ndim - 1))

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


def _tokens_per_block(encoder: Any, images: Tensor, has_blocks: bool) -> list[Tokens]:
    """Tokens of every block of a ViT, or the final feature map of any other backbone."""
    if has_blocks:
        outputs = encoder.forward_intermediates(
            images, return_prefix_tokens=True, norm=False, output_fmt="NLC", intermediates_only=True
        )
        pairs = [o if isinstance(o, tuple) else (o, None) for o in outputs]
        return [Tokens(p.mean(1) if encoder.cls_token is None else prefix[:, 0], p) for p, prefix in pairs]
    features = encoder.forward_features(images)
    if getattr(encoder, "output_fmt", "NCHW") == "NHWC":
        patch = features.flatten(1, 2)
    else:
        patch = features.flatten(2).transpose(1, 2)
    return [Tokens(patch.mean(1), patch)]


def _split(encoder: Any, sequence: Tensor) -> Tokens:
    """The token sequence of a ViT [B, P + N, D] without registers."""
    patch = sequence[:, encoder.num_prefix_tokens :]
    return Tokens(patch.mean(1) if encoder.cls_token is None else sequence[:, 0], patch)


def _arguments(config: StudentConfig) -> dict[str, Any]:
    """The settings in timm's names; UnicError for an unknown model or a setting that the model does not take."""
    if not timm.is_model(config.model):
        close = difflib.get_close_matches(config.model, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else "; timm.list_models() lists them all"
        raise UnicError(f"student.model {config.model!r} is not a timm model{hint}")
    known = known_arguments(config.model)
    arguments: dict[str, Any] = {"num_classes": 0}
    for setting, names in _TIMM_NAMES.items():
        value = getattr(config, setting)
        if value is None:
            continue
        name = next((n for n in names if n in known), None)
        if name is None:
            raise UnicError(f"student.{setting} is set, but {config.model} does not take it: remove it")
        arguments[name] = value
    if config.drop_path > 0:
        if "drop_path_rate" not in known:
            raise UnicError(f"student.drop_path is set, but {config.model} has no drop path: set it to 0")
        arguments["drop_path_rate"] = config.drop_path
    if "img_size" in known:
        arguments["img_size"] = config.image_size
    if "dynamic_img_size" in known:
        arguments["dynamic_img_size"] = True
    return arguments


def _create(config: StudentConfig, arguments: dict[str, Any], pretrained: bool = False) -> Any:
    """timm's model; what timm refuses becomes one sentence."""
    try:
        return (
            create_pretrained(config.model, **arguments) if pretrained else timm.create_model(config.model, **arguments)
        )
    except UnicError:
        raise
    except Exception as error:  # timm, the hub and the file formats raise a dozen types here
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if pretrained:
            raise UnicError(
                f"the pretrained weights of student.model {config.model} cannot be loaded ({reason}); "
                "check the network and the overrides, or set student.pretrained to false"
            ) from error
        given = ", ".join(f"{k}={v}" for k, v in arguments.items())
        raise UnicError(f"student.model {config.model} cannot be built with {given}: {reason}") from error


def _inspect(skeleton: Any, config: StudentConfig, has_blocks: bool) -> tuple[tuple[int, int], int, set[str]]:
    """Grid, width and the names of unused parameters, found by a dry run on the meta device."""
    size = config.image_size
    if has_blocks:
        patch: tuple[int, int] = skeleton.patch_embed.patch_size
        if size % patch[0] or size % patch[1]:
            raise UnicError(
                f"student.image_size {size} is not a multiple of the patch size {patch[0]} of {config.model}"
            )
    images = torch.zeros(1, 3, size, size, device="meta")
    try:
        tokens = _tokens_per_block(skeleton.eval(), images, has_blocks)[-1]
        shape = None if has_blocks else skeleton.forward_features(images).shape
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UnicError(
            f"student.model {config.model} cannot take images of {size} x {size} pixels: {reason}"
        ) from error
    if shape is None:
        height, width = skeleton.patch_embed.grid_size
    elif len(shape) == 4:
        height, width = shape[1:3] if getattr(skeleton, "output_fmt", "NCHW") == "NHWC" else shape[2:]
    else:
        raise UnicError(
            f"student.model {config.model} has neither the blocks of a ViT nor a final feature map; "
            "choose a ViT of timm, or a convolutional backbone"
        )
    used = _leaves(tokens.cls, tokens.patch)
    unused = {name for name, p in skeleton.named_parameters() if id(p) not in used}
    return (height, width), tokens.patch.shape[-1], unused


def _leaves(*outputs: Tensor) -> set[int]:
    """Identities of the parameters that `outputs` depend on; the graph is read, which is faster than a backward."""
    found: set[int] = set()
    seen: set[Any] = set()
    nodes: list[Any] = [output.grad_fn for output in outputs]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found.add(id(getattr(node, "variable", None)))
            nodes.extend(following for following, _ in node.next_functions)
    return found


def _remove(encoder: nn.Module, unused: set[str]) -> None:
    """Take unused parameters out; modules that have no other parameters are replaced by Identity."""
    for name, module in list(encoder.named_modules()):
        own = {f"{name}.{p}" for p, _ in module.named_parameters()}
        if name and own and own <= unused:
            encoder.set_submodule(name, nn.Identity())
            unused = unused - own
    for name in unused & {n for n, _ in encoder.named_parameters()}:
        owner, _, leaf = name.rpartition(".")
        setattr(encoder.get_submodule(owner), leaf, None)


def _replace_drop_path(encoder: nn.Module) -> tuple[SampleDropPath, ...]:
    """timm's drop paths with a rate above 0 become ours, in the order of the modules."""
    found = [(n, m.drop_prob) for n, m in encoder.named_modules() if isinstance(m, DropPath) and m.drop_prob > 0]
    paths = tuple(SampleDropPath(rate) for _, rate in found)
    for (name, _), path in zip(found, paths, strict=True):
        encoder.set_submodule(name, path)
    return paths
