"""The layer-decay constructor, name by name, against the published rule written plainly."""

import re
from typing import Any

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

import vision.openmmlab
from core.errors import InputError

DEPTHS = {"A": (2, 2, 6, 2), "T": (3, 3, 18, 3), "S": (3, 3, 27, 3)}
LAYERS = {"A": 5, "T": 9, "S": 12}
"""Number of the last stage by depths: three layers before the third stage, one for every three of its blocks, one."""


class _Detector(nn.Module):
    """A backbone with something behind it, under a detector's names."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.neck, self.bbox_head = backbone, nn.Conv2d(8, 4, 1), nn.Linear(4, 3)


def _detector(depths: tuple[int, ...] = (2, 2, 6, 2), **options: Any) -> nn.Module:
    arguments = {"depths": depths, "dims": (8, 16, 24, 32), "kernel_sizes": (3, 7, 7, 7)} | options
    with torch.device("meta"):
        return _Detector(vision.openmmlab.MMUniRepLKNet(**arguments))


def _settings(model: nn.Module, **options: Any) -> dict[str, dict[str, Any]]:
    """The group of every parameter by its name."""
    config = {
        "type": "OptimWrapper",
        "constructor": "LarKLayerDecay",
        "optimizer": {"type": "AdamW", "lr": 1e-4, "weight_decay": 0.05},
        "paramwise_cfg": options,
    }
    groups = build_optim_wrapper(model, config).optimizer.param_groups
    by_id = {id(p): group for group in groups for p in group["params"]}
    assert len(by_id) == sum(len(group["params"]) for group in groups)
    return {name: by_id[id(p)] for name, p in model.named_parameters() if p.requires_grad}


def _plain_number(name: str, last: int) -> int:
    if match := re.match(r"backbone\.downsample_layers\.(\d)", name):
        return {0: 0, 1: 2, 2: 3, 3: last}[int(match[1])]
    if match := re.match(r"backbone\.stages\.(\d)\.(\d+)", name):
        return {0: 1, 1: 2, 2: 3 + int(match[2]) // 3, 3: last}[int(match[1])]
    return last + 1


@pytest.mark.parametrize(
    ("size", "num_layers"), [("A", None), ("T", None), ("S", None), ("T", 12), ("S", 12), ("A", 9)]
)
def test_every_parameter_has_the_rate_and_decay_of_the_rule(size: str, num_layers: int | None) -> None:
    model = _detector(DEPTHS[size])
    options = {} if num_layers is None else {"num_layers": num_layers}
    last = num_layers or LAYERS[size]
    found = _settings(model, decay_rate=0.8, **options)
    shapes = {name: p.ndim for name, p in model.named_parameters()}
    for name, group in found.items():
        assert group["lr"] == pytest.approx(1e-4 * 0.8 ** (last + 2 - _plain_number(name, last) - 1)), name
        assert group["weight_decay"] == (0.0 if shapes[name] == 1 or name.endswith(".bias") else 0.05), name
    assert found["neck.weight"]["lr"] == found["backbone.norm0.weight"]["lr"] == 1e-4
    assert set(found) == set(shapes)


def test_numbers_written_out() -> None:
    found = _settings(_detector(DEPTHS["T"]), decay_rate=0.5)
    numbers = {
        "backbone.downsample_layers.0.0.weight": 10,
        "backbone.stages.0.2.pwconv1.1.weight": 9,
        "backbone.downsample_layers.1.0.weight": 8,
        "backbone.downsample_layers.2.0.weight": 7,
        "backbone.stages.2.2.gamma": 7,
        "backbone.stages.2.3.gamma": 6,
        "backbone.stages.2.17.gamma": 2,
        "backbone.downsample_layers.3.1.bias": 1,
        "backbone.stages.3.0.gamma": 1,
        "bbox_head.bias": 0,
    }
    assert {name: found[name]["lr_scale"] for name in numbers} == {name: 0.5**n for name, n in numbers.items()}


def test_stages_as_layers() -> None:
    found = _settings(_detector(), decay_rate=0.5, decay_type="stage_wise")
    for name, group in found.items():
        match = re.match(r"backbone\.stages\.(\d)", name)
        number = int(match[1]) + 1 if match else 0 if "downsample" in name else 5
        assert group["lr_scale"] == 0.5 ** (5 - number), name


def test_depthwise_convolutions_may_learn_at_a_rate_of_their_own() -> None:
    found = _settings(_detector(), decay_rate=1.0, dw_scale=0.1)
    for name, group in found.items():
        assert group["lr"] == pytest.approx(1e-5 if "dwconv" in name else 1e-4), name


@pytest.mark.parametrize("norms", [False, True])
def test_frozen_parameters_are_left_out_and_replknet_has_the_same_groups(norms: bool) -> None:
    assert not [name for name in _settings(_detector(frozen_stages=1), decay_rate=0.9) if "stages.0" in name]
    with torch.device("meta"):
        model = _Detector(vision.openmmlab.MMRepLKNet("replknet_31b", feature_norms=norms))
    found = _settings(model, decay_rate=0.9)
    assert found["backbone.stages.3.blocks.0.pw1.conv.weight"]["lr_scale"] == pytest.approx(0.9)
    assert not norms or found["backbone.stages.3.norm.weight"]["lr_scale"] == 1.0
    assert found["backbone.stem.0.conv.weight"]["lr_scale"] == min(group["lr_scale"] for group in found.values())
    assert found["bbox_head.weight"]["lr_scale"] == 1.0
    order = [found[f"backbone.stages.{stage}.blocks.0.pw1.conv.weight"]["lr_scale"] for stage in range(4)]
    assert order == sorted(order)
    assert len(set(order)) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay_rate": 1.5}, r"a rate in \(0, 1\]"),
        ({"decay_rates": 0.8}, r"expected decay_rate, decay_type, dw_scale, num_layers"),
        ({"decay_type": "block_wise"}, r"'layer_wise' or 'stage_wise'"),
        ({"num_layers": 3}, r"num_layers=3; the last stage of the backbone is layer 5"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _settings(_detector(), **options)


def test_other_backbones_are_refused() -> None:
    with pytest.raises(InputError, match="needs a backbone of LarKit, not Conv2d"):
        _settings(_Detector(nn.Conv2d(3, 8, 1)), decay_rate=0.8)
