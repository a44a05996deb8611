"""Whole networks against a twin in the order of the official code and timm's ConvNeXt, in one run.

    python benchmarks/networks.py                    # UniRepLKNet-T and RepLKNet-31B, inference, float32 and bfloat16
    python benchmarks/networks.py --mode train --models unireplknet_a unireplknet_t --dtypes float32
    python benchmarks/networks.py --models replknet_31b --no-compile --device cuda --batch 64

``--mode eval`` is the network before folding, as validation runs it. Every way runs as it is and under torch.compile
(``--no-compile`` leaves that out), and the ways take turns. The table has images a second (median of the rounds and
range), the ratio to the official order as it is, the share of the arithmetic limit (the rate of a 1 x 1 convolution on
channels_last maps, the best of several sizes, measured in the same run, times the model's multiplications), the largest
error relative to the largest value in float64, and the peak of the maps of one image that live at once. Written to
benchmarks/results/networks.json, one entry for each model, mode, dtype and device.
"""

import argparse
import itertools
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from machine import keep, machine, take_turns
from naive import naive_twin
from torch import Tensor, nn
from torch.nn import functional as F

import core
from core.analysis.cost import activation_peak, count_macs

RESULTS = Path(__file__).parent / "results" / "networks.json"
PEERS = {"unireplknet_t": "convnext_tiny", "unireplknet_s": "convnext_small", "unireplknet_a": "convnext_atto"}
TWINS = ("official order", "official order, channels_last")
Way = tuple[nn.Module, Tensor]


def build(name: str, mode: str, dtype: torch.dtype, device: str) -> nn.Module:
    """Random weights that make GRN and layer scale matter: folded, in eval mode before folding, or in training mode."""
    torch.manual_seed(0)
    model = timm.create_model(name).to(device)
    for key, parameter in model.named_parameters():
        if key.endswith("gamma"):
            nn.init.normal_(parameter, 0.3, 0.1)
    model.train(mode == "train")
    if mode == "inference":
        model = core.reparameterize(model)
    return model.to(dtype)


def ways(name: str, model: nn.Module, x: Tensor, compiled: bool) -> dict[str, Way]:
    """The twin in both memory formats, LarKit, timm's ConvNeXt of the same size, and each of them compiled."""
    last = x.to(memory_format=torch.channels_last)
    found = {
        TWINS[0]: (naive_twin(model), x),
        TWINS[1]: (naive_twin(model).to(memory_format=torch.channels_last), last),
        "LarKit": (model, last if x.is_cuda else x),
    }
    if name in PEERS:
        peer = timm.create_model(PEERS[name]).to(x.device, x.dtype).train(model.training)
        found[f"timm {PEERS[name]}"] = (peer, x)
    if compiled:
        # Shapes are fixed for each way. The ways share code, so the compiler would take the strides of the second one
        # for dynamic, and give it and all later ones slower kernels than the first.
        for way, (net, given) in list(found.items()):
            found[f"{way}, compiled"] = (torch.compile(net, dynamic=False), given)
    return found


def _chosen(found: dict[str, Way], names: list[str] | None) -> dict[str, Way]:
    """Those named, and the twin as it is, with which all are compared."""
    unknown = set(names or []) - set(found)
    if unknown:
        raise SystemExit(f"--ways {', '.join(sorted(unknown))}: expected some of {'; '.join(found)}")
    return found if names is None else {way: found[way] for way in found if way in ("official order", *names)}


def runs(found: dict[str, Way], mode: str) -> dict[str, Callable[[], Any]]:
    """One prediction or one training step of each way."""

    def predict(net: nn.Module, x: Tensor) -> None:
        with torch.inference_mode():
            net(x)

    def step(net: nn.Module, x: Tensor) -> None:
        net.zero_grad()
        F.cross_entropy(net(x).float(), torch.zeros(len(x), dtype=torch.long, device=x.device)).backward()

    run = step if mode == "train" else predict
    return {way: lambda net=net, x=x: run(net, x) for way, (net, x) in found.items()}


def arithmetic_rate(dtype: torch.dtype, device: str, rounds: int, batch: int) -> float:
    """Multiplications a second of the fastest 1 x 1 convolution on channels_last maps."""
    best, calls = 0.0, 20 if device.startswith("cuda") else 1  # so many that a GPU does not wait for Python

    def run(x: Tensor, weight: Tensor) -> None:
        for _ in range(calls):
            F.conv2d(x, weight)

    for channels, side in ((96, 56), (384, 14), (512, 28), (768, 14)):
        x = torch.randn(batch, channels, side, side, device=device).to(dtype, memory_format=torch.channels_last)
        weight = torch.randn(4 * channels, channels, 1, 1, device=device, dtype=dtype)
        with torch.inference_mode():
            seconds = take_turns({"": partial(run, x, weight)}, 3 * rounds, device)[""]
        best = max(best, calls * batch * side**2 * 4 * channels**2 / min(seconds))
    return best


def error(model: nn.Module, x: Tensor, wanted: Tensor) -> float:
    """Largest difference from float64, relative to the largest value."""
    with torch.inference_mode():
        got = model(x).double()
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


def report(name: str, dtype_name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one network in one dtype."""
    dtype = getattr(torch, dtype_name)
    device = options.device
    torch.compiler.reset()  # what was compiled for another network counts against the compiler's limit
    model = build(name, options.mode, dtype, device)
    x = torch.randn(options.batch, 3, options.size, options.size, device=device).to(dtype)
    found = _chosen(ways(name, model, x, options.compile), options.ways)
    wanted = None
    if options.mode != "train":
        with torch.inference_mode():
            wanted = naive_twin(model).double()(x.double())
    passes = 3 if options.mode == "train" else 1
    limit = arithmetic_rate(dtype, device, options.rounds, options.batch) / passes
    times = take_turns(runs(found, options.mode), options.rounds, device)
    rows, image = {}, (3, options.size, options.size)
    for way, (net, given) in found.items():
        rate = [options.batch / seconds for seconds in times[way]]
        plain = getattr(net, "_orig_mod", net)
        rows[way] = {
            "images_per_second": {"median": statistics.median(rate), "least": min(rate), "greatest": max(rate)},
            "times_the_twin": statistics.median(times["official order"]) / statistics.median(times[way]),
            "share_of_limit": statistics.median(rate) * count_macs(plain, image) / limit,
            "error": None if wanted is None or way.startswith("timm") else error(net, given, wanted),
            "peak_mib": None if "compiled" in way or options.mode == "train" else activation_peak(plain, image) / 2**20,
        }
    return {
        "model": name,
        "mode": options.mode,
        "dtype": dtype_name,
        "batch": options.batch,
        "size": options.size,
        "rounds": options.rounds,
        "giga_multiplications_per_second": limit * passes / 1e9,
        "ways": rows,
        **machine(device),
    }


def table(entry: dict[str, Any]) -> str:
    """The ways of one network as Markdown."""
    head = ["", "images/s (range)", "times the twin", "share of the limit", "error", "peak MiB"]
    lines = [head, ["---"] * len(head)]
    for way, row in entry["ways"].items():
        rate = "{median:.2f} ({least:.2f} to {greatest:.2f})".format(**row["images_per_second"])
        cells = [way, rate, f"{row['times_the_twin']:.2f}", f"{row['share_of_limit']:.0%}"]
        cells += ["" if row["error"] is None else f"{row['error']:.1e}"]
        cells += ["" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def summary(entry: dict[str, Any]) -> str:
    """LarKit against the better of the twin's memory formats, as they are and compiled."""
    lines = []
    for suffix in ("", ", compiled"):
        rates = {way: row["images_per_second"]["median"] for way, row in entry["ways"].items()}
        twins = [rates[way + suffix] for way in TWINS if way + suffix in rates]
        if twins and f"LarKit{suffix}" in rates:
            lines.append(f"LarKit{suffix}: {rates[f'LarKit{suffix}'] / max(twins):.2f} times the faster twin{suffix}")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["unireplknet_t", "replknet_31b"])
    parser.add_argument("--mode", choices=["inference", "eval", "train"], default="inference")
    dtypes = ["float32", "bfloat16", "float16"]
    parser.add_argument("--dtypes", nargs="+", choices=dtypes, default=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=7)
    compile_help = "also run each way under torch.compile, which takes minutes to compile"
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help=compile_help)
    parser.add_argument("--ways", nargs="+", help="only these ways, as the table calls them, beside the official order")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser


def main() -> None:
    """Measure, print, write."""
    options = parser().parse_args()
    for name, dtype in itertools.product(options.models, options.dtypes):
        entry = report(name, dtype, options)
        print(
            f"\n{name}, {options.mode}, {dtype}, batch {options.batch}, {options.size} x {options.size}, "
            f"{entry['threads']} threads, {entry.get('gpu', entry['cpu'])}, torch {entry['torch']}\n\n{table(entry)}\n"
            f"\n{summary(entry)}",
            flush=True,
        )
        keep([entry], options.output, ("model", "mode", "dtype", "batch", "size"))


if __name__ == "__main__":
    main()
