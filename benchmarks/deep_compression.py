"""LeNets on MNIST: pruned, shared, fine-tuned by distillation, and coded into `student.acz`.

    python benchmarks/deep_compression.py --data MNIST_DIR [--network lenet-300-100 | lenet-5]

The float32 teacher is trained first, with small shifts, turns and distortions of the images. Its student is
pruned gradually over all layers together, its weights share a few values chosen by rate and distortion,
which are fine-tuned, and its biases are rounded. Then the file is written, read back, and its error computed
from what was read. Teacher and pruned student are kept in runs/deep-compression and used again. 5,000
training images are held out for every choice; the test set is read once, at the end.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from autocompress.export.acz import load_acz, save_acz, tensor_bytes
from autocompress.graph.module import GraphModule, build
from autocompress.graph.network import Network, Weights
from autocompress.graph.trace import trace
from autocompress.problem.data import Batch, Data, Split, load_data
from autocompress.students.accuracy import evaluate
from autocompress.students.training.constraints import hold_shared, hold_zeros
from autocompress.students.training.distill import distil
from autocompress.students.training.losses import ClassLoss
from autocompress.students.training.settings import DistillSettings
from autocompress.students.training.sparsification import GradualPruning
from autocompress.transforms.arrays.codebooks import Codebook, entropy_constrained

FOLDER = Path("runs/deep-compression")
BATCH = 250
TEMPERATURE, ALPHA = 3.0, 0.5


@dataclass(frozen=True)
class Recipe:
    """`density` of all weights together; `bit_price` as a share of the kept weights' mean square."""

    density: float
    values: int
    bit_price: float
    teacher_epochs: float
    prune_epochs: float
    settle_epochs: float
    share_epochs: float
    target_ratio: float
    target_error: float


RECIPES = {
    "lenet-300-100": Recipe(0.05, 17, 0.003, 16, 14, 5, 2, 80, 0.0160),
    "lenet-5": Recipe(0.017, 17, 0.003, 40, 5, 2, 0.5, 200, 0.0080),
}


def lenet_300_100() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def lenet_5() -> nn.Module:
    """Caffe's, 431,080 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip


NETWORKS = {"lenet-300-100": lenet_300_100, "lenet-5": lenet_5}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder that torchvision's MNIST reads")
    parser.add_argument("--network", choices=NETWORKS, action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--density", type=float)
    parser.add_argument("--no-test", action="store_true", help="stop before the test set is read")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data(f"mnist:{arguments.data},channels=1")
    data = replace(data, train=Warped(data.train))
    for name in arguments.network or NETWORKS:
        recipe = RECIPES[name]
        if arguments.density:
            recipe = replace(recipe, density=arguments.density)
        compress(name, recipe, data, arguments.seed, read_test=not arguments.no_test)
    return 0


def compress(name: str, recipe: Recipe, data: Data, seed: int, read_test: bool) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    network, weights = teacher_of(name, recipe, data, seed)
    teacher = build(network, weights)
    student = build(network, weights)
    layers = [key for key in network.params if key.endswith("weight")]
    say(f"{name}: teacher {error(teacher, data.validation):.2%} held-out error")
    pruned = FOLDER / f"{name}-{seed}-{recipe.density}-pruned.safetensors"
    if not pruned.exists():
        prune(student, teacher, layers, recipe, data, seed)
        save_file(student.export_weights(), pruned)
    student = build(network, load_file(pruned))
    say(f"pruned to {recipe.density:.2%}: {error(student, data.validation):.2%}")
    share(student, teacher, layers, recipe, data, seed)
    round_biases(student, data)
    path, plain = FOLDER / f"{name}-{seed}.acz", FOLDER / f"{name}-{seed}-huffman.acz"
    size = save_acz(path, network, student.export_weights())
    huffman = save_acz(plain, network, student.export_weights(), coder="huffman")
    decoded = load_acz(path)
    dense = 4 * sum(array.size for array in weights.values())
    say(
        f"{path.name}: {size:,} bytes of {dense:,}: {dense / size:.1f}× ({dense / huffman:.1f}× with Huffman "
        f"codes); held-out error {error(decoded, data.validation):.2%}; "
        f"{(time.monotonic() - started) / 60:.0f} min"
    )
    for key, array in student.export_weights().items():
        print(f"  {key:12}{np.count_nonzero(array):8,} of {array.size:9,}{tensor_bytes(array):8,} bytes")
    if read_test and data.test is not None:
        wrong, before = error(decoded, data.test), error(teacher, data.test)
        met = dense / size >= recipe.target_ratio and wrong <= recipe.target_error
        print(
            f"{name}, seed {seed}: {dense / size:.1f}× at {wrong:.2%} test error (teacher {before:.2%}); "
            f"target {recipe.target_ratio:.0f}× at {recipe.target_error:.2%}: {'met' if met else 'missed'}"
        )


def teacher_of(name: str, recipe: Recipe, data: Data, seed: int) -> tuple[Network, Weights]:
    """The float32 teacher, trained unless it lies in the folder."""
    torch.manual_seed(seed)
    network, weights = trace(NETWORKS[name]().eval(), data.input_shape)
    path = FOLDER / f"{name}-{seed}-teacher.safetensors"
    if not path.exists():
        module = build(network, weights)
        distil(
            module,
            None,
            data,
            DistillSettings(epochs=recipe.teacher_epochs, batch_size=BATCH, learning_rate=0.1, seed=seed),
            progress=shown,
        )
        save_file(module.export_weights(), path)
    return network, load_file(path)


def prune(
    student: GraphModule, teacher: GraphModule, layers: list[str], recipe: Recipe, data: Data, seed: int
) -> None:
    loss = ClassLoss(TEMPERATURE, ALPHA)
    pruning = GradualPruning(student, layers, recipe.density)

    def step(done: int, total: int, value: float) -> None:
        pruning(done, total, value)
        shown(done, total, value)

    distil(
        student,
        teacher,
        data,
        DistillSettings(epochs=recipe.prune_epochs, batch_size=BATCH, learning_rate=0.1, seed=seed + 1),
        loss=loss,
        progress=step,
    )
    with hold_zeros(student, pruning.masks):
        distil(
            student,
            teacher,
            data,
            DistillSettings(epochs=recipe.settle_epochs, batch_size=BATCH, learning_rate=0.05, seed=seed + 2),
            loss=loss,
            progress=shown,
        )


def share(
    student: GraphModule, teacher: GraphModule, layers: list[str], recipe: Recipe, data: Data, seed: int
) -> None:
    """Shared values by rate and distortion, fine-tuned, and rounded to float16."""
    books = {key: shared(student.tensor_named(key), recipe) for key in layers}
    put(student, books)
    say(f"shared: {error(student, data.validation):.2%}")
    with hold_shared(student, {key: book.indices for key, book in books.items()}):
        distil(
            student,
            teacher,
            data,
            DistillSettings(epochs=recipe.share_epochs, batch_size=BATCH, learning_rate=0.005, seed=seed + 3),
            loss=ClassLoss(TEMPERATURE, ALPHA),
            progress=shown,
        )
    say(f"fine-tuned: {error(student, data.validation):.2%}")
    for key in layers:
        tensor = student.tensor_named(key)
        with torch.no_grad():
            tensor.copy_(tensor.half().float())


def shared(tensor: Tensor, recipe: Recipe) -> Codebook:
    weight = tensor.detach().numpy()
    kept = weight[weight != 0]
    return entropy_constrained(weight, recipe.values, recipe.bit_price * float(np.square(kept).mean()))


def put(student: GraphModule, books: dict[str, Codebook]) -> None:
    with torch.no_grad():
        for key, book in books.items():
            student.tensor_named(key).copy_(torch.from_numpy(book.weight))


def round_biases(student: GraphModule, data: Data, levels: int = 15) -> None:
    """Each bias to a multiple of a power of two, `levels` of them on either side of zero at most."""
    with torch.no_grad():
        for key in student.source_network.params:
            if key.endswith("bias"):
                bias = student.tensor_named(key)
                step = 2.0 ** math.ceil(math.log2(float(bias.abs().max()) / levels))
                bias.copy_(torch.round(bias / step) * step)
    say(f"biases rounded: {error(student, data.validation):.2%}")


@dataclass(frozen=True, eq=False)
class Warped(Split):
    """A split whose images are shifted, turned, stretched and bent a little when they are augmented."""

    inner: Split

    @property
    def labels(self) -> Tensor:  # type: ignore[override]
        return self.inner.labels

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        augment: bool = False,
        seed: int = 0,
        drop_last: bool = False,
    ) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed + 2)
        for images, labels in self.inner.batches(batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last):
            yield (warped(images, generator) if augment else images), labels

    def select(self, positions: Tensor) -> Split:
        return Warped(self.inner.select(positions))

    def fingerprint(self) -> str:
        return self.inner.fingerprint()


def warped(images: Tensor, generator: torch.Generator) -> Tensor:
    """(N, 1, 28, 28) each moved by up to 2 pixels, turned by 10°, scaled by 10 %, sheared and bent."""
    count = len(images)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * 2 - 1

    angle, scale, shear = draw(count) * math.radians(10), 1 + draw(count) * 0.1, draw(count) * 0.15
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    move = draw(count, 2) * 2 / 14
    rows = [torch.stack([cosine, shear * cosine - sine, move[:, 0]], 1),
            torch.stack([sine, cosine + shear * sine, move[:, 1]], 1)]  # fmt: skip
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    bend = torch.randn(count, 2, 5, 5, generator=generator) / 14
    grid = grid + functional.interpolate(
        bend, size=images.shape[2:], mode="bicubic", align_corners=False
    ).permute(0, 2, 3, 1)
    dark = images.amin()
    return functional.grid_sample(images - dark, grid, align_corners=False) + dark


def error(module: nn.Module, split: Split) -> float:
    return 1 - evaluate(module, split).accuracy


def shown(done: int, total: int, loss: float) -> None:
    if done % 1000 == 0:
        print(f"  step {done} of {total}, loss {loss:.4f}", file=sys.stderr, flush=True)


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
