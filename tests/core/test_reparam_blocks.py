"""Folding of every kind of block, alone."""

from typing import Any

import pytest
import torch
from golden_values import difference, filled, golden_input
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing import assert_close

import core
from core.backbones.replknet import ConvBN, ConvFFN, ReparamLargeKernelConv, RepLKBlock
from core.backbones.unireplknet import DilatedReparamBlock, UniRepLKNetBlock

LIMITS = {torch.float32: 1e-5, torch.float64: 1e-12}
KERNELS = [0, 3, 5, 7, 9, 11, 13, 15, 17, 19]


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kind_of_unireplknet_block(kernel: int, scale: float | None, dtype: torch.dtype) -> None:
    block = filled(UniRepLKNetBlock(8, kernel, layer_scale_init_value=scale)).to(dtype)
    folded, x = core.reparameterize(block), golden_input(2, 8, 24, 17).to(dtype)
    assert difference(block, folded, x) < LIMITS[dtype]
    built = UniRepLKNetBlock(8, kernel, layer_scale_init_value=scale, inference_mode=True).to(dtype).eval()
    built.load_state_dict(folded.state_dict())
    assert difference(folded, built, x) == 0


REPLKNET_BLOCKS: dict[str, tuple[type[nn.Module], tuple[int, ...], dict[str, Any]]] = {
    "large kernel": (RepLKBlock, (8, 12, 13), {}),
    "large kernel alone": (RepLKBlock, (8, 12, 13), {"small_kernel": None}),
    "large kernel merged": (RepLKBlock, (8, 8, 31), {"small_kernel_merged": True}),
    "equal kernels": (RepLKBlock, (8, 8, 5), {"small_kernel": 5}),
    "1x1 network": (ConvFFN, (8, 20), {}),
    "depthwise convolution": (ConvBN, (8, 8, 5), {"depthwise": True, "stride": 2, "relu": True}),
    "convolution": (ConvBN, (8, 6, 3), {"stride": 2}),
    "branches": (ReparamLargeKernelConv, (8, 9), {"small_kernel": 3}),
    "branches with identity": (ReparamLargeKernelConv, (8, 9), {"identity": True}),
    "identity beside one": (ReparamLargeKernelConv, (8, 9), {"small_kernel": None, "identity": True}),
    "branches with stride": (ReparamLargeKernelConv, (8, 9), {"stride": 2}),
}


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("kind", REPLKNET_BLOCKS)
def test_every_kind_of_replknet_block(kind: str, dtype: torch.dtype) -> None:
    build, sizes, options = REPLKNET_BLOCKS[kind]
    block, x = filled(build(*sizes, **options)).to(dtype), golden_input(2, 8, 24, 17).to(dtype)
    folded = core.reparameterize(block)
    assert difference(block, folded, x) < LIMITS[dtype]
    assert not any(isinstance(module, _BatchNorm) for module in folded.modules())
    built = build(*sizes, **options, inference_mode=True).to(dtype).eval()
    built.load_state_dict(folded.state_dict(), strict=True)
    assert difference(folded, built, x) == 0


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("kernel", [5, 7, 13])
def test_dilated_block_alone(kernel: int, dtype: torch.dtype) -> None:
    block = filled(DilatedReparamBlock(4, kernel)).to(dtype)
    folded = core.reparameterize(block)
    assert (block.merged, folded.merged) == (False, True)
    assert list(folded.state_dict()) == ["lk_origin.weight", "lk_origin.bias"]
    assert difference(block, folded, golden_input(2, 4, 24, 17).to(dtype)) < LIMITS[dtype]
    with pytest.raises(RuntimeError, match="train mode"):
        block.train().reparameterize()


@pytest.mark.parametrize("kind", REPLKNET_BLOCKS)
def test_blocks_in_train_mode_are_refused(kind: str) -> None:
    build, sizes, options = REPLKNET_BLOCKS[kind]
    with pytest.raises(RuntimeError, match=rf"{build.__name__} in train mode.*Call model.eval\(\) first"):
        core.reparameterize(build(*sizes, **options))


@pytest.mark.parametrize("identity", [False, True])
def test_parts_that_were_folded_before_the_whole(identity: bool) -> None:
    block, x = filled(ReparamLargeKernelConv(8, 9, identity=identity)).double(), golden_input(2, 8, 24, 17).double()
    expected = block(x)
    block.small_conv.reparameterize()
    block.reparameterize()
    block.reparameterize()
    assert list(block.state_dict()) == ["lkb_reparam.weight", "lkb_reparam.bias"]
    assert_close(block(x), expected, rtol=1e-12, atol=1e-12)
