"""The demo's teacher: a residual network for handwritten digits, trained in seconds.

python benchmarks/demo_teacher.py OUT.safetensors
"""

from __future__ import annotations

from pathlib import Path

import click

from autocompress.errors import TeacherError

ARCHITECTURE = "timm:resnet18,channels=64/96/128/160,num_classes=10"
"""timm's ResNet-18 (8 residual blocks of two 3×3 convolutions) with narrower late stages."""

DATA = "digits"
EPOCHS = 12
BATCH_SIZE = 64
LEARNING_RATE = 0.05


def teacher_spec(path: Path) -> str:
    """Return what to give as `--teacher` for the weights written to `path`."""
    return f"{ARCHITECTURE},weights={path}"


def train_digits_teacher(path: Path, seed: int = 0) -> float:
    """Train the demo's teacher, write its weights as safetensors, return its accuracy on test digits.

    Takes about 15 s on one core. Same seed and threads, same weights.
    """
    import timm
    import torch
    from safetensors.torch import save_file

    from autocompress.problem import specs
    from autocompress.problem.data import load_data
    from autocompress.students.accuracy import evaluate
    from autocompress.students.training.distill import distil
    from autocompress.students.training.settings import DistillSettings

    spec = specs.parse(ARCHITECTURE, TeacherError)
    data = load_data(DATA)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(spec.target, **spec.options)
    distil(
        model,
        None,
        data,
        DistillSettings(
            epochs=EPOCHS, batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE, seed=seed, precision="float32"
        ),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    if data.test is None:
        raise ValueError("the digits come with a test split")
    return evaluate(model, data.test).accuracy


@click.command()
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--seed", default=0, show_default=True, help="Seed of weights and batches.")
def main(out: Path, seed: int) -> None:
    """Train the teacher on scikit-learn's handwritten digits and write OUT (safetensors)."""
    accuracy = train_digits_teacher(out, seed)
    click.echo(f"{accuracy:.2%} of the test digits are right: --teacher {teacher_spec(out)}", err=True)


if __name__ == "__main__":
    main()
