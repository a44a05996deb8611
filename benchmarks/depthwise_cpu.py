"""The depthwise convolution of LarKit against PyTorch's in both memory formats, on this CPU.

    python benchmarks/depthwise_cpu.py             # some minutes
    python benchmarks/depthwise_cpu.py --dtype bfloat16
    python benchmarks/depthwise_cpu.py --draw      # the picture again, from what is written

Forward and weight gradient of 128 channels, batch 4, channels_last: K = 3 to 31 on a 28 x 28 map, and K = 13 on maps of
7 to 56. PyTorch's ways convert the map to their format and the result back. The ways take turns in every round. Written
to benchmarks/results/depthwise_cpu_DTYPE.json and .png; the dashed line is the time in which memory moves the two maps
and the kernel once, at the speed of a large copy measured in the same run.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import machine, take_turns
from torch import Tensor
from torch.nn import functional as F

from core.figures import new_figure
from core.ops import depthwise_conv2d

RESULTS = Path(__file__).parent / "results"
BATCH, CHANNELS = 4, 128
KERNELS, SIDES = (3, 5, 7, 9, 11, 13, 15, 17, 21, 27, 31), (7, 14, 28, 56)
FORMATS = {"PyTorch, contiguous": torch.contiguous_format, "PyTorch, channels_last": torch.channels_last}
KINDS = ("forward", "weight gradient")


def bandwidth(rounds: int) -> float:
    """Bytes a second that a copy of 256 MiB reads and writes."""
    source = torch.zeros(2**26)
    target = torch.zeros_like(source)
    return 2 * source.nbytes / min(take_turns({"copy": lambda: target.copy_(source)}, rounds)["copy"])


def ways(kind: str, x: Tensor, weight: Tensor) -> dict[str, Callable[[], Tensor]]:
    """What is timed: a forward pass without gradients, or a backward pass to the weight alone."""
    found: dict[str, Callable[[], Tensor]] = {}
    if kind == "forward":
        for name, layout in FORMATS.items():
            found[name] = lambda layout=layout: _plain(x.contiguous(memory_format=layout), weight).contiguous(
                memory_format=torch.channels_last
            )
        found["LarKit"] = lambda: depthwise_conv2d(x, weight)
        return found

    grad = torch.randn_like(x)
    learned = weight.clone().requires_grad_()
    for name, layout in FORMATS.items():
        y = _plain(x.contiguous(memory_format=layout), learned)
        found[name] = lambda y=y, layout=layout: _gradient(y, learned, grad.contiguous(memory_format=layout))
    y = depthwise_conv2d(x, learned)
    found["LarKit"] = lambda y=y: _gradient(y, learned, grad)
    return found


def _plain(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=weight.shape[2] // 2, groups=x.shape[1])


def _gradient(y: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    return torch.autograd.grad(y, weight, grad, retain_graph=True)[0]


def sweep(dtype: torch.dtype, rounds: int) -> list[dict[str, Any]]:
    """One row for each kind and size, with the median milliseconds of each way."""
    rows = []
    for kind in KINDS:
        for side, size in [(28, k) for k in KERNELS] + [(side, 13) for side in SIDES if side != 28]:
            x = torch.randn(BATCH, CHANNELS, side, side).to(dtype, memory_format=torch.channels_last)
            weight = torch.randn(CHANNELS, 1, size, size).to(dtype)
            with torch.set_grad_enabled(kind != "forward"):
                times = take_turns(ways(kind, x, weight), rounds)
            medians = {way: 1000 * statistics.median(seconds) for way, seconds in times.items()}
            rows.append({"kind": kind, "side": side, "kernel": size, "ms": medians})
    return rows


def figure(report: dict[str, Any]) -> Any:
    """Time against K and against the side of the map, for both kinds."""
    drawing = new_figure(11, 8)
    axes = drawing.subplots(2, 2, sharey="row")
    for across, kind in zip(axes, KINDS, strict=True):
        _draw(across[0], report, kind, "kernel", "side", 28)
        _draw(across[1], report, kind, "side", "kernel", 13)
    drawing.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    where = f"{report['cpu']}, {report['threads']} threads"
    drawing.suptitle(f"batch {BATCH}, {CHANNELS} channels, {report['dtype']}, {where}")
    return drawing


def _draw(axis: Any, report: dict[str, Any], kind: str, name: str, fixed: str, value: int) -> None:
    """The rows of a kind whose field ``fixed`` has a value, against the field ``name``."""
    rows = [row for row in report["rows"] if row["kind"] == kind and row[fixed] == value]
    rows.sort(key=lambda row: row[name])
    places = [row[name] for row in rows]
    for way in rows[0]["ms"]:
        axis.plot(places, [row["ms"][way] for row in rows], marker="o", label=way)

    size = torch.finfo(getattr(torch, report["dtype"])).bits // 8
    moved = [2 * BATCH * CHANNELS * row["side"] ** 2 * size for row in rows]
    axis.plot(places, [maps / report["bandwidth_gb_per_s"] / 1e6 for maps in moved], "k--", label="memory once")
    axis.set(xscale="log", yscale="log", ylabel="ms", title=f"{kind}, {fixed} {value}")
    axis.set_xticks(places, [str(place) for place in places])
    axis.set_xlabel("kernel size K" if name == "kernel" else "side of the map")
    axis.minorticks_off()


def write(file: Path, dtype: str, rounds: int) -> None:
    """Measure, print, and write the figures."""
    report = {
        **machine(),
        "dtype": dtype,
        "rounds": rounds,
        "bandwidth_gb_per_s": bandwidth(rounds) / 1e9,
        "rows": sweep(getattr(torch, dtype), rounds),
    }
    for row in report["rows"]:
        times = ", ".join(f"{way} {time:.3f}" for way, time in row["ms"].items())
        print(f"{row['kind']}, {row['side']} x {row['side']}, K = {row['kernel']}: {times} ms")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {file}")


def main() -> None:
    """Measure or read, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder")
    parser.add_argument("--draw", action="store_true", help="draw what the folder holds, and measure nothing")
    options = parser.parse_args()
    file = options.output / f"depthwise_cpu_{options.dtype}.json"
    if not options.draw:
        write(file, options.dtype, options.rounds)
    elif not file.is_file():
        parser.error(f"there is no {file} to draw; run without --draw first")
    figure(json.loads(file.read_text(encoding="utf-8"))).savefig(file.with_suffix(".png"), dpi=110)
    print(f"wrote {file.with_suffix('.png')}")


if __name__ == "__main__":
    main()
