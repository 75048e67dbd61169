from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.unic_core.data.conftest import encoded, picture
from unic_core.data.decode import BrokenImageError, decode, image_format

SOURCE = picture(1)
RGB = torch.from_numpy(np.array(SOURCE)).permute(2, 0, 1)
GRAY = np.array(SOURCE.convert("L"))


@pytest.mark.parametrize(
    ("data", "expected", "tolerance"),
    [
        (encoded(SOURCE, "PNG"), RGB, 0),
        (encoded(SOURCE.convert("RGBA"), "PNG"), RGB, 0),
        (encoded(SOURCE, "BMP"), RGB, 0),
        (encoded(SOURCE, "TIFF"), RGB, 0),
        (encoded(SOURCE, "WEBP", lossless=True), RGB, 0),
        (encoded(SOURCE, "JPEG", quality=95, subsampling=0), RGB, 8),
        (encoded(SOURCE, "JPEG", quality=95, subsampling=0, progressive=True), RGB, 8),
        (encoded(SOURCE.convert("CMYK"), "JPEG", quality=95), RGB, 12),
        (encoded(SOURCE.quantize(256), "PNG"), RGB, 40),
        (encoded(SOURCE.quantize(256), "GIF"), RGB, 40),
        (encoded(SOURCE.convert("L"), "PNG"), torch.from_numpy(GRAY).expand(3, -1, -1), 0),
        (encoded(SOURCE.convert("LA"), "PNG"), torch.from_numpy(GRAY).expand(3, -1, -1), 0),
        (encoded(SOURCE.convert("L"), "JPEG", quality=95), torch.from_numpy(GRAY).expand(3, -1, -1), 6),
        (encoded(Image.fromarray(GRAY.astype(np.uint16) * 257), "PNG"), torch.from_numpy(GRAY).expand(3, -1, -1), 0),
        (encoded(Image.fromarray(GRAY.astype(np.uint16) * 257), "TIFF"), torch.from_numpy(GRAY).expand(3, -1, -1), 0),
    ],
    ids=[
        "png",
        "rgba",
        "bmp",
        "tiff",
        "webp",
        "jpeg",
        "progressive",
        "cmyk",
        "palette",
        "gif",
        "gray",
        "gray-alpha",
        "gray-jpeg",
        "png16",
        "tiff16",
    ],
)
def test_every_kind_of_image_becomes_rgb(data: bytes, expected: torch.Tensor, tolerance: int) -> None:
    image = decode(data)
    assert image.dtype == torch.uint8
    assert image.shape == RGB.shape
    assert (image.int() - expected.int()).abs().max() <= tolerance


@given(st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF"]), st.floats(0, 0.9))
def test_truncated_images_are_refused(format_: str, part: float) -> None:
    data = encoded(SOURCE, format_)
    with pytest.raises(BrokenImageError):
        decode(data[: int(part * len(data))])


@given(st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    for magic in (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF0000WEBP"):
        with pytest.raises(BrokenImageError):
            decode(magic + data)


def test_a_header_that_claims_huge_sizes_is_refused() -> None:
    data = bytearray(encoded(SOURCE, "PNG"))
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    with pytest.raises(BrokenImageError, match="60000 x 60000"):
        decode(bytes(data))


def test_the_format_is_read_from_the_bytes() -> None:
    assert [image_format(encoded(SOURCE, f)) for f in ("JPEG", "PNG", "WEBP", "BMP")] == ["jpg", "png", "webp", None]
