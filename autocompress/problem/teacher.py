"""The teacher: from what the user names to a checked module in eval mode on the CPU, in float32."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from autocompress.errors import TeacherError
from autocompress.problem import specs
from autocompress.problem.inputs import example_of, first_channels
from autocompress.problem.weights.checkpoints import load_weights
from autocompress.problem.weights.model_folders import is_model_folder, open_folder
from autocompress.problem.weights.plain_module import deep_copy, plain

HUB_TIMEOUT_S = 3.0
CHECK_BATCH = 2


@dataclass(frozen=True)
class Preprocessing:
    """Hold what the teacher says about its input; None where it says nothing.

    `input_shape` is (C, H, W); `fixed` where no other size can be used. `crop_share` is the side of
    the centre crop by that of the image. `channels` is what the first convolution reads, which may
    be known where the size is not.
    """

    input_shape: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    fixed: bool = False
    crop_share: float = 1.0
    channels: int | None = None


@dataclass(frozen=True)
class Teacher:
    """Hold a teacher; `fingerprint` is the SHA-256 over names, shapes and bytes of all parameters and
    buffers.

    `class_names` are those of its outputs, where it brings them; `notes` say what was taken for it.
    `example` is what it is called with, where it says so: a tensor, a tuple of arguments, or a dict of them.
    """

    module: nn.Module
    name: str
    spec: str
    fingerprint: str
    preprocessing: Preprocessing
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    example: Any = None


def load_teacher(spec: str | nn.Module | Teacher) -> Teacher:
    """Load the teacher that a spec names, or a copy of the module given.

    `timm:NAME[,key=value…]` (`weights=FILE`, `pretrained`, and whatever `timm.create_model` takes),
    `package.module:callable[,key=value…]`, `file.py:callable[,key=value…]`, or a folder with a config.json
    of timm or transformers. `weights=FILE` is loaded into what a callable returns, too, unless it takes
    an argument of that name; `weights_key=KEY` chooses among several sets of weights in the file. A callable
    may return a pair: the module, and an example of what it is called with.

    Raises TeacherError when it cannot be found or built, is no nn.Module, or has NaN or infinite weights.
    """
    if isinstance(spec, Teacher):
        return spec
    if isinstance(spec, nn.Module):
        return _finish(deep_copy(spec), type(spec).__name__, "")
    if not isinstance(spec, str):
        raise TeacherError(
            f"a teacher cannot be made from a {type(spec).__name__}", fix="give an nn.Module or a spec string"
        )
    parsed = specs.parse(spec, TeacherError)
    if parsed.kind == "timm":
        module, note = _from_timm(parsed)
        return _finish(module, parsed.target, spec, note)
    folder = ":".join(filter(None, (parsed.kind, parsed.target)))
    if is_model_folder(folder):
        parsed.without_options(TeacherError)
        return _of_folder(folder, spec)
    if not parsed.kind or not parsed.target:
        raise TeacherError(
            f"the teacher {spec!r} is not understood",
            fix="use timm:NAME[,weights=FILE], package.module:callable, file.py:callable, or a folder with "
            "a config.json",
        )
    module, note, example = _from_callable(parsed)
    teacher = _finish(module, parsed.target, spec, note)
    return teacher if example is None else replace(teacher, example=example)


def _of_folder(folder: str, spec: str) -> Teacher:
    opened = open_folder(folder)
    teacher = _finish(opened.module, Path(folder).resolve().name, spec, opened.note, opened.class_names)
    said = {key: value for key, value in opened.config.items() if value is not None}
    return replace(teacher, preprocessing=_preprocessing(opened.module, said)) if said else teacher


def check_teacher(
    module: nn.Module, input_shape: tuple[int, ...], num_classes: int | None = None
) -> tuple[int, ...]:
    """Run one random batch of `(C, H, W)` inputs; return the output's shape without the batch axis.

    Raises TeacherError when the teacher does not run, returns anything but one tensor, has another
    number of outputs than the data has classes, or computes NaN. None skips the check of classes.
    """
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn((CHECK_BATCH, *input_shape), generator=generator)
    return _check_output(module, result_of(module, (batch,)), num_classes)


def result_of(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> Any:
    """Return what the module makes of one call. Raises TeacherError when it does not run."""
    try:
        with eval_mode(module), torch.inference_mode():
            return module(*args, **(kwargs or {}))
    except Exception as problem:
        shapes = [tuple(one.shape) for one in (*args, *(kwargs or {}).values()) if isinstance(one, Tensor)]
        shape = shapes[0][1:] if len(shapes) == 1 else ()
        raise TeacherError(
            f"the teacher does not run on inputs of shape {shape or shapes}",
            where=type(module).__name__,
            why=f"{type(problem).__name__}: {_first_line(problem)}",
            fix=_on_shape(module, shape) if shape else "give an example of its inputs that it runs on",
        ) from problem


def _on_shape(module: nn.Module, shape: tuple[int, ...]) -> str:
    channels = first_channels(module)
    if channels is not None and len(shape) == 3 and channels != shape[0]:
        return (
            f"its first convolution reads {channels} channels and the data has {shape[0]}: give images of "
            f"{channels} channels, from a folder with --data …,channels={channels}"
        )
    return (
        "give the data in the teacher's size: --data …,size=224 for squares or size=32x96 for 32 high and 96 "
        "wide, or --input-size 32x96 without data; a dataset of your own must give that size itself"
    )


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
        raise TeacherError(
            f"the teacher's output {shape} has no batch axis of {CHECK_BATCH}",
            where=where,
            fix="keep the first axis of the input in forward()",
        )
    if num_classes is not None:
        check_classes(shape[1:], num_classes, where)
    if not bool(torch.isfinite(output).all()):
        raise TeacherError(
            "the teacher computes NaN or infinity on a random input",
            where=where,
            fix="check the teacher's weights, and its input's mean and std",
        )
    return shape[1:]


def check_classes(outputs: tuple[int, ...], num_classes: int, where: str) -> None:
    """Raise TeacherError unless the outputs for one image are a number for each class."""
    if outputs == (num_classes,):
        return
    made = f"{outputs[0]} classes" if len(outputs) == 1 else f"outputs of shape {outputs}"
    more = len(outputs) == 1 and outputs[0] > num_classes
    raise TeacherError(
        f"the teacher has {made} and the data has {num_classes} classes",
        where=where,
        fix="say which output each class is: --data …,class_map=3/17/5, or class_map=FILE of lines cat,281"
        if more
        else "give data of the teacher's classes, or build the teacher with num_classes of the data",
    )


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode, and each submodule back into its own mode at the end."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def fingerprint(module: nn.Module) -> str:
    """Return the SHA-256 over names, dtypes, shapes and bytes of the state dict, sorted by name."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        array = value.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _finish(
    module: nn.Module, name: str, spec: str, note: str = "", class_names: tuple[str, ...] = ()
) -> Teacher:
    module = plain(module)
    _check_finite(module, spec or name)
    settings = getattr(module, "pretrained_cfg", None)
    hints = _preprocessing(module, settings if isinstance(settings, Mapping) else {})
    notes = tuple(filter(None, (note,)))
    return Teacher(
        module, name, spec, fingerprint(module), hints, class_names, notes, example=example_of(module)
    )


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


def _preprocessing(module: nn.Module, settings: Mapping[str, Any]) -> Preprocessing:
    """Return what timm's `settings` say; they go on saying three channels where a network was made for
    others."""
    shape = settings.get("input_size")
    patches = getattr(module, "patch_embed", None)
    size = getattr(patches, "img_size", None)
    if shape is not None and isinstance(size, tuple) and len(size) == 2:
        shape = (shape[0], *size)
    channels = first_channels(module, settings.get("first_conv")) or (int(shape[0]) if shape else None)
    return Preprocessing(
        input_shape=None if shape is None else (channels or int(shape[0]), int(shape[1]), int(shape[2])),
        mean=_floats(settings.get("mean")),
        std=_floats(settings.get("std")),
        fixed=bool(settings.get("fixed_input_size")),
        crop_share=float(settings.get("crop_pct") or 1.0),
        channels=channels,
    )


def _floats(values: Any) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(value) for value in values)


def _from_callable(spec: specs.Spec) -> tuple[nn.Module, str, Any]:
    """Return the network, what was taken of `weights=FILE`, unless the callable has an argument `weights`,
    and an example of its inputs where the callable returns one beside it."""
    made = specs.load_callable(spec, TeacherError)
    options = dict(spec.options)
    own = isinstance(made, nn.Module) or not specs.takes(made, "weights")
    weights = options.pop("weights", None) if own else None
    key = options.pop("weights_key", None) if weights is not None else None
    if not isinstance(made, nn.Module):
        made = specs.call(replace(spec, options=options), made, TeacherError)
    example = None
    if isinstance(made, tuple) and len(made) == 2:
        made, example = made
    if isinstance(made, nn.Module):
        module = deep_copy(made)
        note = "" if weights is None else _load(module, str(weights), spec, key)
        return module, note, example
    raise TeacherError(
        f"{spec.target} returned a {type(made).__name__}, not an nn.Module",
        where=spec.text,
        fix="let it return the model itself",
    )


def _from_timm(spec: specs.Spec) -> tuple[nn.Module, str]:
    options = dict(spec.options)
    weights, pretrained = options.pop("weights", None), bool(options.pop("pretrained", False))
    key = options.pop("weights_key", None)
    if weights is not None and pretrained:
        raise TeacherError(
            "weights=FILE and pretrained exclude each other", where=spec.text, fix="give one of them"
        )
    if weights is not None:
        _weights_file(str(weights), spec)
    _check_timm_name(spec)
    if pretrained:
        _check_hub(spec)
    module = _create_timm(spec, pretrained, options)
    return module, "" if weights is None else _load(module, str(weights), spec, key)


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
    """Fail in seconds where the hub's own client would try again for most of a minute."""
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
    if path.is_file():
        return path
    raise TeacherError(f"the weights file {name} does not exist", where=spec.text, fix=specs.path_fix(spec))


def _load(module: nn.Module, weights: str, spec: specs.Spec, key: specs.Value | None) -> str:
    return load_weights(module, _weights_file(weights, spec), spec.target, None if key is None else str(key))


def _first_line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [""])[0][:300]
