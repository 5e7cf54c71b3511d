"""How to compute fast here: processor or GPU, number format and memory layout, chosen without a clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.problem.teacher import eval_mode
from autocompress.students.training.settings import Precision

CPU = torch.device("cpu")


def device_named(name: str) -> torch.device:
    """Return the device of this name: `auto` is the GPU that torch sees, else the processor. Raises
    InputError for one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "training on a GPU is not possible here",
            why="torch sees none",
            fix="install torch for CUDA, or train on the processor: --train-on cpu",
        )
    return torch.device(name, torch.cuda.current_device()) if name == "cuda" else CPU


@contextmanager
def placed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Put the module on the device, and back where it was at the end. Its parameters stay the same
    objects."""
    first = next((tensor for part in (module.parameters(), module.buffers()) for tensor in part), None)
    before = device if first is None else first.device
    if before == device or before.type == device.type:
        yield
        return
    module.to(device)
    try:
        yield
    finally:
        module.to(before)


def uses_bfloat16(precision: Precision, device: torch.device | None = None) -> bool:
    """Return whether to use bfloat16: `auto` asks the processor, not a clock, so that a seed gives the same
    student on every run."""
    if precision == "auto" and device is not None and device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if precision == "auto":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return precision == "bfloat16"


def autocast(bfloat16: bool, device: torch.device | None = None) -> AbstractContextManager[object]:
    kind = "cpu" if device is None else device.type
    return torch.autocast(kind, torch.bfloat16) if bfloat16 else nullcontext()


def without_tf32(device: torch.device) -> AbstractContextManager[object]:
    """Compute convolutions of a GPU in whole float32; matrix products are so by default."""
    if device.type == "cpu":
        return nullcontext()
    cudnn = torch.backends.cudnn
    return cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=False, allow_tf32=False)


def layout_for(model: nn.Module, images: Tensor) -> torch.memory_format:
    """Return the layout of `(N, C, H, W)` inputs: channels last for convolutions, about 1.5 times as fast.

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
