"""Parameters, multiplications and bytes agree with the published ones and with sums by hand."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import core
from core.analysis.cost import activation_peak, count_macs, saved_for_backward
from core.errors import InputError

Size = tuple[int, int, int]
FLOAT = 4  # bytes
# training form: parameters, GMACs at 224; inference form: parameters, GMACs at 224, at 384
UNIREPLKNETS: dict[str, tuple[int, float | None, int, float | None, float]] = {
    "a": (4_649_060, 0.675, 4_437_300, 0.640, 1.879),
    "f": (6_489_328, 0.947, 6_235_216, 0.905, 2.659),
    "p": (11_080_520, 1.629, 10_741_704, 1.573, 4.621),
    "n": (18_818_880, 2.849, 18_318_560, 2.767, 8.127),
    "t": (31_693_420, 5.004, 31_037_980, 4.899, 14.393),
    "s": (56_456_704, 9.219, 55_645_984, 9.094, 26.718),
    "b": (99_089_416, 16.224, 98_008_456, 16.057, 47.176),
    "l": (220_076_056, None, 218_454_616, None, 105.4),
    "xl": (388_690_984, None, 386_529_064, None, 187),
}
# parameters in training form and with merged small kernels, GMACs in training form by size
REPLKNETS: dict[str, tuple[int, int, dict[int, float]]] = {
    "13": (74_156_392, 73_819_496, {224: 13.51}),
    "31b": (79_864_168, 79_527_272, {224: 15.43, 384: 45.35}),
    "31l": (172_671_016, 172_165_672, {384: 96.33}),
    "xl": (335_435_752, 335_399_656, {320: 128.73}),
}


def _shapes(name: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, **options).eval()


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _gmacs(model: nn.Module, size: int, printed: float) -> float:
    """Rounded to as many digits as ``printed`` has."""
    digits = len(str(printed).partition(".")[2])
    return round(count_macs(model, (3, size, size)) / 1e9, digits)


@pytest.mark.parametrize("variant", UNIREPLKNETS)
def test_published_costs_of_unireplknet(variant: str) -> None:
    train, inference = (_shapes(f"unireplknet_{variant}", inference_mode=folded) for folded in (False, True))
    parameters, at_224, folded_parameters, folded_at_224, folded_at_384 = UNIREPLKNETS[variant]
    assert (_parameters(train), _parameters(inference)) == (parameters, folded_parameters)
    for model, size, printed in (
        (train, 224, at_224),
        (inference, 224, folded_at_224),
        (inference, 384, folded_at_384),
    ):
        assert printed is None or _gmacs(model, size, printed) == printed


@pytest.mark.parametrize("variant", REPLKNETS)
def test_published_costs_of_replknet(variant: str) -> None:
    parameters, merged, gmacs = REPLKNETS[variant]
    model = _shapes(f"replknet_{variant}")
    assert _parameters(model) == parameters
    assert _parameters(_shapes(f"replknet_{variant}", small_kernel_merged=True)) == merged
    assert {size: _gmacs(model, size, printed) for size, printed in gmacs.items()} == gmacs


@pytest.mark.parametrize(
    ("name", "size", "parameters", "gmacs"),
    [
        ("resnet50", 224, 25_557_032, 4.09),
        ("mobilenetv2_100", 224, 3_504_872, 0.30),
        ("vit_tiny_patch16_224", 224, 5_717_416, 1.25),
    ],
)
def test_costs_of_well_known_nets(name: str, size: int, parameters: int, gmacs: float) -> None:
    model = _shapes(name)
    assert (_parameters(model), _gmacs(model, size, gmacs)) == (parameters, gmacs)


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize(
    ("model", "size", "macs"),
    [
        (nn.Conv2d(3, 8, 3, stride=2, padding=1), (3, 16, 12), 8 * 6 * 8 * 27),
        (nn.Conv2d(6, 6, 5, padding=2, groups=6), (6, 9, 9), 9 * 9 * 6 * 25),
        (nn.Linear(7, 5), (2, 3, 7), 2 * 3 * 7 * 5),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)), (3, 16, 16), 0),
        (Attention(), (2, 10, 4), 2 * (10 * 10 * 4 + 10 * 10 * 4)),
        (core.layers.DepthwiseConv2d(6, 13), (6, 20, 20), 20 * 20 * 6 * 169),
        (core.layers.DepthwiseConv2d(6, 13), (6, 4, 3), 4 * 3 * 6 * 7 * 5),  # no more taps meet the map
    ],
    ids=["conv", "depthwise", "linear", "none", "attention", "large kernel", "large kernel on a small map"],
)
def test_multiplications_by_hand(model: nn.Module, size: Size, macs: int) -> None:
    assert count_macs(model, size) == macs


def _net(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


PIXELS = 6 * 4
CONV = nn.Conv2d(3, 8, 3, padding=1)


@pytest.mark.parametrize(
    ("model", "floats"),
    [
        (_net(CONV), 3 * PIXELS),  # its input, for the gradient of the weight
        (_net(CONV, nn.Conv2d(8, 2, 1)), (3 + 8) * PIXELS),
        (_net(CONV, nn.ReLU(), nn.Conv2d(8, 2, 1)), (3 + 8) * PIXELS),  # the ReLU keeps what the next layer keeps
        (_net(CONV, nn.ReLU(inplace=True), nn.Conv2d(8, 2, 1)), (3 + 8) * PIXELS),
        (_net(CONV, nn.GELU(), nn.Conv2d(8, 2, 1)), (3 + 8 + 8) * PIXELS),
        (_net(CONV, nn.BatchNorm2d(8), nn.ReLU()), (3 + 8 + 8) * PIXELS + 8),  # mean and deviation, for two images
        (_net(CONV, nn.Flatten(), nn.Linear(8 * PIXELS, 2)), (3 + 8) * PIXELS),
        (_net(CONV, nn.Unflatten(1, (2, 4)), nn.Flatten(1, 2), nn.Conv2d(8, 2, 1)), (3 + 8) * PIXELS),  # views
        (_net(nn.Flatten(), nn.Identity()), 0),
    ],
    ids=["conv", "two", "relu", "in place", "gelu", "norm", "flatten", "views", "nothing"],
)
def test_saved_for_backward_by_hand(model: nn.Module, floats: int) -> None:
    assert saved_for_backward(model, (3, 6, 4)) == FLOAT * floats


def test_saved_for_backward_is_that_of_training() -> None:
    net = _net(nn.Conv2d(3, 8, 1, bias=False), nn.Dropout(0.5)).eval()
    assert saved_for_backward(net, (3, 6, 4)) > FLOAT * 3 * PIXELS  # what the dropout has drawn
    assert not net.training


class Branches(nn.Module):
    """Two convolutions of one input, added."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x)


@pytest.mark.parametrize(
    ("model", "floats"),
    [
        (_net(nn.Identity()), 3 * PIXELS),
        (_net(CONV), (3 + 8) * PIXELS),
        (_net(CONV, nn.Conv2d(8, 2, 1)), (3 + 8 + 2) * PIXELS),
        (_net(CONV, nn.Conv2d(8, 2, 1), nn.Conv2d(2, 1, 1)), (3 + 8 + 2) * PIXELS),  # the first map is gone by then
        (_net(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 8, 1), nn.Conv2d(8, 9, 1)), (3 + 8 + 9) * PIXELS),
        (_net(CONV, nn.ReLU()), (3 + 8 + 8) * PIXELS),
        (_net(CONV, nn.ReLU(inplace=True)), (3 + 8) * PIXELS),
        (_net(CONV, nn.Unflatten(1, (2, 4)), nn.Flatten()), (3 + 8) * PIXELS),  # views
        (_net(CONV, nn.Flatten(), nn.Linear(8 * PIXELS, 2)), (3 + 8) * PIXELS + 2),
        (Branches(), (3 + 8 + 8 + 8) * PIXELS),
    ],
    ids=["input", "conv", "two", "shrinking", "growing", "relu", "in place", "views", "linear", "branches"],
)
def test_activation_peak_by_hand(model: nn.Module, floats: int) -> None:
    assert activation_peak(model, (3, 6, 4)) == FLOAT * floats


def test_counts_follow_the_dtype_of_the_model() -> None:
    wide, narrow = (_net(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()).to(dtype) for dtype in (torch.float32, torch.half))
    for count in (activation_peak, saved_for_backward):
        assert count(wide, (3, 6, 4)) == 2 * count(narrow, (3, 6, 4))


def test_activation_peak_of_a_first_layer_in_place() -> None:
    assert activation_peak(nn.ReLU(inplace=True), (3, 6, 4)) == FLOAT * 3 * PIXELS


@pytest.mark.parametrize("count", [count_macs, saved_for_backward, activation_peak])
def test_counts_refuse_what_the_model_does_not_take(count: Any) -> None:
    with pytest.raises(InputError, match="Conv2d does not take an input of"):
        count(nn.Conv2d(3, 4, 1), (2, 8, 8))
