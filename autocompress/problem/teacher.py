"""The teacher: from what the user names to a checked module in eval mode on the CPU, in float32."""

from __future__ import annotations

import copy
import hashlib
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from autocompress.errors import TeacherError
from autocompress.problem import specs

HUB_TIMEOUT_S = 3.0
CHECK_BATCH = 2


@dataclass(frozen=True)
class Preprocessing:
    """What the teacher says about its input; None where it says nothing.

    `input_shape` is (C, H, W); `fixed` where no other size can be used. `crop_share` is the side of
    the centre crop by that of the image.
    """

    input_shape: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    fixed: bool = False
    crop_share: float = 1.0


@dataclass(frozen=True)
class Teacher:
    """`fingerprint` is the SHA-256 over names, shapes and bytes of all parameters and buffers."""

    module: nn.Module
    name: str
    spec: str
    fingerprint: str
    preprocessing: Preprocessing


def load_teacher(spec: str | nn.Module | Teacher) -> Teacher:
    """The teacher that a spec names, or a copy of the module given.

    `timm:NAME[,key=value…]` (`weights=FILE`, `pretrained`, and whatever `timm.create_model` takes),
    `package.module:callable[,key=value…]` or `file.py:callable[,key=value…]`.

    Raises TeacherError when it cannot be found or built, is no nn.Module, or has NaN or infinite weights.
    """
    if isinstance(spec, Teacher):
        return spec
    if isinstance(spec, nn.Module):
        return _finish(copy.deepcopy(spec), type(spec).__name__, "")
    if not isinstance(spec, str):
        raise TeacherError(
            f"a teacher cannot be made from a {type(spec).__name__}", fix="give an nn.Module or a spec string"
        )
    parsed = specs.parse(spec, TeacherError)
    if parsed.kind == "timm":
        return _finish(_from_timm(parsed), parsed.target, spec)
    if not parsed.kind or not parsed.target:
        raise TeacherError(
            f"the teacher {spec!r} is not understood",
            fix="use timm:NAME[,weights=FILE], package.module:callable or file.py:callable",
        )
    return _finish(_from_callable(parsed), parsed.target, spec)


def check_teacher(
    module: nn.Module, input_shape: tuple[int, ...], num_classes: int | None = None
) -> tuple[int, ...]:
    """Runs one random batch of `(C, H, W)` inputs; returns the output's shape without the batch axis.

    Raises TeacherError when the teacher does not run, returns anything but one tensor, has another
    number of outputs than the data has classes, or computes NaN. None skips the check of classes.
    """
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn((CHECK_BATCH, *input_shape), generator=generator)
    try:
        with eval_mode(module), torch.inference_mode():
            output = module(batch)
    except Exception as problem:
        raise TeacherError(
            f"the teacher does not run on inputs of shape {tuple(input_shape)}",
            where=type(module).__name__,
            why=f"{type(problem).__name__}: {_first_line(problem)}",
            fix="give the data in the teacher's size and channels, for example with --data …,size=224",
        ) from problem
    return _check_output(module, output, num_classes)


def _check_output(module: nn.Module, output: Any, num_classes: int | None) -> tuple[int, ...]:
    where = type(module).__name__
    if not isinstance(output, Tensor):
        raise TeacherError(
            f"the teacher returns a {type(output).__name__}, not one tensor",
            where=where,
            why="students learn from, and are compared on, a single output tensor",
            fix="wrap it in a module whose forward returns only the logits",
        )
    shape = tuple(output.shape)
    if shape[:1] != (CHECK_BATCH,):
        raise TeacherError(f"the teacher's output {shape} has no batch axis of {CHECK_BATCH}", where=where)
    if num_classes is not None and shape != (CHECK_BATCH, num_classes):
        made = f"{shape[1]} classes" if len(shape) == 2 else f"outputs of shape {shape[1:]}"
        raise TeacherError(
            f"the teacher has {made} and the data has {num_classes} classes",
            where=where,
            fix="give data of the teacher's classes, or build the teacher with num_classes of the data",
        )
    if not bool(torch.isfinite(output).all()):
        raise TeacherError("the teacher computes NaN or infinity on a random input", where=where)
    return shape[1:]


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Puts a module into eval mode, and each submodule back into its own mode at the end."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the state dict, sorted by name."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        array = value.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _finish(module: nn.Module, name: str, spec: str) -> Teacher:
    module = module.to("cpu", torch.float32).eval()
    _check_finite(module, spec or name)
    return Teacher(module, name, spec, fingerprint(module), _preprocessing(module))


def _check_finite(module: nn.Module, where: str) -> None:
    for name, value in module.state_dict().items():
        if not value.is_floating_point():
            continue
        bad = int((~torch.isfinite(value)).sum())
        if bad:
            raise TeacherError(
                f"the teacher's {name} holds {bad} NaN or infinite values out of {value.numel()}",
                where=where,
                fix="load a checkpoint from before the training diverged",
            )


def _preprocessing(module: nn.Module) -> Preprocessing:
    settings = getattr(module, "pretrained_cfg", None)
    if not isinstance(settings, Mapping):
        return Preprocessing()
    shape = settings.get("input_size")
    patches = getattr(module, "patch_embed", None)
    size = getattr(patches, "img_size", None)
    if shape is not None and isinstance(size, tuple) and len(size) == 2:
        shape = (shape[0], *size)
    return Preprocessing(
        input_shape=None if shape is None else (int(shape[0]), int(shape[1]), int(shape[2])),
        mean=_floats(settings.get("mean")),
        std=_floats(settings.get("std")),
        fixed=bool(settings.get("fixed_input_size")),
        crop_share=float(settings.get("crop_pct") or 1.0),
    )


def _floats(values: Any) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(value) for value in values)


def _from_callable(spec: specs.Spec) -> nn.Module:
    made = specs.load_callable(spec, TeacherError)
    if not isinstance(made, nn.Module):
        made = specs.call(spec, made, TeacherError)
    if isinstance(made, nn.Module):
        return copy.deepcopy(made)
    raise TeacherError(
        f"{spec.target} returned a {type(made).__name__}, not an nn.Module",
        where=spec.text,
        fix="let it return the model itself",
    )


def _from_timm(spec: specs.Spec) -> nn.Module:
    options = dict(spec.options)
    weights, pretrained = options.pop("weights", None), bool(options.pop("pretrained", False))
    if weights is not None and pretrained:
        raise TeacherError("weights=FILE and pretrained exclude each other", where=spec.text)
    file = None if weights is None else _weights_file(str(weights), spec)
    _check_timm_name(spec)
    if pretrained:
        _check_hub(spec)
    module = _create_timm(spec, pretrained, options)
    if file is not None:
        _load_weights(module, file, spec)
    return module


def _create_timm(spec: specs.Spec, pretrained: bool, options: Mapping[str, specs.Value]) -> nn.Module:
    import timm

    try:
        return cast(nn.Module, timm.create_model(spec.target, pretrained=pretrained, **options))
    except Exception as problem:
        raise TeacherError(
            f"timm cannot build {spec.target}",
            where=spec.text,
            why=f"{type(problem).__name__}: {_first_line(problem)}",
            fix="check the options; without pretrained nothing is asked of the hub",
        ) from problem


def _check_timm_name(spec: specs.Spec) -> None:
    import timm
    from timm.models import split_model_name_tag

    name, _ = split_model_name_tag(spec.target)
    if timm.is_model(name):
        return
    close = get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
    raise TeacherError(
        f"timm knows no model {spec.target!r}",
        where=spec.text,
        fix=f"close names: {', '.join(close)}" if close else "see timm.list_models()",
    )


def _check_hub(spec: specs.Spec) -> None:
    """Fails in seconds where the hub's own client would try again for most of a minute."""
    from huggingface_hub import constants, try_to_load_from_cache
    from timm.models import get_pretrained_cfg

    settings = get_pretrained_cfg(spec.target)
    repository = getattr(settings, "hf_hub_id", None)
    if not repository:
        return
    tag = getattr(settings, "architecture", spec.target), getattr(settings, "tag", "")
    repository = repository if not repository.endswith("/") else repository + ".".join(filter(None, tag))
    files = ("model.safetensors", "pytorch_model.bin")
    if any(isinstance(try_to_load_from_cache(repository, file), str) for file in files):
        return
    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=HUB_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return
    except OSError as problem:
        raise TeacherError(
            f"the weights of {spec.target} cannot be fetched: {constants.ENDPOINT} is not reached",
            where=spec.text,
            why=str(getattr(problem, "reason", problem)),
            fix="give a local file with weights=FILE.safetensors instead of pretrained",
        ) from problem


def _weights_file(name: str, spec: specs.Spec) -> Path:
    path = Path(name).expanduser()
    if not path.is_file():
        raise TeacherError(f"the weights file {name} does not exist", where=spec.text, fix="check the path")
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise TeacherError(
            f"weights of the form {path.suffix or path.name!r} are not read",
            where=spec.text,
            fix="save them with safetensors.torch.save_file(model.state_dict(), FILE)",
        )
    return path


def _load_weights(module: nn.Module, path: Path, spec: specs.Spec) -> None:
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = _state_of(torch.load(path, map_location="cpu", weights_only=True))
        module.load_state_dict(state)
    except Exception as problem:
        raise TeacherError(
            f"the weights in {path} do not fit {spec.target}",
            where=spec.text,
            why=_mismatch(problem),
            fix="give the options the weights were trained with, for example num_classes=10",
        ) from problem


def _state_of(checkpoint: Any) -> dict[str, Tensor]:
    """Training scripts put the state dict under a key, and `module.` before names when it ran in parallel."""
    for key in ("state_dict", "model"):
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
    return {str(name).removeprefix("module."): value for name, value in checkpoint.items()}


def _mismatch(problem: Exception) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return (lines[1] if len(lines) > 1 else lines[0] if lines else type(problem).__name__)[:300]


def _first_line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [""])[0][:300]
