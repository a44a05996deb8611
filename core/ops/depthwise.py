"""Depthwise convolution: one function through which every depthwise convolution of the project goes."""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["depthwise_conv2d"]


def depthwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, dilation: int = 1
) -> Tensor:
    """Convolve every channel with a kernel of its own, zero-padded so that stride 1 keeps the size.

    On a map smaller than the kernel only the taps that meet the map are computed: the same values, without multiplying
    the padding. Compilers, exporters and tracers keep all taps, so that the size of the map stays free.

    Args:
        x: (B, C, H, W), any float dtype, any memory format.
        weight: (C, 1, K, K) with K odd, in the layout of ``nn.Conv2d(C, C, K, groups=C)``.
        bias: (C,), or None.
        stride: step of the output grid, in pixels.
        dilation: distance between two taps, in pixels.

    Returns:
        (B, C, ceil(H / stride), ceil(W / stride)) in the dtype of ``x``.

    Raises:
        ValueError: if the weight is not depthwise for ``x`` or its kernel is even.
    """
    channels, per_group, height, width = weight.shape
    if channels != x.shape[1] or per_group != 1 or height % 2 == 0 or width % 2 == 0:
        raise ValueError(
            f"depthwise_conv2d got a weight of shape {tuple(weight.shape)} for an input with {x.shape[1]} channels; "
            f"expected ({x.shape[1]}, 1, K, K) with K odd"
        )
    if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
        weight = _reachable(weight, x.shape[2], x.shape[3], dilation)
        height, width = weight.shape[2:]
    if height == width == stride == 1 and not _autocasts(x):
        y = x * weight.view(-1, 1, 1)
        return y if bias is None else y + bias.view(-1, 1, 1)
    padding = (dilation * (height - 1) // 2, dilation * (width - 1) // 2)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups=channels)


def _autocasts(x: Tensor) -> bool:
    """Whether a convolution would change the dtype of ``x``, as a product does not."""
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _reachable(weight: Tensor, height: int, width: int, dilation: int) -> Tensor:
    """The centre of a kernel out to the furthest tap that meets the map: 7x7 of 13x13 on a 4x4 map."""
    top, left = weight.shape[2] // 2, weight.shape[3] // 2
    down, right = min(top, (height - 1) // dilation), min(left, (width - 1) // dilation)
    return weight[:, :, top - down : top + down + 1, left - right : left + right + 1]
