"""How to compute fast on this processor: number format and memory layout, chosen without a clock."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from autocompress.teacher import eval_mode

Precision = Literal["auto", "float32", "bfloat16"]


def uses_bfloat16(precision: Precision) -> bool:
    """`auto` asks the processor, not a clock, so that a seed gives the same student on every run."""
    if precision == "auto":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return precision == "bfloat16"


def autocast(bfloat16: bool) -> AbstractContextManager[object]:
    return torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext()


def layout_for(model: nn.Module, images: Tensor) -> torch.memory_format:
    """The layout of `(N, C, H, W)` inputs: channels last for convolutions, about 1.5 times as fast.

    A network that views its activations as another shape may only run on contiguous ones: it is tried
    on two images, in eval mode, and left as it was.
    """
    if images.ndim != 4 or not any(parameter.ndim == 4 for parameter in model.parameters()):
        return torch.contiguous_format
    try:
        with eval_mode(model), torch.inference_mode():
            model(images[:2].contiguous(memory_format=torch.channels_last))
    except RuntimeError:
        return torch.contiguous_format
    return torch.channels_last
