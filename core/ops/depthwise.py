"""Depthwise convolution: one function through which every depthwise convolution of the project goes."""

from torch import Tensor
from torch.nn import functional as F

__all__ = ["depthwise_conv2d"]


def depthwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, dilation: int = 1
) -> Tensor:
    """Convolve every channel with a kernel of its own, zero-padded so that stride 1 keeps the size.

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
    padding = (dilation * (height - 1) // 2, dilation * (width - 1) // 2)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups=channels)
