"""A Dilated Reparam Block before it is folded: its branches one by one, and as one convolution by statistics.

    python benchmarks/training_form.py --device cuda --dtype bfloat16 --compile    # at most ten minutes
    python benchmarks/training_form.py --batch 4
    python benchmarks/training_form.py --batch 4 --mode eval

Forward and backward pass, or the forward pass in eval mode, of the block alone, without the rest of a LarK block, in
the sizes of UniRepLKNet-T. The twin is the official form: `nn.Conv2d` and `nn.BatchNorm2d` for each branch. LarKit's
ways take Triton on a GPU. The last way, one large convolution with its norm, has no branches: what they cost at most.
The ways take turns; a turn is one step on a CPU, ten on a GPU. The table has the median of the rounds and range, the
ratio of the twin's to it, the bytes that autograd keeps for the backward pass, parameters left out, and the largest
error of the output, relative to the largest value in float64.

The same goes to benchmarks/results/training_form.json, one entry for each size, mode, dtype, batch and hardware.
"""

import argparse
import copy
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import keep, machine, take_turns
from naive import naive_twin
from torch import Tensor, nn

from core.layers import DepthwiseConv2d, DilatedReparamBlock
from core.ops.choose import ENVIRONMENT
from core.ops.triton_depthwise import triton_available

RESULTS = Path(__file__).parent / "results" / "training_form.json"
SIZES = [(160, 28, 13), (320, 14, 13), (640, 7, 13)]  # channels, side of the map, side of the kernel
Way = tuple[nn.Module, Tensor, str]
"""A block, its input, and the implementation of the depthwise convolution; '' chooses."""


def ways(block: DilatedReparamBlock, x: Tensor, compiled: bool) -> dict[str, Way]:
    """The twin in both memory formats, ours by branches and as one convolution, and one without branches."""
    last = x.to(memory_format=torch.channels_last)
    twin = naive_twin(block)
    ours = {form: copy.deepcopy(block) for form in ("branches", "merged")}
    for form, each in ours.items():
        each.training_form = form  # type: ignore[assignment]
    channels, size = block.lk_origin.in_channels, block.lk_origin.kernel_size[0]
    alone = nn.Sequential(DepthwiseConv2d(channels, size), nn.BatchNorm2d(channels)).to(x).train(block.training)
    given, asked = (x, "triton") if triton_available(x) else (last, "")
    found: dict[str, Way] = {
        "twin": (twin, x, ""),
        "twin, channels_last": (naive_twin(block).to(memory_format=torch.channels_last), last, ""),
    }
    if compiled:
        found["twin, compiled"] = (torch.compile(naive_twin(block)), x, "")
    found |= {f"LarKit, {form}": (each, given, asked) for form, each in ours.items()}
    if compiled:
        found["LarKit, merged, compiled"] = (torch.compile(copy.deepcopy(ours["merged"])), given, asked)
    return found | {"one convolution": (alone, given, asked)}


@contextmanager
def implementation(name: str) -> Iterator[None]:
    """Every depthwise convolution of ours by one implementation."""
    before = os.environ.pop(ENVIRONMENT, None)
    if name:
        os.environ[ENVIRONMENT] = name
    try:
        yield
    finally:
        os.environ.pop(ENVIRONMENT, None)
        if before is not None:
            os.environ[ENVIRONMENT] = before


def predict(way: Way, times: int) -> Callable[[], None]:
    """Forward passes without gradients."""
    block, x, asked = way

    def run() -> None:
        with implementation(asked), torch.inference_mode():
            for _ in range(times):
                block(x)

    return run


def step(way: Way, slopes: Tensor, times: int) -> Callable[[], None]:
    """Training steps of one way, all gradients made anew."""
    block, x, asked = way
    x = x.detach().requires_grad_()
    slopes = slopes.contiguous(memory_format=torch.channels_last) if not x.is_contiguous() else slopes

    def run() -> None:
        with implementation(asked):
            for _ in range(times):
                block.zero_grad()
                x.grad = None
                block(x).backward(slopes)

    return run


def bytes_kept(way: Way) -> int:
    """What autograd holds between the passes, parameters and buffers left out."""
    block, x, asked = way
    fixed = {value.untyped_storage().data_ptr() for value in (*block.parameters(), *block.buffers())}
    kept: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in fixed:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with implementation(asked), torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        y = block(x.detach().requires_grad_())
        total = sum(kept.values())  # while everything is still alive
        del y
    return total


def report(size: tuple[int, int, int], options: argparse.Namespace) -> dict[str, Any]:
    """Measure one size."""
    torch.manual_seed(0)
    torch.compiler.reset()  # so many compilations of one function are its limit
    channels, side, kernel = size
    dtype = getattr(torch, options.dtype)
    block = DilatedReparamBlock(channels, kernel).to(options.device, dtype).train(options.mode == "train")
    shape = (options.batch, channels, side, side)
    x, slopes = (torch.randn(shape, device=options.device).to(dtype) for _ in range(2))
    found = ways(block, x, options.compile)
    with torch.no_grad():
        wanted = naive_twin(block).double()(x.double())
    steps = 10 if x.is_cuda else 1
    run = partial(step, slopes=slopes) if options.mode == "train" else predict
    times = take_turns({name: run(way, times=steps) for name, way in found.items()}, options.rounds, options.device)
    rows = {}
    for name, way in found.items():
        ms = [1000 * seconds / steps for seconds in times[name]]
        with implementation(way[2]):
            got = way[0](way[1].detach().requires_grad_()).detach().double()
        rows[name] = {
            "ms": {"median": statistics.median(ms), "least": min(ms), "greatest": max(ms)},
            "times_the_twin": statistics.median(times["twin"]) / statistics.median(times[name]),
            "mib_kept": None if "compiled" in name or options.mode == "eval" else bytes_kept(way) / 2**20,
            "error": None if name == "one convolution" else ((got - wanted).abs().max() / wanted.abs().max()).item(),
        }
    sizes = {"channels": channels, "side": side, "kernel": kernel, "mode": options.mode, "dtype": options.dtype}
    return {**sizes, "batch": options.batch, "rounds": options.rounds, "ways": rows}


def table(entry: dict[str, Any]) -> str:
    """The ways at one size as Markdown."""
    head = ["", "ms (range)", "times the twin", "MiB kept", "error"]
    lines = [head, ["---"] * len(head)]
    for way, row in entry["ways"].items():
        cells = [
            way,
            "{median:.2f} ({least:.2f} to {greatest:.2f})".format(**row["ms"]),
            f"{row['times_the_twin']:.2f}",
        ]
        cells += ["" if row["mib_kept"] is None else f"{row['mib_kept']:.1f}"]
        cells += ["" if row["error"] is None else f"{row['error']:.1e}"]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--mode", choices=["train", "eval"], default="train")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--compile", action="store_true", help="also the twin and ours as one under torch.compile")
    parser.add_argument("--sizes", type=int, nargs="+", metavar="N", help="channels, side, K of one size or several")
    parser.add_argument("--minutes", type=float, default=7.5, help="no new size is begun after so many minutes")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser


def main() -> None:
    """Measure, print, write."""
    options = parser().parse_args()
    given = options.sizes or [number for size in SIZES for number in size]
    if len(given) % 3:
        sys.exit(f"--sizes got {len(given)} numbers; expected three for each size: channels, side of the map, K")
    start, torch.backends.cudnn.benchmark, about = time.monotonic(), True, machine(options.device)
    for size in zip(given[::3], given[1::3], given[2::3], strict=True):
        if time.monotonic() - start > 60 * options.minutes:
            print(f"{size} left out for want of time", file=sys.stderr)
            continue
        entry = {**report(size, options), **about}
        keep([entry], options.output, ("channels", "side", "kernel", "mode", "dtype", "batch"))
        print(
            f"\n{size[0]} channels, {size[1]} x {size[1]}, K={size[2]}, {options.mode}, {options.dtype}, "
            f"batch {options.batch}, {entry['threads']} threads, {entry.get('gpu', entry['cpu'])}, "
            f"torch {entry['torch']}\n\n{table(entry)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
