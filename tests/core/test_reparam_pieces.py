"""The pieces of folding, in every number of dimensions: norms into layers before and after, dilated to dense."""

from typing import Any

import pytest
import torch
from golden_values import difference, filled, golden_input
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.testing import assert_close
from torchvision.ops import FrozenBatchNorm2d

from core.reparam import dilated_to_dense, embed_kernel, fold_bn, fuse_bn_conv, fuse_conv_bn, is_batch_norm

CONVS: dict[tuple[int, bool], type[_ConvNd]] = {
    (1, False): nn.Conv1d,
    (2, False): nn.Conv2d,
    (3, False): nn.Conv3d,
    (1, True): nn.ConvTranspose1d,
    (2, True): nn.ConvTranspose2d,
    (3, True): nn.ConvTranspose3d,
}
NORMS: dict[int, type[nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SIDES = (9, 7, 6)


def _input(channels: int, dimensions: int) -> Tensor:
    return golden_input(2, channels, *SIDES[:dimensions]).double()


odd = st.integers(0, 4).map(lambda half: 2 * half + 1)


@settings(max_examples=80)
@given(
    k=odd,
    dilation=st.integers(1, 7),
    margin=st.integers(0, 4),
    size=st.integers(1, 14),
    groups=st.sampled_from([1, 2, 4]),
)
def test_dense_embedded_kernel_equals_dilated_convolution(
    k: int, dilation: int, margin: int, size: int, groups: int
) -> None:
    weight, x = torch.randn(4, 4 // groups, k, k, dtype=torch.float64), torch.randn(2, 4, size, 9, dtype=torch.float64)
    reach = (k - 1) * dilation + 1
    dense = embed_kernel(dilated_to_dense(weight, dilation), reach + 2 * margin)
    assert dense.shape == (4, 4 // groups, reach + 2 * margin, reach + 2 * margin)
    expected = F.conv2d(x, weight, padding=reach // 2, dilation=dilation, groups=groups)
    assert_close(F.conv2d(x, dense, padding=reach // 2 + margin, groups=groups), expected)


def test_kernels_with_a_size_for_each_dimension() -> None:
    weight = torch.randn(2, 1, 3, 2, 1)
    dense = dilated_to_dense(weight, (2, 4, 7))
    assert dense.shape == (2, 1, 5, 5, 1)
    assert_close(dense[:, :, ::2, ::4], weight, rtol=0, atol=0)
    assert dense.count_nonzero() == weight.count_nonzero()
    large = embed_kernel(dense, (7, 5, 3))
    assert large.shape == (2, 1, 7, 5, 3)
    assert_close(large[:, :, 1:-1, :, 1:-1], dense, rtol=0, atol=0)
    assert large.count_nonzero() == weight.count_nonzero()


@pytest.mark.parametrize(
    ("shape", "size", "message"),
    [
        ((5, 5), 3, "cannot center a 5x5 kernel in a 3x3 one: both must be odd, the first smaller"),
        ((4, 4), 7, "cannot center a 4x4 kernel in a 7x7 one"),
        ((3,), 6, "cannot center a 3 kernel in a 6 one"),
        ((3, 5, 3), (5, 3, 5), "cannot center a 3x5x3 kernel in a 5x3x5 one"),
    ],
)
def test_kernels_that_cannot_be_centered(shape: tuple[int, ...], size: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        embed_kernel(torch.zeros(1, 1, *shape), size)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("linear", [False, True])
def test_fold_bn(linear: bool, bias: bool, affine: bool) -> None:
    layer = nn.Linear(6, 4, bias=bias) if linear else nn.Conv2d(6, 4, 3, groups=2, bias=bias)
    bn = nn.BatchNorm1d(4, affine=affine, eps=1e-2) if linear else nn.BatchNorm2d(4, affine=affine, eps=1e-2)
    both = filled(nn.Sequential(layer, bn)).double()
    weight, offset = fold_bn(layer.weight, layer.bias, bn)
    x = torch.randn(3, 6, dtype=torch.float64) if linear else torch.randn(3, 6, 5, 5, dtype=torch.float64)
    got = F.linear(x, weight, offset) if linear else F.conv2d(x, weight, offset, groups=2)
    assert_close(got, both(x))
    assert not weight.requires_grad


def test_fold_bn_refuses() -> None:
    with pytest.raises(RuntimeError, match=r"BatchNorm2d in train mode.*Call model.eval\(\) first"):
        fold_bn(torch.ones(2, 2, 1, 1), None, nn.BatchNorm2d(2))
    with pytest.raises(ValueError, match="track_running_stats=True"):
        fold_bn(torch.ones(2, 2, 1, 1), None, nn.BatchNorm2d(2, track_running_stats=False).eval())


@pytest.mark.parametrize(("dimensions", "transposed"), CONVS)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_norm_after_a_convolution(dimensions: int, transposed: bool, groups: int, bias: bool, stride: int) -> None:
    build, outputs = CONVS[dimensions, transposed], 4 if groups == 4 else 6
    conv = build(4, outputs, 3, stride=stride, padding=1, groups=groups, bias=bias)
    both = filled(nn.Sequential(conv, NORMS[dimensions](outputs))).double()
    conv.weight.requires_grad_(False)
    fused = fuse_conv_bn(conv, both[1])
    assert type(fused) is build
    assert difference(both, fused, _input(4, dimensions)) < 1e-12
    assert not fused.weight.requires_grad
    assert (conv.bias is not None) == bias


@pytest.mark.parametrize("padding", ["same", "valid", (2, 0)])
def test_norm_after_a_convolution_with_any_padding(padding: Any) -> None:
    modes = ("zeros", "reflect") if padding != "valid" else ("zeros",)
    for mode in modes:
        conv = nn.Conv2d(4, 6, (5, 3), padding=padding, dilation=(1, 2), padding_mode=mode)
        both = filled(nn.Sequential(conv, nn.BatchNorm2d(6, affine=False))).double()
        assert difference(both, fuse_conv_bn(conv, both[1]), _input(4, 2)) < 1e-12


@pytest.mark.parametrize("norm", [nn.SyncBatchNorm(6), FrozenBatchNorm2d(6)], ids=lambda norm: type(norm).__name__)
def test_other_batch_norms(norm: nn.Module) -> None:
    both = filled(nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)))
    norm.load_state_dict(both[1].state_dict())
    assert is_batch_norm(norm)
    fused = fuse_conv_bn(both.double()[0], norm.double().eval())
    assert difference(both, fused, _input(4, 2)) < 1e-12


def test_only_a_frozen_norm_folds_in_training_mode() -> None:
    conv = nn.Conv2d(4, 6, 3, padding=1)
    frozen = filled(FrozenBatchNorm2d(6)).train()
    assert difference(nn.Sequential(conv, frozen), fuse_conv_bn(conv, frozen), _input(4, 2).float()) < 1e-5
    with pytest.raises(RuntimeError, match="BatchNorm2d in train mode"):
        fuse_conv_bn(conv, nn.BatchNorm2d(6, affine=False))  # has no parameters either


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dimensions", [0, 1, 2, 3])
def test_norm_before_a_pointwise_layer(dimensions: int, groups: int, bias: bool) -> None:
    if dimensions == 0:
        layer: Any = nn.Linear(4, 8, bias=bias)
    else:
        layer = CONVS[dimensions, False](4, 8, 1, stride=2, groups=groups, bias=bias)
    norm = NORMS[max(dimensions, 1)](4)
    both = filled(nn.Sequential(norm, layer)).double()
    assert difference(both, fuse_bn_conv(norm, layer), _input(4, dimensions)) < 1e-12
    assert (layer.bias is not None) == bias


@pytest.mark.parametrize("padding", [0, "valid", "same"])
def test_every_way_to_say_no_padding(padding: Any) -> None:
    norm, layer = nn.BatchNorm2d(4), nn.Conv2d(4, 8, 1, padding=padding)
    both = filled(nn.Sequential(norm, layer)).double()
    assert difference(both, fuse_bn_conv(norm, layer), _input(4, 2)) < 1e-12


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, (1, 3)),
        nn.Conv2d(4, 4, 1, padding=1),
        nn.Conv1d(4, 4, 3, padding="same"),
        nn.ConvTranspose2d(4, 4, 1),
    ],
)
def test_norm_before_a_layer_that_is_not_pointwise_is_refused(layer: _ConvNd) -> None:
    with pytest.raises(ValueError, match=r"only if that is pointwise; got .*: kernel_size 1 and padding 0"):
        fuse_bn_conv(nn.BatchNorm2d(4).eval(), layer)


@pytest.mark.parametrize("norm", [nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.InstanceNorm1d(4, affine=True)])
def test_norms_that_depend_on_the_input_are_refused(norm: nn.Module) -> None:
    with pytest.raises(ValueError, match="running statistics"):
        fuse_bn_conv(norm.eval(), nn.Linear(4, 4))
    with pytest.raises(ValueError, match="running statistics"):
        fuse_conv_bn(nn.Conv1d(4, 4, 1), norm.eval())


def test_a_norm_with_an_activation_is_refused_and_one_without_folds() -> None:
    conv = nn.Conv2d(4, 6, 3, padding=1)
    with pytest.raises(ValueError, match=r"cannot fuse BatchNormAct2d: .* or an activation of its own"):
        fuse_conv_bn(conv, BatchNormAct2d(6).eval())
    both = filled(nn.Sequential(conv, BatchNormAct2d(6, apply_act=False))).double()
    assert difference(both, fuse_conv_bn(conv, both[1]), _input(4, 2)) < 1e-12


def test_fusing_refuses() -> None:
    with pytest.raises(ValueError, match="the batch norm has 3 channels and the layer 4"):
        fuse_conv_bn(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(3).eval())
    with pytest.raises(RuntimeError, match="BatchNorm2d in train mode"):
        fuse_conv_bn(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    with pytest.raises(RuntimeError, match="BatchNorm1d in train mode"):
        fuse_bn_conv(nn.BatchNorm1d(4), nn.Linear(4, 4))
    with pytest.raises(ValueError, match="no running statistics"):
        fuse_bn_conv(nn.BatchNorm1d(4, track_running_stats=False).eval(), nn.Linear(4, 4))
