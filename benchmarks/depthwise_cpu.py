"""Every implementation of the depthwise convolution against K and against the size of the map, on this CPU.

    python benchmarks/depthwise_cpu.py             # some minutes
    python benchmarks/depthwise_cpu.py --dtype bfloat16
    python benchmarks/depthwise_cpu.py --draw      # the picture again, from what is written

Forward and weight gradient of 128 channels, batch 4: K = 3 to 31 on a 28 x 28 map, and K = 13 on maps of 7 to 56, in
both memory formats. Implementations take turns in every round. Written to benchmarks/results/depthwise_cpu_DTYPE.json
and .png; the dashed line is the time in which memory moves the two maps and the kernel once, at the speed of a large
copy measured in the same run.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from machine import machine, take_turns

from core.figures import new_figure
from core.ops.measure import Convolution, measure

RESULTS = Path(__file__).parent / "results"
BATCH, CHANNELS = 4, 128
KERNELS, SIDES = (3, 5, 7, 9, 11, 13, 15, 17, 21, 27, 31), (7, 14, 28, 56)


def bandwidth(rounds: int) -> float:
    """Bytes a second that a copy of 256 MiB reads and writes."""
    source = torch.zeros(2**26)
    target = torch.zeros_like(source)
    return 2 * source.nbytes / min(take_turns({"copy": lambda: target.copy_(source)}, rounds)["copy"])


def sweep(dtype: torch.dtype, rounds: int) -> list[dict[str, Any]]:
    """One row for each kind, format and size."""
    rows = []
    cases = [(28, k) for k in KERNELS] + [(side, 13) for side in SIDES if side != 28]
    for kind in ("forward", "weight_gradient"):
        for last in (True, False):
            for side, size in cases:
                convolution = Convolution((BATCH, CHANNELS, side, side), (size, size), 1, last, kind)
                times = measure(convolution, dtype, "cpu", rounds=rounds).milliseconds
                rows.append({"kind": kind, "channels_last": last, "side": side, "kernel": size, "ms": times})
    return rows


def figure(report: dict[str, Any]) -> Any:
    """Time against K and against the side of the map, for both kinds, on channels_last maps."""
    rows, size = report["rows"], torch.finfo(getattr(torch, report["dtype"])).bits // 8
    drawing = new_figure(11, 8)
    axes = drawing.subplots(2, 2, sharey="row")
    for across, kind in zip(axes, ("forward", "weight_gradient"), strict=True):
        for axis, name, fixed, value in zip(across, ("kernel", "side"), ("side", "kernel"), (28, 13), strict=True):
            some = [r for r in rows if r["kind"] == kind and r["channels_last"] and r[fixed] == value]
            some.sort(key=lambda row, name=name: row[name])
            for way in dict.fromkeys(way for row in some for way in row["ms"]):
                points = [(row[name], row["ms"][way]) for row in some if way in row["ms"]]
                axis.plot(*zip(*points, strict=True), marker="o", label=way)
            moved = [2 * BATCH * CHANNELS * row["side"] ** 2 * size for row in some]
            least = [maps / report["bandwidth_gb_per_s"] / 1e6 for maps in moved]
            axis.plot([row[name] for row in some], least, "k--", label="memory once")
            axis.set(xscale="log", yscale="log", ylabel="ms", title=f"{kind.replace('_', ' ')}, {fixed} {value}")
            axis.set_xticks([row[name] for row in some], [str(row[name]) for row in some])
            axis.set_xlabel("kernel size K" if name == "kernel" else "side of the map")
            axis.minorticks_off()
    drawing.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    where = f"{report['cpu']}, {report['threads']} threads"
    drawing.suptitle(f"batch {BATCH}, {CHANNELS} channels, {report['dtype']}, {where}")
    return drawing


def write(file: Path, dtype: str, rounds: int) -> None:
    """Measure, print, and write the figures."""
    moved, rows, where = bandwidth(rounds), sweep(getattr(torch, dtype), rounds), machine()
    for row in rows:
        layout = "channels_last" if row["channels_last"] else "contiguous"
        times = ", ".join(f"{name} {time:.3f}" for name, time in sorted(row["ms"].items(), key=lambda item: item[1]))
        print(f"{row['kind']}, {layout}, {row['side']} x {row['side']}, K = {row['kernel']}: {times} ms")
    file.parent.mkdir(parents=True, exist_ok=True)
    report = {**where, "dtype": dtype, "rounds": rounds, "bandwidth_gb_per_s": moved / 1e9, "rows": rows}
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
