"""The four ways to fuse a signal with a context, against the length of the context, at equal width.

    python benchmarks/fusion.py
    python benchmarks/fusion.py --channels 128 --length 1024 --batch 4 --rounds 7

A training step (forward, and the gradients of inputs and weights) and an inference of ``core.layers.asymmetric`` on
sequences, on this CPU. The ways take turns in every round. Written to benchmarks/results/fusion.json.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from machine import keep, machine, take_turns

from core.layers.asymmetric import AsymmetricFusion, FusionMode

RESULTS = Path(__file__).parent / "results" / "fusion.json"
MODES = get_args(FusionMode)


def measure(channels: int, length: int, context: int, batch: int, rounds: int, kind: str) -> dict[str, Any]:
    """One entry: milliseconds of each way, and the number of its parameters."""
    torch.manual_seed(0)
    x = torch.randn(batch, length, channels, requires_grad=kind == "training")
    y = torch.randn(batch, context, channels, requires_grad=kind == "training")
    models = {mode: AsymmetricFusion(channels, mode) for mode in MODES}
    ways: dict[str, Callable[[], None]] = {mode: lambda m=model: _step(m, x, y) for mode, model in models.items()}
    with torch.set_grad_enabled(kind == "training"):
        times = take_turns(ways, rounds)
    return {
        "kind": kind,
        "channels": channels,
        "length": length,
        "context": context,
        "batch": batch,
        "rounds": rounds,
        "ms": {mode: 1000 * statistics.median(seconds) for mode, seconds in times.items()},
        "range_ms": {mode: [1000 * min(seconds), 1000 * max(seconds)] for mode, seconds in times.items()},
        "parameters": {mode: sum(p.numel() for p in model.parameters()) for mode, model in models.items()},
        **machine(),
    }


def _step(model: AsymmetricFusion, x: torch.Tensor, y: torch.Tensor) -> None:
    fused = model(x, y)
    if fused.requires_grad:
        torch.autograd.grad(fused.sum(), [x, y, *model.parameters()], allow_unused=True)


def table(entries: Sequence[dict[str, Any]]) -> str:
    """The entries as a table, with the ratio of cross-attention to the paper's fusion."""
    lines = ["| | context | " + " | ".join(f"{mode}, ms" for mode in MODES) + " | attention / dynamic |"]
    lines.append("|" + "---|" * (len(MODES) + 3))
    for entry in entries:
        ratio = entry["ms"]["cross_attention"] / entry["ms"]["dynamic"]
        cells = " | ".join(f"{entry['ms'][mode]:.2f}" for mode in MODES)
        lines.append(f"| {entry['kind']} | {entry['context']} | {cells} | {ratio:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--length", type=int, default=784, help="L1; 784 is a map of 28 x 28, row by row")
    parser.add_argument("--contexts", type=int, nargs="+", default=[4, 16, 64, 256], help="L2")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()

    entries = [
        measure(args.channels, args.length, context, args.batch, args.rounds, kind)
        for kind in ("training", "inference")
        for context in args.contexts
    ]
    where = entries[0]
    print(f"{where['cpu']}, {where['threads']} threads, torch {where['torch']}; {args.channels} channels, ", end="")
    print(f"batch {args.batch}, L1 = {args.length}, {args.rounds} rounds")
    print(f"parameters: {', '.join(f'{mode} {count:,}' for mode, count in where['parameters'].items())}")
    print(table(entries))
    keep(entries, args.results, ("kind", "channels", "length", "context", "batch"))


if __name__ == "__main__":
    main()
