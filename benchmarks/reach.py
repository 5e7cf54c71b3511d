"""Which networks go through: 40 families of timm, others drawn at random, and how much of each can change.

    python benchmarks/reach.py families --keep runs/reach      the 40 families
    python benchmarks/reach.py drawn --count 100 --keep runs/reach
    python benchmarks/reach.py report --keep runs/reach

Each network is opened with random weights, in a process of its own, and goes through `autocompress.check`:
joint candidates of width, rank, bits and blocks are made, exported, run in ONNX Runtime and compared. Then
every width is cut alike until half of the multiply-adds are gone. Where Torch-Pruning or NVIDIA ModelOpt is
installed, it is given the same network for the same half. What is finished is kept and not repeated.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

import autocompress
from autocompress.cost.kernels import kernels
from autocompress.graph.module import build
from autocompress.graph.trace import trace
from autocompress.problem.candidate import Candidate
from autocompress.problem.space import parse_space
from autocompress.problem.teacher import load_teacher
from autocompress.progress import Console
from autocompress.transforms.apply import apply
from autocompress.transforms.probe import probed
from autocompress.transforms.sites import bind

FAMILIES = """
resnet18 resnet10t mobilenetv2_100 mobilenetv3_small_100 mobilenetv4_conv_small efficientnet_lite0
efficientnet_b0 mnasnet_100 ghostnet_100 convnext_atto convnextv2_atto vit_tiny_patch16_224
deit_tiny_patch16_224 regnetx_002 regnety_002 densenet121 repvgg_a0 mobileone_s0 edgenext_xx_small
mobilevit_xxs lcnet_050 tinynet_e hardcorenas_a vgg11_bn dla34 hrnet_w18_small res2net50_26w_4s
resnext50_32x4d seresnet18 fastvit_t8 levit_128s poolformer_s12 mixer_s32_224
swin_tiny_patch4_window7_224 xception41 inception_v3 efficientformer_l1 starnet_s1 repghostnet_050
tiny_vit_5m_224
""".split()
LARGEST_PARAMETERS = 60_000_000
"""Of a family that is drawn at random: larger ones say nothing else and take minutes."""
TIMEOUT_S = 1200
RATIOS = (0.875, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5, 0.4, 0.3, 0.2)
WIDTHS = f"""
name: uniform
description: one width for all
rules:
  - match: {{layer: conv}}
    optional: true
    width: {{keep: [{", ".join(map(str, sorted(RATIOS)))}, 1.0], importance: l2, round_to: 4}}
  - match: {{layer: linear}}
    optional: true
    width: {{keep: [{", ".join(map(str, sorted(RATIOS)))}, 1.0], importance: l2, round_to: 4}}
"""


def ours(name: str, candidates: int) -> dict[str, Any]:
    """Return what a check finds: whether all candidates went through, errors, and what can change."""
    started = time.monotonic()
    found = autocompress.check(f"timm:{name}", candidates=candidates, console=Console(quiet=True))
    compared = [one.parity for one in found.candidates if one.parity is not None]
    floats = [
        one.parity.max_error for one in found.candidates if one.parity is not None and one.precision == "fp32"
    ]
    return {
        "passed": not found.failed,
        "reason": found.failed[0].reason if found.failed else "",
        "candidates": len(found.candidates),
        "compared": len(compared),
        "float_error": max(floats, default=None),
        "changeable": found.changeable_share,
        "macs": found.macs,
        "parameters": found.parameters,
        "check_s": time.monotonic() - started,
    }


def halved(name: str) -> dict[str, Any]:
    """Return the largest share of multiply-adds up to a half that is left when all widths are cut alike."""
    loaded = load_teacher(f"timm:{name}")
    shape = loaded.preprocessing.input_shape
    assert shape is not None
    network, weights = trace(loaded.module, shape)
    bound = probed(bind(parse_space(WIDTHS), network), weights)
    whole = _macs(network)
    for ratio in RATIOS:
        options = {site.name: ratio for site in bound.free if ratio in site.options}
        changed, cut = apply(bound, weights, bound.canonical(Candidate.of(options)))
        left = _macs(changed) / whole
        if left <= 0.5:
            assert cut is not None
            with torch.inference_mode():
                result = build(changed, cut)(torch.randn(2, *shape))
            right = (
                bool(torch.isfinite(result).all())
                and result.shape[1:] == network.shape_of(network.output)[1:]
            )
            return {"left": left, "ratio": ratio, "right": right}
    return {"left": left, "ratio": ratio, "right": False}


def _macs(network: Any) -> int:
    return sum(kernel.macs for kernel in kernels(network))


def torch_pruning(name: str) -> dict[str, Any]:
    """Return how Torch-Pruning halves the network: isomorphic groups, heads named, the classifier kept."""
    import timm

    example = torch.randn(1, *load_teacher(f"timm:{name}").preprocessing.input_shape)
    for ratio in RATIOS:
        model = timm.create_model(name).eval()
        before = _torch_macs(model, example)
        _pruned_by_torch_pruning(model, example, 1 - ratio)
        after = _torch_macs(model, example)
        if after <= 0.5 * before:
            with torch.inference_mode():
                right = bool(torch.isfinite(model(example)).all())
            return {"left": after / before, "right": right}
    return {"left": after / before, "right": False}


def _pruned_by_torch_pruning(model: nn.Module, example: torch.Tensor, share: float) -> None:
    import torch_pruning as tp

    classifier = model.get_classifier()
    attention = [
        module
        for module in model.modules()
        if hasattr(module, "qkv") and isinstance(getattr(module, "num_heads", None), int)
    ]
    for module in attention:
        module.fused_attn = False
    pruner = tp.pruner.BasePruner(
        model,
        example,
        tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=share,
        isomorphic=True,
        ignored_layers=[classifier] if isinstance(classifier, nn.Module) else [],
        num_heads={module.qkv: module.num_heads for module in attention},
        round_to=4,
    )
    pruner.step()
    for module in attention:
        module.num_heads = pruner.num_heads[module.qkv]
        module.head_dim = module.qkv.out_features // (3 * module.num_heads)


def fastnas(name: str) -> dict[str, Any]:
    """Return the share of multiply-adds of the smallest network of ModelOpt's FastNAS space."""
    import modelopt.torch.nas as mtn
    import timm

    model = timm.create_model(name).eval()
    example = torch.randn(1, *load_teacher(f"timm:{name}").preprocessing.input_shape)
    before = _torch_macs(model, example)
    space = mtn.convert(model, mode="fastnas")
    mtn.sample(space, min)
    smallest = mtn.export(space).eval()
    after = _torch_macs(smallest, example)
    with torch.inference_mode():
        right = bool(torch.isfinite(smallest(example)).all())
    return {"left": after / before, "right": right and after <= 0.5 * before}


def _torch_macs(model: nn.Module, example: torch.Tensor) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(example)
    return counter.get_total_flops() / 2


PEERS: dict[str, Callable[[str], dict[str, Any]]] = {"torch-pruning": torch_pruning, "fastnas": fastnas}
INSTALLED = {"torch-pruning": "torch_pruning", "fastnas": "modelopt"}


def one(name: str, candidates: int) -> dict[str, Any]:
    """Return all that is found of one network; a step that fails says why."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    steps: dict[str, Callable[[], dict[str, Any]]] = {
        "ours": lambda: ours(name, candidates),
        "halved": lambda: halved(name),
    }
    steps |= {peer: (lambda act=act: act(name)) for peer, act in PEERS.items() if _is_there(peer)}
    found: dict[str, Any] = {"name": name}
    for step, act in steps.items():
        try:
            found[step] = act()
        except Exception as error:
            found[step] = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    found["memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return found


def _is_there(peer: str) -> bool:
    from importlib.util import find_spec

    return find_spec(INSTALLED[peer]) is not None


def run(names: Iterable[str], keep: Path, candidates: int) -> None:
    """Take each network that is not known yet through all steps, in a process of its own."""
    keep.mkdir(parents=True, exist_ok=True)
    for name in names:
        file = keep / f"{name}.json"
        if file.exists():
            continue
        command = [sys.executable, __file__, "one", name, "--candidates", str(candidates)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
            found = json.loads(done.stdout.splitlines()[-1])
        except subprocess.TimeoutExpired:
            found = {"name": name, "ours": {"error": f"took more than {TIMEOUT_S} s"}}
        except (IndexError, ValueError):
            found = {"name": name, "ours": {"error": done.stderr.strip().splitlines()[-1][:300]}}
        file.write_text(json.dumps(found, indent=1))
        print(row(found), flush=True)


def drawn(count: int, seed: int) -> list[str]:
    """Return the names of so many image classifiers of timm that are not of the 40."""
    import timm

    rng = random.Random(seed)
    names = [name for name in timm.list_models() if name not in FAMILIES and not name.startswith("test_")]
    rng.shuffle(names)
    picked = []
    for name in names:
        if len(picked) == count:
            break
        try:
            with torch.device("meta"):
                model = timm.create_model(name)
        except Exception:
            continue
        if sum(one.numel() for one in model.parameters()) <= LARGEST_PARAMETERS:
            picked.append(name)
    return picked


def row(found: dict[str, Any]) -> str:
    """Return a line of the table."""
    mine, half = found.get("ours", {}), found.get("halved", {})
    if "error" in mine:
        return f"| {found['name']} | **no**: {mine['error']} | | | | {_peers(found)}"
    through = f"{mine['compared']} of {mine['candidates']}" if mine["passed"] else f"**no**: {mine['reason']}"
    error = "" if mine["float_error"] is None else f"{mine['float_error']:.0e}"
    left = f"{half['left']:.0%}" if half.get("right") else f"**no** {half.get('error', half.get('left'))}"
    share = f"{100 * mine['changeable']:.0f} %"
    return f"| {found['name']} | {through} | {error} | {share} | {left} | {_peers(found)}"


def _peers(found: dict[str, Any]) -> str:
    words = []
    for peer in PEERS:
        answer = found.get(peer)
        words.append("" if answer is None else "yes" if answer.get("right") else "no")
    return " | ".join(words) + " |"


def report(keep: Path) -> None:
    """Print the table and what it comes to."""
    every = [json.loads(file.read_text()) for file in sorted(keep.glob("*.json"))]
    for title, known in (
        ("The 40 families", [one for one in every if one["name"] in FAMILIES]),
        ("Drawn at random", [one for one in every if one["name"] not in FAMILIES]),
    ):
        if not known:
            continue
        print(f"\n{title}\n")
        print("| network | through | largest float error | can change | MACs at uniform width | "
              "Torch-Pruning | FastNAS |\n|---|---|---|---|---|---|---|")  # fmt: skip
        for one in known:
            print(row(one))
        shares = [one["ours"]["changeable"] for one in known if "changeable" in one.get("ours", {})]
        through = sum(one.get("ours", {}).get("passed", False) for one in known)
        half = sum(bool(one.get("halved", {}).get("right")) for one in known)
        print(f"\n{through} of {len(known)} through, {half} halved; can change: median {median(shares):.1%}, "
              f"{sum(share >= 0.8 for share in shares)} of {len(known)} at 80 % or more")  # fmt: skip
        for peer in PEERS:
            asked = [one[peer] for one in known if peer in one]
            if asked:
                print(f"{peer}: {sum(bool(one.get('right')) for one in asked)} of {len(asked)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=["families", "drawn", "report", "one"])
    parser.add_argument("name", nargs="?")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--keep", type=Path, default=Path("runs/reach"))
    asked = parser.parse_args()
    if asked.step == "one":
        print(json.dumps(one(asked.name, asked.candidates)))
    elif asked.step == "report":
        report(asked.keep)
    else:
        names = FAMILIES if asked.step == "families" else drawn(asked.count, asked.seed)
        run(names, asked.keep, asked.candidates)


if __name__ == "__main__":
    main()
