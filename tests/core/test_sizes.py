"""Parameters and multiplications are those that the papers print, for the variants and the ablations."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import core
from core.backbones.unireplknet import ExtraStructure


def _parameters(model: nn.Module) -> float:
    """Return the parameters in millions, without the scales of the response norms, as in UniRepLKNet's tables."""
    return sum(p.numel() for name, p in model.named_parameters() if not name.endswith("act.1.gamma")) / 1e6


def _multiplications(model: nn.Module, size: int) -> float:
    """Return the multiply-accumulates of one image in billions."""
    counts: list[int] = []

    def count(layer: Any, _: Any, output: Tensor) -> None:
        places = output.numel() // (output.shape[1] if isinstance(layer, nn.Conv2d) else output.shape[-1])
        counts.append(layer.weight.numel() * places)

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    model.eval()(torch.empty(1, 3, size, size, device="meta"))
    return sum(counts) / 1e9


@pytest.mark.parametrize(
    ("variant", "size", "parameters", "multiplications"),
    [
        ("a", 224, 4.4, 0.64),
        ("f", 224, 6.2, 0.91),
        ("p", 224, 10.7, 1.57),
        ("n", 224, 18.3, 2.77),
        ("t", 224, 31.0, 4.90),
        ("s", 224, 55.6, 9.09),
        ("b", 384, 97.9, 47.2),
        ("l", 384, 218.3, 105.4),
        ("xl", 384, 386.4, 186.8),
    ],
)
def test_unireplknet(variant: str, size: int, parameters: float, multiplications: float) -> None:
    with torch.device("meta"):
        model = timm.create_model(f"unireplknet_{variant}", inference_mode=True)
    assert round(_parameters(model), 1) == parameters
    assert _multiplications(model, size) == pytest.approx(multiplications, abs=0.05 if size == 384 else 0.005)


@pytest.mark.parametrize(
    ("variant", "size", "trained", "merged", "multiplications"),
    [
        ("13", 224, 74_156_392, 73_819_496, 13.51),
        ("31b", 224, 79_864_168, 79_527_272, 15.43),
        ("31b", 384, 79_864_168, 79_527_272, 45.35),
        ("31l", 384, 172_671_016, 172_165_672, 96.33),
        ("xl", 320, 335_435_752, 335_399_656, 128.73),
    ],
)
def test_replknet(variant: str, size: int, trained: int, merged: int, multiplications: float) -> None:
    with torch.device("meta"):
        model = timm.create_model(f"replknet_{variant}")
        other = timm.create_model(f"replknet_{variant}", small_kernel_merged=True)
    assert sum(p.numel() for p in model.parameters()) == trained
    assert sum(p.numel() for p in other.parameters()) == merged
    assert _multiplications(model, size) == pytest.approx(multiplications, abs=0.005)
    assert _multiplications(other, size) == pytest.approx(multiplications, rel=0.01)


@pytest.mark.parametrize(
    ("extra", "parameters", "multiplications"),
    [
        ("none", 31.3, 4.92),
        ("bottleneck", 32.9, 5.18),
        ("two_1x1", 32.9, 5.17),
        ("two_dw3x3", 31.4, 4.96),
        ("se", 32.9, 4.92),
    ],
)
def test_extra_structures(extra: ExtraStructure, parameters: float, multiplications: float) -> None:
    with torch.device("meta"):
        model = core.UniRepLKNet(depths=(3, 3, 9, 3), kernel_sizes=(3, 13, 13, 13), extra=extra, inference_mode=True)
    assert round(_parameters(model), 1) == parameters
    assert _multiplications(model, 224) == pytest.approx(multiplications, abs=0.01)
