"""The name of an operation → the torch function that computes it, and back.

An opaque node's operation is the full name of an operator, `namespace::name.overload`. It is looked up
among those that torch has registered, never evaluated: a student folder from a stranger can name only
operators that are pure functions of tensors and that this process has registered already.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import operator
import os
import re
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from autocompress.graph.network import BINARIZE, Network, Node
from autocompress.graph.operations import (
    BINARY,
    KNOWN,
    OPAQUE,
    POINTWISE,
    RECURRENT,
    REDUCTION,
    is_opaque,
    short_name,
)

_NAME = re.compile(r"([A-Za-z_]\w*)::([A-Za-z_]\w*)(?:\.(\w+))?\Z")
PROVIDERS_VARIABLE = "AUTOCOMPRESS_OPERATORS"
"""Names Python files that register operators, for processes that are started by the one that has them."""
_PROVIDERS = {"torchvision": "torchvision", "torchaudio": "torchaudio"}
"""Packages that register operators when they are imported."""
_NOT_FUNCTIONS = frozenset({"prim", "c10d", "debugprims", "profiler", "rpc", "symm_mem", "static_runtime"})
"""Namespaces of torch whose operators reach beyond the tensors that they are given."""
_ANY_TYPE = frozenset({"to.dtype", "where.self"})
_FLOATS_ONLY = (POINTWISE | BINARY | REDUCTION | {"pad", "constant_pad_nd"}) - _ANY_TYPE
"""Known operations that are exported and followed as arithmetic on float32."""
_TRUTHS_ONLY = frozenset(
    """logical_not bitwise_not logical_and logical_or logical_xor bitwise_and.Tensor bitwise_or.Tensor
    bitwise_xor.Tensor __and__.Tensor __or__.Tensor""".split()
)
"""The same, as logic on truth values."""


TORCH_DOMAIN = "torch.ops"
"""The domain of a file's nodes that stand for torch's own operators; only runtimes of torch run them."""


class UnknownOperatorError(KeyError):
    """An operator that is not registered here, or is no pure function of tensors."""

    def __init__(self, op: str, why: str, fix: str) -> None:
        super().__init__(op)
        self.op, self.why, self.fix = op, why, fix

    def __str__(self) -> str:
        return f"{self.op}: {self.why}"


@cache
def implementation(op: str) -> Callable[..., Any]:
    """Return the function that computes `op`. Raises KeyError for a name that stands for none."""
    if is_opaque(op):
        function = operator_named(op)
        return function if has_gradient(op) else _constant_in(function)
    if op not in KNOWN:
        raise KeyError(op)
    if op == "getitem":
        return operator.getitem
    if op.startswith("operator."):
        return {"mul": operator.mul, "floordiv": operator.floordiv, "add": operator.add, "sub": operator.sub}[
            op.removeprefix("operator.")
        ]
    if op == BINARIZE:
        from autocompress.graph.straight_through import binarized

        return binarized
    import torch

    name, _, overload = op.partition(".")
    return getattr(getattr(torch.ops.aten, name), overload or "default")


DTYPE_PREFIX = "dtype:"
_DTYPES = frozenset(
    """float32 float64 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128""".split()
)


def dtype_name(dtype: Any) -> str:
    """Return how a network writes a torch dtype that is an argument of an operation."""
    return DTYPE_PREFIX + str(dtype).removeprefix("torch.")


def dtype_named(text: str) -> Any:
    """Return the torch dtype that `dtype_name` wrote, or the text itself if it is no dtype. Raises
    KeyError."""
    if not text.startswith(DTYPE_PREFIX):
        return text
    import torch

    name = text.removeprefix(DTYPE_PREFIX)
    if name not in _DTYPES:
        raise KeyError(text)
    return getattr(torch, name)


def opaque_name(target: Any) -> str:
    """Return the full name of the operator that a traced call has as its target.

    Raises UnknownOperatorError where it is none, or no pure function of tensors; an operator that changes its
    first argument stands for the one that returns the result instead.
    """
    import torch

    if not isinstance(target, torch._ops.OpOverload):
        raise UnknownOperatorError(str(target), "it is no operator of torch", "use tensor operations instead")
    name = str(target.name()).removesuffix(".default")
    head, _, overload = name.partition(".")
    if target._schema.is_mutable and head.endswith("_"):
        name = head.removesuffix("_") + ("." + overload if overload else "")
    operator_named(name)
    return name


@cache
def operator_named(op: str) -> Callable[..., Any]:
    """Return the registered operator of this full name. Raises UnknownOperatorError."""
    match = _NAME.match(op)
    if match is None:
        raise UnknownOperatorError(op, "it is no operator's full name", "export the student again")
    namespace, name, overload = match.groups()
    found = _registered(namespace, name, overload or "default")
    if found is None:
        _import_providers(namespace)
        found = _registered(namespace, name, overload or "default")
    if found is None:
        raise UnknownOperatorError(
            op,
            f"this process has registered no operator {op}",
            f"import the package that registers {namespace}::…, or name its file in {PROVIDERS_VARIABLE}",
        )
    reason = _impure(namespace, found)
    if reason:
        raise UnknownOperatorError(op, reason, "replace it by operations that compute new tensors")
    return found  # type: ignore[no-any-return]


def has_gradient(op: str) -> bool:
    """Return whether training can go through an operator; its author may have registered no gradient."""
    import torch
    from torch._library.custom_ops import OPDEFS

    if not is_opaque(op) or op.startswith("aten::"):
        return True
    name = op.partition(".")[0]
    if name in OPDEFS:
        return getattr(OPDEFS[name], "_backward_fn", None) is not None
    keys = ("Autograd", "AutogradCPU", "AutogradCUDA", "CompositeImplicitAutograd")
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(op, key) for key in keys)


def _constant_in(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return an operator without a gradient as a constant: what is before it learns by other ways alone."""
    import torch

    def constant(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return function(*args, **kwargs)

    return constant


def needs_providers(network: Network) -> bool:
    """Return whether a network has operators that neither torch nor a package known here registers."""
    ops = {node.op for node in network.nodes if is_opaque(node.op)}
    return any(op.partition(OPAQUE)[0] not in ("aten", *_PROVIDERS) for op in ops)


def provide_operators(module: object) -> None:
    """Let processes that this one starts import the file that a module's class is from, if they lack an
    operator: to import it is to register what it registers."""
    source = sys.modules.get(type(module).__module__)
    path = getattr(source, "__file__", None)
    if path and type(module).__module__ != "__main__":
        known = [one for one in os.environ.get(PROVIDERS_VARIABLE, "").split(os.pathsep) if one]
        os.environ[PROVIDERS_VARIABLE] = os.pathsep.join(dict.fromkeys([*known, str(Path(path).resolve())]))


def _import_providers(namespace: str) -> None:
    """Import the package of a namespace, or else the files that the user's process named."""
    if namespace in _PROVIDERS:
        with contextlib.suppress(ImportError):
            importlib.import_module(_PROVIDERS[namespace])
        return
    loaded = {getattr(module, "__file__", None) for module in [*sys.modules.values()]}
    for path in filter(None, os.environ.get(PROVIDERS_VARIABLE, "").split(os.pathsep)):
        found = importlib.util.spec_from_file_location(Path(path).stem, path)
        if path in loaded or found is None or found.loader is None:
            continue
        module = importlib.util.module_from_spec(found)
        sys.modules[found.name] = module
        sys.path.insert(0, str(Path(path).parent))
        try:
            found.loader.exec_module(module)
        finally:
            sys.path.remove(str(Path(path).parent))


def _registered(namespace: str, name: str, overload: str) -> Any:
    import torch

    packet = getattr(getattr(torch.ops, namespace), name, None)
    found = getattr(packet, overload, None) if isinstance(packet, torch._ops.OpOverloadPacket) else None
    return found if isinstance(found, torch._ops.OpOverload) else None


def _impure(namespace: str, found: Any) -> str:
    """Return why an operator is no pure function of tensors, or nothing."""
    import torch

    schema = found._schema
    if namespace.lstrip("_") in _NOT_FUNCTIONS or namespace.endswith("c10d_functional"):
        return f"operators of {namespace} are no functions of tensors"
    if schema.is_mutable:
        return "it changes its arguments"
    if torch.Tag.nondeterministic_seeded in found.tags and short_name(found.name()) not in RECURRENT:
        return "it draws random numbers"
    types = [str(argument.type) for argument in schema.arguments]
    if not any("Tensor" in kind for kind in types) and (namespace != "aten" or "str" in types):
        return "it reads no tensor"
    if not schema.returns or not all("Tensor" in str(one.type) for one in schema.returns):
        return "it returns something else than tensors"
    return ""


def with_exact_types(network: Network, types: Mapping[str, Any]) -> Network:
    """Return the network with arithmetic on anything but float32 as opaque nodes.

    `types` gives the dtype, by name, of every value that a node computes (a tuple for several). What is
    known of an operation, its export above all, is known for floats; on integers, truth values, other
    precisions and complex numbers it runs as the operator that it is.
    """
    return network.with_nodes(
        node.but(op=f"aten{OPAQUE}{node.op}") if _is_inexact(node, types) else node for node in network.nodes
    )


def _is_inexact(node: Node, types: Mapping[str, Any]) -> bool:
    if node.op not in KNOWN or node.op.startswith("operator.") or node.op in ("getitem", "sym_size.int"):
        return False
    reads = {types.get(name, "float32") for name in node.inputs} - {""}
    if any(str(one).startswith("complex") for one in (*reads, types.get(node.name, ""))):
        return True
    if node.op == "masked_fill.Scalar":
        reads -= {"bool"}
    return node.op in _FLOATS_ONLY and not reads <= {"bool" if node.op in _TRUTHS_ONLY else "float32"}
