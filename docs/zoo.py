"""The tables of the model zoo: published weights from timm's registry, speed from the benchmarks' results.

``python docs/zoo.py`` prints them.
"""

import json
from pathlib import Path

import timm
import torch
from torch import nn

import core
from core.analysis.cost import count_macs

SPEED = Path(__file__).parents[1] / "benchmarks" / "results" / "networks.json"


def _parameters(model: nn.Module) -> str:
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return f"{count:.0f} M" if count >= 100 else f"{count:.1f} M"


def _gmacs(model: nn.Module, size: int) -> str:
    count = count_macs(model, (3, size, size)) / 1e9
    return f"{count:.0f}" if count >= 100 else f"{count:.1f}"


def rows() -> list[list[str]]:
    """Return a row for each published file: name and tag, size, parameters, GMACs, accuracy, origin of the weights."""
    table = []
    for module in (core.backbones.unireplknet, core.backbones.replknet):
        for variant in module.VARIANTS:
            if variant.startswith("test_"):
                continue
            merged = {"small_kernel_merged": True} if variant.startswith("replknet") else {"inference_mode": True}
            with torch.device("meta"):
                model = timm.create_model(variant, **merged).eval()
                counted = timm.create_model(variant).eval() if variant.startswith("replknet") else model
            for tag, cfg in module.default_cfgs[variant].cfgs.items():
                name = f"{variant}.{tag}"
                note = cfg.notes[0].removeprefix("ImageNet-1K top-1 ").removesuffix(" (paper)")
                accuracy = "" if "no accuracy" in note else note
                size = cfg.input_size[-1]
                origin = f"[by hand]({cfg.origin_url})" if not (cfg.url or cfg.hf_hub_id) else "by name"
                table.append([f"`{name}`", str(size), _parameters(model), _gmacs(counted, size), accuracy, origin])
    return table


def variants() -> str:
    """Return the table of all published files."""
    lines = [
        "| `timm` name and tag | size | parameters | GMACs | top-1, from the paper | weights |",
        "|---|---|---|---|---|---|",
        *("| " + " | ".join(row) + " |" for row in rows()),
    ]
    return "\n".join(lines)


def speed() -> str:
    """Return the measured speed of whole networks as a table, beside a twin in the order of the official code."""
    lines = [
        "| network | form | dtype | LarKit, images/s | official order, faster format | ratio | machine |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in json.loads(SPEED.read_text(encoding="utf-8")):
        ways = {name: way["images_per_second"]["median"] for name, way in entry["ways"].items()}
        for suffix, form in (("", "as it is"), (", compiled", "compiled")):
            if f"LarKit{suffix}" not in ways:
                continue
            larkit = ways[f"LarKit{suffix}"]
            twins = [
                rate
                for name, rate in ways.items()
                if name.startswith("official") and ("compiled" in name) == bool(suffix)
            ]
            network = f"`{entry['model']}`, {entry['mode']}, batch {entry['batch']}, {entry['size']} x {entry['size']}"
            rates = f"{larkit:.2f} | {max(twins):.2f} | {larkit / max(twins):.2f}"
            machine = f"{entry['cpu']}, {entry['instructions']}, {entry['threads']} threads"
            lines.append(f"| {network} | {form} | {entry['dtype']} | {rates} | {machine} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(variants(), speed(), sep="\n\n")
