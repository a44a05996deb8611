"""The depthwise convolution in Triton against PyTorch's on an NVIDIA GPU: time, share of the bandwidth, error.

    python benchmarks/depthwise_gpu.py            # at most ten minutes
    python benchmarks/depthwise_gpu.py --quick    # fewer rounds

bfloat16, batch 64, forward and both gradients, contiguous and channels_last, PyTorch with
`torch.backends.cudnn.benchmark`. The four ways take turns in every round; a turn replays a CUDA graph of as many calls
as take about ten milliseconds, so that neither side waits for Python. The table has the median of the rounds, the ratio
of the better of PyTorch's formats to each of ours, the share of our time in which memory would move every operand
once, and the largest error, relative to the largest value of the float64 result. The calls of a turn use the same
tensors: what fits into the cache of the GPU stays there, and its share may pass 100 %.

The same goes to benchmarks/results/depthwise_gpu.json, with hardware, versions and commit.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import commit
from torch import Tensor

from core.ops.triton import convolve, triton_available, weight_gradient

RESULTS = Path(__file__).parent / "results" / "depthwise_gpu.json"
BATCH = 64
NETS = [  # net, channels, side of the map, side of the kernel
    ("RepLKNet-31B", 128, 56, 31),
    ("RepLKNet-31B", 256, 28, 29),
    ("RepLKNet-31B", 512, 14, 27),
    ("RepLKNet-31B", 1024, 7, 13),
    ("UniRepLKNet-T", 80, 56, 3),
    ("UniRepLKNet-T", 160, 28, 13),
    ("UniRepLKNet-T", 320, 14, 13),
    ("UniRepLKNet-T", 320, 14, 3),
    ("UniRepLKNet-T", 640, 7, 13),
]
SWEEP = [("sweep", 256, 28, size) for size in (7, 9, 13, 27, 31)] + [("sweep", 512, 14, k) for k in (7, 9, 13, 31)]
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
DIRECTIONS = ("forward", "input gradient", "weight gradient")
Call = Callable[[], Tensor]


def calls(direction: str, x: Tensor, weight: Tensor, grad: Tensor) -> dict[str, Call]:
    """One direction by every way: 'ours nchw', 'torch nhwc' and so on."""
    pad, channels = [weight.shape[2] // 2] * 2, x.shape[1]

    def torch_gradient(x: Tensor, grad: Tensor, which: int) -> Tensor:
        mask = [which == 0, which == 1, False]
        settings = [[1, 1], pad, [1, 1], False, [0, 0], channels, mask]
        return torch.ops.aten.convolution_backward(grad, x, weight, None, *settings)[which]

    ways: dict[str, Call] = {}
    size = weight.shape[2]
    for name, memory_format in FORMATS.items():
        a, g = x.contiguous(memory_format=memory_format), grad.contiguous(memory_format=memory_format)
        if direction == "forward":
            ways[f"ours {name}"] = lambda a=a: convolve(a, weight)
            ways[f"torch {name}"] = lambda a=a: torch.nn.functional.conv2d(a, weight, None, 1, pad, 1, channels)
        elif direction == "input gradient":
            ways[f"ours {name}"] = lambda g=g: convolve(g, weight.flip(2, 3))
            ways[f"torch {name}"] = lambda a=a, g=g: torch_gradient(a, g, 0)
        else:
            ways[f"ours {name}"] = lambda a=a, g=g: weight_gradient(a, g, (size, size))
            ways[f"torch {name}"] = lambda a=a, g=g: torch_gradient(a, g, 1)
    return ways


def exact(direction: str, x: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    """The result in float64, by PyTorch."""
    x, weight, grad = x.double(), weight.double(), grad.double()
    return calls(direction, x, weight, grad)["torch nchw"]()


def bytes_once(direction: str, x: Tensor, weight: Tensor) -> int:
    """Bytes of the operands: two maps and the weight, whichever of them is the result."""
    return (2 * x.numel() + weight.numel()) * x.element_size()


def _milliseconds(run: Callable[[], Any]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _graph(call: Call, turn: float) -> tuple[torch.cuda.CUDAGraph, int]:
    """A graph of as many calls as take about ``turn`` milliseconds; the first calls tune and choose algorithms."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    repeats = max(1, min(200, round(turn / max(_milliseconds(call), 1e-3))))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            call()
    graph.replay()
    return graph, repeats


def measure(ways: dict[str, Call], rounds: int, turn: float = 10.0) -> dict[str, list[float]]:
    """Milliseconds of one call in each round; the ways take turns, each round beginning with another."""
    graphs = {name: _graph(call, turn) for name, call in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            graph, repeats = graphs[name]
            times[name].append(_milliseconds(graph.replay) / repeats)
    return times


def bandwidth(rounds: int) -> float:
    """Bytes a second that a copy of 2 GiB reads and writes."""
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = measure({"copy": lambda: target.copy_(source)}, rounds)["copy"]
    return 2 * source.numel() / (statistics.median(times) * 1e-3)


def row(
    case: tuple[str, int, int, int],
    direction: str,
    times: dict[str, list[float]],
    errors: dict[str, float],
    least: float,
) -> dict[str, Any]:
    """One line of the table; ``least`` is the milliseconds in which memory moves the operands once."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    best = min(medians["torch nchw"], medians["torch nhwc"])
    return {
        **dict(zip(("net", "channels", "side", "kernel"), case, strict=True)),
        "direction": direction,
        "ms": {n: {"median": medians[n], "least": min(v), "greatest": max(v)} for n, v in times.items()},
        "ratio": {name: best / medians[f"ours {name}"] for name in FORMATS},
        "bandwidth_share": {name: least / medians[f"ours {name}"] for name in FORMATS},
        "error": errors,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown; a ratio above 1 is a gain over the better of PyTorch's formats."""
    ways = [f"{who} {name}" for who in ("ours", "torch") for name in FORMATS]
    head = ["net", "C, side, K", "direction", *(f"{way} ms (range)" for way in ways)]
    head += ["ratio nchw", "ratio nhwc", "bandwidth nchw", "bandwidth nhwc", "error ours", "error torch"]
    lines = [head, ["---"] * len(head)]
    for r in rows:
        cells = [r["net"], f"{r['channels']}, {r['side']}, {r['kernel']}", r["direction"]]
        cells += ["{median:.4f} ({least:.4f} to {greatest:.4f})".format(**r["ms"][way]) for way in ways]
        cells += [f"{r['ratio'][name]:.2f}" for name in FORMATS]
        cells += [f"{r['bandwidth_share'][name]:.0%}" for name in FORMATS]
        cells += [f"{max(r['error'][f'{who} {name}'] for name in FORMATS):.1e}" for who in ("ours", "torch")]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _case(case: tuple[str, int, int, int], rounds: int, moved: float) -> list[dict[str, Any]]:
    _, channels, side, kernel = case
    random = torch.Generator("cuda").manual_seed(0)
    shape, options = (BATCH, channels, side, side), {"device": "cuda", "dtype": torch.bfloat16, "generator": random}
    x, grad = torch.randn(shape, **options), torch.randn(shape, **options)
    weight = torch.randn(channels, 1, kernel, kernel, **options)
    rows = []
    for direction in DIRECTIONS:
        ways = calls(direction, x, weight, grad)
        wanted = exact(direction, x, weight, grad)
        errors = {
            name: ((call().double() - wanted).abs().max() / wanted.abs().max()).item() for name, call in ways.items()
        }
        least = 1e3 * bytes_once(direction, x, weight) / moved
        rows.append(row(case, direction, measure(ways, rounds), errors, least))
    return rows


def about(moved: float, rounds: int) -> dict[str, Any]:
    """Hardware, versions, commit and the bandwidth that the shares refer to."""
    import triton

    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "commit": commit(),
        "bandwidth_gb_per_s": moved / 1e9,
        "rounds": rounds,
        "batch": BATCH,
        "dtype": "bfloat16",
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 11")
    parser.add_argument("--minutes", type=float, default=8.5, help="no new size is begun after so many minutes")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser


def main() -> None:
    """Measure, print, write."""
    options = parser().parse_args()
    start = time.monotonic()
    if not torch.cuda.is_available() or not triton_available(torch.empty(0, device="cuda")):
        sys.exit("depthwise_gpu.py needs an NVIDIA GPU of compute capability 8.0 or later, and there is none here")
    torch.backends.cudnn.benchmark = True
    rounds = 3 if options.quick else 11
    moved = bandwidth(rounds)
    rows: list[dict[str, Any]] = []
    left_out = []
    for case in NETS + SWEEP:
        if time.monotonic() - start > 60 * options.minutes:
            left_out.append(case)
            continue
        rows += _case(case, rounds, moved)
        print(f"{case} done after {time.monotonic() - start:.0f} s", file=sys.stderr)
    report = {**about(moved, rounds), "left_out": left_out, "rows": rows}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(", ".join(f"{name} {report[name]}" for name in ("gpu", "torch", "triton", "cuda", "cudnn", "commit")))
    print(f"a copy moves {moved / 1e9:.0f} GB/s; batch {BATCH}, bfloat16, {rounds} rounds\n\n{table(rows)}")
    if left_out:
        print(f"\nleft out for want of time: {left_out}")


if __name__ == "__main__":
    main()
