"""Masks and depths as PNG, as they are stored beside their images.

A mask has 8 bits per pixel: the number of the class, or 255 where the pixel is not scored. A depth has 16 bits per
pixel: millimeters, or 0 where it was not measured.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from unic_core.data.decode import MAX_PIXELS, BrokenImageError

IGNORE = 255  # of a mask
MILLIMETERS = 1000.0  # per meter

Values = NDArray[Any]  # [H, W], uint8 or uint16


def encode_target(values: Values) -> bytes:
    """PNG of a mask [H, W] uint8 or of depths [H, W] uint16."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def decode_target(data: bytes) -> Values:
    """The numbers in a single-channel image file, [H, W] uint8 or uint16; those of a palette are its indices.

    Raises:
        BrokenImageError: no complete image, or one with several channels.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BrokenImageError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS}")
            mode = image.mode
            values = np.array(image)
    except BrokenImageError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly every exception class on broken data
        raise BrokenImageError(f"its target is unreadable: {error}") from None
    if mode in ("L", "P"):
        return values.astype(np.uint8)
    if mode.startswith("I"):
        return values.astype(np.uint16)
    raise BrokenImageError(f"its target has the mode {mode}, not one channel of whole numbers")


def check_size(image: Tensor, target: bytes) -> None:
    """BrokenImageError unless the image [3, H, W] and its target have the same height and width."""
    with Image.open(io.BytesIO(target)) as opened:
        size = (opened.height, opened.width)
    if size != tuple(image.shape[1:]):
        raise BrokenImageError(
            f"it has {image.shape[1]} x {image.shape[2]} pixels, but its target {size[0]} x {size[1]}"
        )
