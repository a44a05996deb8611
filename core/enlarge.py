"""Large kernels for networks that were designed with small ones, as in the papers' first studies."""

import copy
import re
from typing import TypeVar, cast

import torch
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from core.errors import InputError
from core.layers import ReparamLargeKernelConv

__all__ = ["enlarge_kernels", "remove_shortcuts"]

M = TypeVar("M", bound=nn.Module)


def enlarge_kernels(
    model: M,
    kernel_size: int,
    *,
    small_kernel: int = 3,
    identity: bool = False,
    dense: bool = False,
    where: str = "",
) -> M:
    r"""A new model whose depthwise kernels are large, each with a small branch that merges into it after training.

    This is how the papers compare kernel sizes in MobileNetV2, with and without small branches ('Scaling Up Your
    Kernels', table 2), and large with small kernels in ResNets (figure 2). Weights of a kernel that was there go into
    the small branch if that has its size; large kernels start as torch starts them.

    Args:
        model: any module with ``nn.Conv2d`` layers of odd size and 'same' padding, such as timm's ``mobilenetv2_100``;
            layers of derived classes, as in timm's ``tf_`` models, stay as they are.
        kernel_size: K, odd; depthwise kernels of this size and larger stay as they are.
        small_kernel: size of the branch beside each large kernel, odd; 0 for none.
        identity: add the input of each stride-1 convolution to its output as well; merges into the kernel.
        dense: also replace dense convolutions that have as many outputs as inputs by depthwise ones of the large size;
            a ResNet has no others.
        where: regular expression that the names of the convolutions to change must match, as in ``^blocks\.[56]``.

    Raises:
        InputError: if a size is even, the small one is not smaller, or there is nothing to enlarge.

    Example:
        >>> import timm
        >>> net = enlarge_kernels(timm.create_model("mobilenetv2_050"), 13, where=r"^blocks\.[56]")
        >>> net.blocks[6][0].conv_dw.lkb_origin.conv.kernel_size
        (13, 13)
    """
    if kernel_size % 2 == 0 or not 0 <= small_kernel < kernel_size or (small_kernel > 0 and small_kernel % 2 == 0):
        raise InputError(
            f"kernel_size={kernel_size}, small_kernel={small_kernel}; both must be odd and the small one smaller, or 0"
        )
    model = copy.deepcopy(model)
    chosen = {
        name: module
        for name, module in model.named_modules()
        if re.search(where, name) and _can_grow(module, kernel_size, dense)
    }
    if not chosen:
        raise InputError(
            f"{type(model).__name__} has no plain depthwise nn.Conv2d smaller than {kernel_size}x{kernel_size} at "
            f"where={where!r}, dense={dense}; dense=True also takes dense convolutions, of which a ResNet consists"
        )
    if "" in chosen:  # the model is the convolution
        return cast(M, _enlarged(model, kernel_size, small_kernel, identity))
    for name, conv in chosen.items():
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, _enlarged(conv, kernel_size, small_kernel, identity))
    return model


def remove_shortcuts(model: M) -> M:
    """A new model without the identity shortcuts of timm's inverted residuals and ResNet blocks; projections stay.

    The papers show with it that large kernels need shortcuts ('Scaling Up Your Kernels', table 2).

    Raises:
        InputError: if the model has none of these shortcuts.
    """
    model, found = copy.deepcopy(model), 0
    for module in model.modules():
        if isinstance(module, InvertedResidual | DepthwiseSeparableConv) and module.has_skip:
            module.has_skip = False
            found += 1
        elif isinstance(module, BasicBlock | Bottleneck) and module.downsample is None:
            module.downsample = _NoShortcut()
            found += 1
        if isinstance(module, BasicBlock | Bottleneck):
            _start_last_norm(module)
    if not found:
        raise InputError(
            f"{type(model).__name__} has no identity shortcuts that can be taken away; known are those of timm's "
            "inverted residuals and ResNet blocks"
        )
    return model


def _can_grow(conv: nn.Module, kernel_size: int, dense: bool) -> bool:
    if type(conv) is not nn.Conv2d or conv.in_channels != conv.out_channels or conv.dilation != (1, 1):
        return False
    size = conv.kernel_size[0]
    same = conv.padding == (size // 2, size // 2) and conv.padding_mode == "zeros" and conv.stride[0] == conv.stride[1]
    square = conv.kernel_size == (size, size) and size % 2 == 1 and 1 < size <= kernel_size
    depthwise = conv.groups == conv.in_channels
    return same and square and (size < kernel_size if depthwise else dense)


def _enlarged(conv: nn.Module, kernel_size: int, small_kernel: int, identity: bool) -> ReparamLargeKernelConv:
    assert isinstance(conv, nn.Conv2d)
    large = ReparamLargeKernelConv(
        conv.in_channels,
        kernel_size,
        small_kernel=small_kernel or None,
        stride=conv.stride[0],
        identity=identity and conv.stride[0] == 1,
    )
    with torch.no_grad():
        if conv.kernel_size[0] == small_kernel and conv.groups == conv.in_channels:
            large.small_conv.conv.weight.copy_(conv.weight)
        if conv.bias is not None:
            cast(nn.BatchNorm2d, large.lkb_origin.bn).bias.copy_(conv.bias)
    return large.to(conv.weight).train(conv.training)


def _start_last_norm(block: BasicBlock | Bottleneck) -> None:
    """Give the last norm a weight: timm starts it at 0, which leaves the shortcut alone, and without it nothing."""
    norm = block.bn2 if isinstance(block, BasicBlock) else block.bn3
    if not norm.weight.any():
        nn.init.ones_(norm.weight)


class _NoShortcut(nn.Module):
    """Stands where a ResNet block looks for its projection, and gives nothing to add."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())
