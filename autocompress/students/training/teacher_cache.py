"""The teacher's answers to a training pass, kept so that many students can learn from one computation."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from autocompress.problem.splits import Split
from autocompress.problem.teacher import eval_mode
from autocompress.students.training.precision import CPU

MAXIMUM_BYTES = 256 * 2**20

Key = tuple[object, ...]


class TeacherOutputs:
    """Compute the teacher's outputs for batches, once for each key; hold at most 256 MiB of them.

    Students that are trained with the same seed see the same batches, augmentation included, so that
    (data, seed, batch size, epoch, step) names a batch. The teacher is not changed, its mode included.
    """

    def __init__(self, teacher: nn.Module, maximum_bytes: int = MAXIMUM_BYTES) -> None:
        self.teacher = teacher
        self.maximum_bytes = maximum_bytes
        self._kept: dict[Key, Tensor] = {}
        self._bytes = 0
        self._copies: dict[torch.device, nn.Module] = {}

    def teacher_on(self, device: torch.device) -> nn.Module:
        """Return the teacher itself on the processor, a copy that is kept on a GPU."""
        if device.type == "cpu":
            return self.teacher
        if device not in self._copies:
            self._copies[device] = copy.deepcopy(self.teacher).to(device)
        return self._copies[device]

    def outputs(self, key: Key, images: Tensor) -> Tensor:
        """Return the float32 outputs for `images`, where those lie; from before where `key` was asked
        already."""
        known = self._kept.get(key)
        if known is not None:
            return known.to(images.device)
        teacher = self.teacher_on(images.device)
        with eval_mode(teacher), torch.no_grad():
            outputs: Tensor = teacher(images).float()
        if self._bytes + outputs.nbytes <= self.maximum_bytes:
            self._kept[key] = outputs
            self._bytes += outputs.nbytes
        return outputs

    def fits(self, split: Split, device: torch.device = CPU) -> bool:
        """Return whether the outputs for every image of the split may be held at once."""
        images, _ = next(split.batches(2))
        teacher = self.teacher_on(device)
        with eval_mode(teacher), torch.no_grad():
            outputs: Tensor = teacher(images.to(device)).float()
        return outputs.nbytes // len(outputs) * split.size <= self.maximum_bytes

    def of_all(self, split: Split, batch_size: int, device: torch.device = CPU) -> Tensor:
        """Return the float32 outputs for every image of the split, in order and without augmentation."""
        key = split.fingerprint()
        return torch.cat(
            [
                self.outputs((key, batch_size, step), images.to(device))
                for step, (images, _) in enumerate(split.batches(batch_size))
            ]
        )
