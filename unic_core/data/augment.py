"""The color part of the augmentation, batched on the device (section 1.7).

Color jitter, grayscale, blur, solarize: each image with its own draws, no image selected by index and nothing read
back from the device. Values are floats in [0, 1], where the per-image original rounds to 8 bits between steps.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from unic_core.config import AugmentConfig, JitterConfig
from unic_core.draw import Draw

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601, as torchvision rounds it


class DeviceAugment:
    """`augment(images, draw)`: uint8 [B, 3, H, W] to float32 [B, 3, H, W] in [0, 1], on the images' device."""

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        """Augment; every image's parameters depend on `draw` alone."""
        config, draw = self.config, draw.to(images.device)
        x = images.to(torch.float32) / 255
        if x.numel() == 0:
            return x
        if config.jitter.p > 0:
            x = color_jitter(x, config.jitter, draw)
        if config.grayscale > 0:
            x = torch.lerp(x, _gray(x), _chosen(draw, "grayscale", config.grayscale))
        if config.blur > 0:
            low, high = config.blur_sigma
            sigma = low + (high - low) * draw.uniform("blur_sigma")[:, 0]
            kernel = gaussian_kernel(sigma, config.blur_kernel)
            kernel = torch.lerp(_identity(kernel), kernel, _chosen(draw, "blur", config.blur)[:, 0, 0])
            x = blur(x, kernel).clamp_(0, 1)  # the rounded weights may sum to a little more than 1
        if config.solarize > 0:
            bright = (x >= config.solarize_threshold).to(torch.float32)
            x = torch.lerp(x, 1 - x, bright.mul_(_chosen(draw, "solarize", config.solarize)))
        return x


def _chosen(draw: Draw, purpose: str, p: float) -> Tensor:
    """1 for the images that get an operation, else 0: [B, 1, 1, 1], the weight of a `lerp` (exact at 0 and 1)."""
    return (draw.uniform(purpose) < p).to(torch.float32)[:, :, None, None]


def _gray(x: Tensor) -> Tensor:
    """Luma: [B, 1, H, W]."""
    return (_LUMA[0] * x[:, 0] + _LUMA[1] * x[:, 1] + _LUMA[2] * x[:, 2])[:, None]


# ---------------------------------------------------------------- color jitter


def color_jitter(x: Tensor, config: JitterConfig, draw: Draw) -> Tensor:
    """torchvision's ColorJitter with parameters and order per image: [B, 3, H, W] in [0, 1].

    Brightness, contrast and saturation are blends with black, the mean luma and the luma. Each image has its own
    order of the four operations; hue, the costly one, is computed once, between the blends before and after it.
    """
    uniform = draw.uniform("jitter", 4)
    strengths = (config.brightness, config.contrast, config.saturation)
    factors = torch.stack(
        [max(0.0, 1 - s) + (1 + s - max(0.0, 1 - s)) * uniform[:, i] for i, s in enumerate(strengths)], dim=1
    )
    shift = config.hue * (2 * uniform[:, 3] - 1)
    drawn = draw.uniform("jitter_p") < config.p  # [B, 1]
    factors = torch.where(drawn, factors, 1.0)
    shift = torch.where(drawn[:, 0], shift, 0.0)
    blends = draw.uniform("jitter_order", 3).argsort(dim=1)  # [B, 3]: which blend comes first, second, third
    hue_place = (draw.uniform("jitter_hue_place")[:, 0] * 4).floor()  # blends before hue: 0 to 3
    rounds = range(3)
    if config.hue == 0:
        for place in rounds:
            x = _blend(x, blends[:, place], factors)
        return x
    for place in rounds:
        x = _blend(x, blends[:, place], torch.where((hue_place > place)[:, None], factors, 1.0))
    x = adjust_hue(x, shift)
    for place in rounds:
        x = _blend(x, blends[:, place], torch.where((hue_place <= place)[:, None], factors, 1.0))
    return x


def _blend(x: Tensor, operation: Tensor, factors: Tensor) -> Tensor:
    """One of brightness (0), contrast (1) and saturation (2) per image, clamped to [0, 1].

    Args:
        operation: int64 [B]. factors: [B, 3], the factor of each operation; 1 changes nothing.
    """
    factor = factors.gather(1, operation[:, None])[:, :, None, None]
    gray = _gray(x)
    contrast, saturation = ((operation == i).to(x.dtype)[:, None, None, None] for i in (1, 2))
    other = torch.addcmul(contrast * gray.mean(dim=(2, 3), keepdim=True), saturation, gray)
    return torch.lerp(other, x, factor).clamp_(0, 1)


def adjust_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue of HSV by `shift` [B] turns; saturation and value stay: [B, 3, H, W].

    With hue h in sixths of a turn, channel n is v - c * clamp(min(k, 4 - k), 0, 1), k = (n + h) mod 6,
    n = 5, 3, 1 for red, green, blue; v is the value, c the chroma.
    """
    red, green, blue = x.unbind(1)
    value = x.amax(1)
    chroma = value - x.amin(1)
    # indicators of the largest channel instead of `where`, which is slow on CPUs
    red_largest = (value == red).to(x.dtype)
    green_largest = (value == green).to(x.dtype) * (1 - red_largest)
    safe = chroma.clamp(min=torch.finfo(x.dtype).tiny)  # gray has no hue; any will do
    hue = (green - blue) * red_largest
    hue += (blue - red + 2 * safe) * green_largest
    hue += (red - green + 4 * safe) * (1 - red_largest - green_largest)
    hue = hue / safe + 6 * shift[:, None, None]
    channel = torch.arange(5, 0, -2, dtype=x.dtype, device=x.device)  # 5, 3, 1: made on the device
    k = (hue[:, None] + channel[:, None, None]).remainder_(6)
    weight = k.sub_(2).abs_().neg_().add_(2).clamp_(0, 1)  # min(k, 4 - k) = 2 - |k - 2|
    return torch.addcmul(value[:, None], chroma[:, None], weight, value=-1)


# ---------------------------------------------------------------- blur


def gaussian_kernel(sigma: Tensor, size: int) -> Tensor:
    """Normalized Gaussians [B, size] for standard deviations [B] in pixels."""
    offsets = torch.arange(size, device=sigma.device, dtype=sigma.dtype) - (size - 1) / 2
    kernel = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    return kernel / kernel.sum(dim=1, keepdim=True)


def blur(x: Tensor, kernel: Tensor) -> Tensor:
    """Separable filter with a kernel per image [B, K], borders reflected: [B, C, H, W]."""
    batch, channels, height, width = x.shape
    half, groups = kernel.shape[1] // 2, batch * channels
    weights = kernel.repeat_interleave(channels, dim=0)  # one group per image and channel
    padded = F.pad(x, (half, half, half, half), mode="reflect").flatten(0, 1)[None]
    rows = F.conv2d(padded, weights[:, None, None, :], groups=groups)
    return F.conv2d(rows, weights[:, None, :, None], groups=groups).view(batch, channels, height, width)


def _identity(kernel: Tensor) -> Tensor:
    """Kernels [B, K] that change nothing."""
    size = kernel.shape[1]
    return (torch.arange(size, device=kernel.device) == size // 2).to(kernel.dtype).expand_as(kernel)
