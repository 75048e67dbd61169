"""The numerics of a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def autocast(device: torch.device, precision: Literal["fp32", "bf16", "fp16"]) -> Iterator[None]:
    """Autocast to `precision`; nothing for fp32."""
    with ExitStack() as stack:
        if precision != "fp32":
            stack.enter_context(torch.autocast(device.type, DTYPES[precision]))
            if device.type == "cpu":
                # the fused kernel repacks half precision for every head: five times slower on short sequences
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield
