"""Encoded images to RGB: torchvision's decoders where they give 8-bit RGB, Pillow for everything else.

Orientation tags are ignored and alpha is dropped, as the training sets of the published models were read.
"""

from __future__ import annotations

import io
import struct

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

MAX_PIXELS = 178_956_970  # Pillow's limit; a header that claims more is refused before memory is asked for

_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
# start-of-frame markers: 0xC0..0xCF without DHT (C4), JPG (C8) and DAC (CC)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})


class BrokenImageError(ValueError):
    """The bytes are no complete image; the message says why."""


def image_format(data: bytes) -> str | None:
    """`jpg`, `png` or `webp` by the first bytes, whatever the file is called; None for other formats."""
    if data.startswith(_JPEG):
        return "jpg"
    if data.startswith(_PNG):
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return None


def decode(data: bytes) -> Tensor:
    """uint8 RGB [3, H, W] of one encoded image.

    Gray, palette, CMYK, 16-bit and alpha images are converted; BrokenImageError for truncated or unknown data.
    """
    if _plain(data):
        try:
            # a copy, because torch warns about memory that can't be written to
            rgb: Tensor = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
            return rgb
        except RuntimeError as error:
            raise BrokenImageError(str(error).splitlines()[0].rpartition(", ")[2]) from None
    return torch.from_numpy(_decode_pillow(data)).permute(2, 0, 1).contiguous()


def _plain(data: bytes) -> bool:
    """Whether torchvision decodes this to the right 8-bit RGB: JPEG with 1 or 3 components, 8-bit gray or RGB PNG."""
    if data.startswith(_JPEG):
        height, width, components = _jpeg_header(data)
        _check_size(width, height)
        return components in (1, 3)
    if data.startswith(_PNG) and len(data) >= 33:
        width, height, depth, color = struct.unpack(">IIBB", data[16:26])
        _check_size(width, height)
        return depth == 8 and color in (0, 2, 4, 6)  # gray, RGB, each with or without alpha
    return False


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BrokenImageError(f"{width} x {height} pixels are more than {MAX_PIXELS}")


def _jpeg_header(data: bytes) -> tuple[int, int, int]:
    """(height, width, components) from the first start-of-frame segment."""
    position = 2
    while position + 10 <= len(data):
        marker = data[position + 1]
        if data[position] != 0xFF:
            break
        if marker == 0xFF or marker in _STANDALONE:  # fill byte, or a marker without a segment
            position += 1 if marker == 0xFF else 2
            continue
        if marker in _FRAMES:
            height, width, components = struct.unpack(">HHB", data[position + 5 : position + 10])
            return height, width, components
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    raise BrokenImageError("the JPEG ends before its first frame")


def _decode_pillow(data: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """uint8 [H, W, 3]."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        if image.mode.startswith("I"):  # 16 bits per pixel; Pillow's own conversion clips at 255
            values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
            gray = ((values + 128) // 257).astype(np.uint8)
            return np.repeat(gray[:, :, None], 3, axis=2)
        if image.mode == "F":
            raise BrokenImageError("floating-point pixels have no defined white; save the image with integers")
        return np.array(image.convert("RGB"))
    except BrokenImageError:
        raise
    except UnidentifiedImageError:  # its text holds a memory address
        raise BrokenImageError("not an image of a known format") from None
    except Exception as error:  # Pillow's decoders raise nearly every exception class on broken data
        raise BrokenImageError(str(error) or type(error).__name__) from None
