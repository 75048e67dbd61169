"""A frozen teacher: the student's images in, class and patch targets on the student's grid out."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unic_core.backbone import token_stride
from unic_core.errors import UnicError
from unic_core.teachers.registry import PatchSource, TeacherSpec
from unic_core.tokens import TokenKind


class Teacher(nn.Module):
    """One frozen timm model. Always in eval mode, never with gradients.

    Attributes:
        name: name of the teacher in the run.
        spec: what it is, with `auto` resolved.
        tokens: the kinds it gives.
        widths: {kind: D}.
        sha256: checksum of the weights in use: of the file, or of the tensors when timm downloaded them.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        name: str,
        model: nn.Module,
        spec: TeacherSpec,
        tokens: tuple[TokenKind, ...],
        grid: tuple[int, int] | None,
        sha256: str,
        any_size: bool = False,
    ) -> None:
        """`model` is at the resolution of `spec`, `grid` (h, w) is the student's, None the
        teacher's own. One image is passed as a test. With `any_size` images keep their size, which must be a
        multiple of `stride` and need not be square.

        Raises UnicError when the model does not have the tokens asked for.
        """
        super().__init__()
        self.name, self.tokens, self.grid, self.sha256, self.any_size = name, tokens, grid, sha256, any_size
        self.model: Any = model.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)
        self.to(next(model.parameters()).device)
        self.spec = spec
        self.spec = self._settled(self._test())
        if self.spec.patch == "map":
            self.model.to(memory_format=torch.channels_last)
        self.widths = self._measure()

    def train(self, mode: bool = True) -> Teacher:
        """Stays in eval mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> dict[TokenKind, Tensor]:
        """Targets of one batch.

        They are made under `no_grad`, not `inference_mode`: the loss saves them for its backward pass, which is
        impossible with inference tensors.

        Args:
            images: [B, 3, H, H] float in [0, 1], of any resolution; B may be 0.

        Returns:
            `cls` [B, D] and `patch` [B, h * w, D], float32, of the kinds in `tokens`.

        Raises:
            UnicError: the images are not square.
        """
        if len(images) == 0:
            n = math.prod(self.grid or (0,))
            return {k: images.new_zeros((0, d) if k == "cls" else (0, n, d)) for k, d in self.widths.items()}
        autocast = "cpu" if images.is_meta else images.device.type  # shapes alone have no autocast
        with torch.no_grad(), torch.autocast(autocast, enabled=False):
            features = self.model.forward_features(self._prepare(images))
            return {kind: self._read(kind, features).float() for kind in self.tokens}

    @property
    def stride(self) -> int:
        """Pixels per side of what one patch token stands for; UnicError where timm does not say."""
        return token_stride(self.model, f"teacher {self.name}")

    def manifest(self) -> dict[str, Any]:
        """What identifies the teacher in checkpoints and model cards."""
        spec = self.spec
        return {
            "name": self.name,
            "model": spec.id,
            "source": f"timm:{spec.model}" if spec.source == "timm" else spec.source,
            "sha256": self.sha256,
            "license": spec.license,
            "converter": spec.converter,
        }

    def _prepare(self, images: Tensor) -> Tensor:
        """Own resolution, normalization, dtype and memory format."""
        height, width = images.shape[-2:]
        size = self.spec.image_size
        if height != width and not self.any_size:
            raise UnicError(f"teacher {self.name} sees square images, not {height} x {width}; make the images square")
        x = images.float()
        if height != size and not self.any_size:
            # bicubic overshoots: back into the range of an image
            x = F.interpolate(x, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
        x = ((x - self.mean) / self.std).to(next(self.model.parameters()).dtype)
        return x.contiguous(memory_format=torch.channels_last) if self.spec.patch == "map" else x

    def _read(self, kind: TokenKind, features: Tensor) -> Tensor:
        if kind == "patch":
            return self._patches(features)
        if self.spec.cls == "token":
            return features[:, 0]
        pooled: Tensor = self.model.forward_head(features, pre_logits=True)
        return pooled.flatten(1)

    def _patches(self, features: Tensor) -> Tensor:
        """[B, h * w, D] on the student's grid."""
        if self.spec.patch == "tokens":
            tokens = features[:, self._prefix :]
            if self.grid is None:
                return tokens
            grid = self._token_grid(tokens.shape[1])
            if self.grid == grid:
                return tokens
            maps = tokens.transpose(1, 2).reshape(len(tokens), -1, *grid)
        else:
            is_nhwc = str(getattr(self.model, "output_fmt", "NCHW")) == "NHWC"
            maps = features.movedim(-1, 1) if is_nhwc else features
        if self.grid not in (None, tuple(maps.shape[-2:])):
            # antialiasing makes it an area average when the grid shrinks; when it grows it would only cost time
            shrinks = self.grid is not None and self.grid[0] < maps.shape[-2]
            maps = F.interpolate(maps.float(), size=self.grid, mode="bilinear", antialias=shrinks)
        return maps.flatten(2).transpose(1, 2)

    @property
    def _prefix(self) -> int:
        """How many tokens come before the patches: class token and registers."""
        return int(getattr(self.model, "num_prefix_tokens", 0))

    def _token_grid(self, n: int) -> tuple[int, int]:
        """(h, w) of n patch tokens."""
        grid = getattr(getattr(self.model, "patch_embed", None), "grid_size", None)
        if grid is not None and math.prod(grid) == n:
            return int(grid[0]), int(grid[1])
        side = math.isqrt(n)
        if side * side != n:
            raise UnicError(
                f"teacher {self.name} gives {n} patch tokens, which form no square grid; choose another one"
            )
        return side, side

    def _test(self) -> Any:
        """The raw features of one gray image; UnicError when the model can't take images of its size."""
        size = self.spec.image_size
        with torch.no_grad():
            try:
                return self.model.forward_features(self._prepare(self.mean.new_full((1, 3, size, size), 0.5)))
            except (RuntimeError, AssertionError, ValueError) as error:
                reason = str(error).partition("\n")[0]
                raise UnicError(
                    f"teacher {self.name} ({self.spec.id}) can't take {size} px images ({reason}); change its size"
                ) from None

    def _settled(self, features: Any) -> TeacherSpec:
        """The spec with `auto` resolved; UnicError when a kind in `tokens` can't be had from `features`."""
        who = f"teacher {self.name} ({self.spec.id})"
        if not isinstance(features, Tensor):
            raise UnicError(
                f"{who} gives a {type(features).__name__} of features instead of a tensor; choose another one"
            )
        layouts: dict[int, PatchSource] = {3: "tokens", 4: "map"}
        layout = layouts.get(features.ndim)
        patch = layout if self.spec.patch == "auto" else self.spec.patch
        if "patch" in self.tokens and (patch is None or patch != layout):
            raise UnicError(f"{who} has no patch tokens; set its tokens to [cls]")
        has_token = layout == "tokens" and self._prefix > 0 and getattr(self.model, "cls_token", None) is not None
        cls = self.spec.cls
        if cls == "auto":
            cls = "token" if has_token and getattr(self.model, "global_pool", "") == "token" else "pooled"
        if "cls" in self.tokens and cls == "token" and not has_token:
            raise UnicError(f"{who} has no class token; set its tokens to [patch]")
        return self.spec.model_copy(update={"patch": patch, "cls": cls})

    def _measure(self) -> dict[TokenKind, int]:
        """The width of every kind; UnicError when the features are not finite."""
        size = self.spec.image_size
        widths: dict[TokenKind, int] = {}
        for kind, value in self(self.mean.new_full((1, 3, size, size), 0.5)).items():
            if not bool(value.isfinite().all()):
                raise UnicError(f"teacher {self.name} gives {kind} tokens that are not finite; its weights are damaged")
            widths[kind] = value.shape[-1]
        return widths
