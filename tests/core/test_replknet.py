"""What only RepLKNet has: pairs of blocks, free kernels and widths, parameter groups, norms, refusals."""

import re
from typing import Any

import pytest
import timm
import torch
from golden_values import REPLKNETS, TINY_REPLKNET, filled, golden_input, shapes_only, tiny
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing import assert_close

import core
from core.backbones.replknet import ConvFFN, ReparamLargeKernelConv, RepLKBlock
from core.layers import DepthwiseConv2d

FREE: dict[str, Any] = {"depths": (1, 2, 3, 1), "dims": (8, 12, 16, 20), "kernel_sizes": (9, 33, 7, 5)}


def _model(**options: Any) -> core.RepLKNet:
    return filled(core.RepLKNet(**FREE | options))


def _large_kernels(module: nn.Module) -> list[ReparamLargeKernelConv]:
    return [m for m in module.modules() if isinstance(m, ReparamLargeKernelConv)]


@pytest.mark.parametrize("small_kernel", [None, 0, 3, 5])
def test_kernels_of_each_stage(small_kernel: int | None) -> None:
    model = _model(small_kernel=small_kernel)
    layers = [_large_kernels(stage) for stage in model.stages]
    sizes = [[layer.lkb_origin.conv.kernel_size[0] for layer in stage] for stage in layers]
    assert sizes == [[9], [33, 33], [7, 7, 7], [5]]
    small = {layer.small_conv.conv.kernel_size for layer in _large_kernels(model) if hasattr(layer, "small_conv")}
    assert small == ({(small_kernel, small_kernel)} if small_kernel else set())
    assert model(golden_input(2, 3, 64, 96)).shape == (2, 1000)


@pytest.mark.parametrize("dw_ratio", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("ffn_ratio", [1.0, 2.5])
def test_widths_inside_the_blocks(dw_ratio: float, ffn_ratio: float) -> None:
    model = _model(dw_ratio=dw_ratio, ffn_ratio=ffn_ratio)
    for stage, dim in zip(model.stages, (8, 12, 16, 20), strict=True):
        for first, second in zip(stage.blocks[::2], stage.blocks[1::2], strict=True):
            assert isinstance(first, RepLKBlock)
            assert isinstance(second, ConvFFN)
            assert first.pw1.conv.weight.shape == (int(dim * dw_ratio), dim, 1, 1)
            assert second.pw1.conv.weight.shape == (int(dim * ffn_ratio), dim, 1, 1)
    assert model(golden_input(1, 3, 64, 96)).shape == (1, 1000)


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
def test_other_numbers_of_stages(stages: int) -> None:
    dims = tuple(8 + 4 * i for i in range(stages))
    model = _model(depths=(1,) * stages, dims=dims, kernel_sizes=(7,) * stages, num_classes=3)
    maps = model.forward_intermediates(golden_input(1, 3, 128, 128), intermediates_only=True)
    assert [m.shape[1:] for m in maps] == [(dim, 32 >> i, 32 >> i) for i, dim in enumerate(dims)]
    assert model(golden_input(1, 3, 128, 128)).shape == (1, 3)
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(layers.values()) == set(range(stages + 2))


def test_timm_leaves_out_the_small_kernels_for_0() -> None:
    model = tiny(TINY_REPLKNET, small_kernel=0)
    assert not any(hasattr(layer, "small_conv") for layer in _large_kernels(model))


def test_a_kernel_larger_than_every_map() -> None:
    layer = filled(ReparamLargeKernelConv(4, 31, small_kernel=5)).double()
    x = golden_input(2, 4, 6, 5).double()
    expected = sum(
        part.bn(nn.functional.conv2d(x, part.conv.weight, padding=size // 2, groups=4))
        for part, size in ((layer.lkb_origin, 31), (layer.small_conv, 5))
    )
    assert_close(layer(x), expected)


def test_xl_has_wider_layers_and_no_small_kernels() -> None:
    model = shapes_only("replknet_xl")
    assert [layers[0].lkb_origin.conv.weight.shape for layers in map(_large_kernels, model.stages)] == [
        (384, 1, 27, 27),
        (768, 1, 27, 27),
        (1536, 1, 27, 27),
        (3072, 1, 13, 13),
    ]
    assert not any(hasattr(layer, "small_conv") for layer in _large_kernels(model))


def _official_layer(name: str, depths: tuple[int, ...]) -> int:
    """Return the group by the official code's rule for depth 18; for other depths, groups after stage 3 are shifted."""
    last = 3 + -(-2 * depths[2] // 4)
    part, index, *rest = name.split(".")
    if part == "stem":
        return 0
    if part == "transitions":
        return (1, 2, last - 1)[int(index)]
    if part == "stages":
        return (1, 2, 3 + int(rest[1]) // 4, last)[int(index)]
    return last + 1


@pytest.mark.parametrize("name", REPLKNETS)
def test_layer_groups_are_the_official_ones(name: str) -> None:
    model = shapes_only(name)
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert layers == {n: _official_layer(n, model.depths) for n, _ in model.named_parameters()}
    assert max(layers.values()) == (5 if name == TINY_REPLKNET else 13)
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert coarse["stages.2.blocks.1.pw1.bn.weight"] == coarse["transitions.2.0.conv.weight"] == 3
    assert (coarse["stem.3.bn.bias"], coarse["stages.0.blocks.0.pw1.bn.bias"], coarse["head.bias"]) == (0, 1, 5)


@pytest.mark.parametrize("depth", [1, 2, 5, 6])
def test_layer_groups_of_other_depths(depth: int) -> None:
    model = _model(depths=(2, 1, depth, 3))
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert layers == {n: _official_layer(n, (2, 1, depth, 3)) for n, _ in model.named_parameters()}


def test_learning_rates_decay_from_the_head_down() -> None:
    with torch.device("meta"):
        model = timm.create_model("replknet_31b")
    names = {p: n for n, p in model.named_parameters()}
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.7)
    scales = {names[p]: group["lr_scale"] for group in groups for p in group["params"]}
    assert scales == pytest.approx({n: 0.7 ** (13 - _official_layer(n, model.depths)) for n in names.values()})


def test_norms_of_the_maps_lie_in_the_stages() -> None:
    plain, normed = tiny(TINY_REPLKNET).state_dict(), tiny(TINY_REPLKNET, feature_norms=True).state_dict()
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert set(normed) - set(plain) == {f"stages.{stage}.norm.{part}" for stage in range(4) for part in parts}
    norms = [m for m in tiny(TINY_REPLKNET, feature_norms=True).modules() if isinstance(m, _BatchNorm)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-5, 0.1)}


def test_norms_of_the_maps_change_no_other_output() -> None:
    plain, normed = tiny(TINY_REPLKNET), tiny(TINY_REPLKNET, feature_norms=True)
    x = golden_input(2, 3, 64, 64)
    assert_close(normed(x), plain(x), rtol=0, atol=0)
    model = tiny(TINY_REPLKNET, feature_norms=True).train()
    model.forward_intermediates(x, norm=True)
    assert [int(stage.norm.num_batches_tracked) for stage in model.stages] == [1, 1, 1, 1]


def _synchronized(model: nn.Module) -> bool:
    return any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())


def test_one_model_with_synchronized_norms_changes_no_other() -> None:
    first, second = tiny(TINY_REPLKNET), tiny(TINY_REPLKNET)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(first)
    assert _synchronized(converted)
    assert not any(map(_synchronized, (second, tiny(TINY_REPLKNET), tiny(TINY_REPLKNET, feature_norms=True))))
    x = golden_input(2, 3, 64, 64)
    assert_close(converted(x), second(x))


def test_the_stem_is_convolution_norm_relu_four_times() -> None:
    stem = tiny(TINY_REPLKNET).stem
    assert [(part.conv.kernel_size[0], part.conv.stride[0]) for part in stem] == [(3, 2), (3, 1), (1, 1), (3, 2)]
    assert [isinstance(part.conv, DepthwiseConv2d) for part in stem] == [False, True, False, True]
    assert all(isinstance(part[-1], nn.ReLU) for part in stem)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_sizes": (9, 8, 7, 5)}, "kernel_size=8, small_kernel=5; both must be odd and the small one at most"),
        ({"small_kernel": 4}, "small_kernel=4; both must be odd"),
        ({"kernel_sizes": (9, 7, 7, 3)}, "kernel_sizes=(9, 7, 7, 3) has a kernel smaller than small_kernel=5"),
        ({"kernel_sizes": (9, 7, 7, 3)}, "choose larger ones, or small_kernel=0 for no small branch"),
        ({"kernel_sizes": (9, 7, 7, -1), "small_kernel": 0}, "has a kernel smaller than"),
        ({"kernel_sizes": (9, 7, 7)}, "kernel_sizes=(9, 7, 7) for 4 stages; give one odd size for each"),
        ({"kernel_sizes": (9, (7, 7), 7, 5)}, "for 4 stages; give one odd size for each, such as (31, 29, 27, 13)"),
        ({"dw_ratio": 0.1}, "dims=(8, 12, 16, 20), dw_ratio=0.1, ffn_ratio=4.0 leave a layer no channels"),
        ({"ffn_ratio": 0}, "ffn_ratio=0 leave a layer no channels"),
        ({"dw_ratio": -1.0}, "dw_ratio=-1.0"),
        ({"dims": (8, 16, 24)}, "dims=(8, 16, 24): give both for every stage"),
        ({"dims": (0, 12, 16, 20)}, "leave a layer no channels"),
        ({"depths": (1, 0, 3, 1)}, "and depths of 1 or more"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0, num_classes=1000, in_chans=3; expected a rate in [0, 1)"),
        ({"num_classes": -1}, "num_classes=-1"),
        ({"in_chans": 0}, "in_chans=0"),
        ({"global_pool": ""}, "num_classes=1000 needs a pooling"),
    ],
)
def test_bad_arguments_say_what_to_change(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        _model(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 8}, "kernel_size=8, small_kernel=5; both must be odd"),
        ({"kernel_size": 9, "small_kernel": 11}, "kernel_size=9, small_kernel=11; both must be odd and the small one"),
        ({"kernel_size": 9, "small_kernel": 2}, "small_kernel=2"),
        ({"kernel_size": 8, "inference_mode": True}, "kernel_size=8"),
        ({"kernel_size": 9, "stride": 2, "identity": True}, "an identity branch needs stride=1, but the stride is 2"),
    ],
)
def test_large_kernel_layer_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReparamLargeKernelConv(4, **options)
