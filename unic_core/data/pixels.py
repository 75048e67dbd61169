"""What `prepare` may do to an image before it is stored: fixed corruptions, resizing, encoding.

Corruptions are domain shifts of realistic strength, in the range of the middle severities of ImageNet-C
(Hendrycks and Dietterich, 2019). Parameters depend on the sample's index in its split alone:

- rotation: 10 to 30 degrees to either side, bilinear, corners black
- blur: Gaussian, sigma = u * (1 + short side / 64) pixels, u in 0.5 to 1 (0.7 to 1.4 at 28, 2.2 to 4.5 at 224)
- noise: Gaussian, independent per pixel and channel, standard deviation 0.08 to 0.18 of the full range
- contrast: distance from the image's mean shrunk to 0.2 to 0.5
"""

from __future__ import annotations

import io
import zlib
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from unic_core.data.subset import raw_stream

Corruption = Literal["none", "rotation", "blur", "noise", "contrast"]
Pixels = NDArray[np.uint8]  # [H, W] or [H, W, 3]

JPEG_QUALITY = 95


def corrupt(pixels: Pixels, kind: Corruption, index: int) -> Pixels:
    """The image under a corruption; the same for the same (kind, index), shape [H, W] or [H, W, 3] as given."""
    if kind == "none":
        return pixels
    key = (index, zlib.crc32(kind.encode()))
    strength, side = (raw_stream(key, 2) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    if kind == "rotation":
        angle = (10 + 20 * strength) * (1 if side < 0.5 else -1)
        return np.asarray(Image.fromarray(pixels).rotate(angle, resample=Image.Resampling.BILINEAR))
    if kind == "blur":
        sigma = float((0.5 + 0.5 * strength) * (1 + min(pixels.shape[:2]) / 64))
        return _blur(pixels, sigma)
    if kind == "noise":
        uniform = ((raw_stream(key, 2 * pixels.size, stream=1) >> np.uint64(11)) + np.uint64(1)).astype(np.float64)
        uniform = (uniform * 2.0**-53).reshape(2, *pixels.shape)
        normal = np.sqrt(-2 * np.log(uniform[0])) * np.cos(2 * np.pi * uniform[1])  # Box-Muller
        return _to_uint8(pixels + 255 * (0.08 + 0.10 * strength) * normal)
    mean = pixels.mean()
    return _to_uint8(mean + (0.2 + 0.3 * strength) * (pixels - mean))


def resize_short_side(pixels: Pixels, size: int) -> Pixels:
    """Bicubic with antialiasing; the short side becomes `size` pixels, the aspect ratio stays."""
    if min(pixels.shape[:2]) == size:
        return pixels
    return to_pixels(F.resize(to_tensor(pixels), [size], InterpolationMode.BICUBIC, antialias=True))


def encode(pixels: Pixels, extension: str) -> bytes:
    """PNG (lossless) or JPEG (quality 95, full chroma resolution) of an image."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if extension == "png":
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def to_tensor(pixels: Pixels) -> Tensor:
    """[H, W] or [H, W, 3] to [C, H, W]."""
    channels_last = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return torch.from_numpy(np.array(channels_last)).permute(2, 0, 1).contiguous()


def to_pixels(image: Tensor) -> Pixels:
    """[1 or 3, H, W] to [H, W] or [H, W, 3]."""
    pixels: Pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


def _blur(pixels: Pixels, sigma: float) -> Pixels:
    # four sigma to either side, as far as reflection at the border allows
    radius = min(int(4 * sigma + 0.5), min(pixels.shape[:2]) - 1)
    if radius < 1:
        return pixels
    return to_pixels(F.gaussian_blur(to_tensor(pixels), [2 * radius + 1] * 2, [sigma] * 2))


def _to_uint8(values: NDArray[np.float64]) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
