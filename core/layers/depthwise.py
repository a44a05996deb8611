"""A depthwise ``nn.Conv2d`` that calls :func:`core.ops.depthwise_conv2d`."""

from torch import Tensor, nn

from core.errors import InputError
from core.ops import depthwise_conv2d

__all__ = ["DepthwiseConv2d"]


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution with the weights and state-dict keys of ``nn.Conv2d``.

    Args:
        channels: C, number of input and output channels.
        kernel_size: K, odd.
        stride: step of the output grid, in pixels.
        dilation: distance between two taps, in pixels.
        bias: add a trained bias to each channel.

    Raises:
        InputError: if ``kernel_size`` is even or not positive.
    """

    def __init__(
        self, channels: int, kernel_size: int, *, stride: int = 1, dilation: int = 1, bias: bool = False
    ) -> None:
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise InputError(f"kernel_size is {kernel_size}; expected an odd size: 1, 3, 5, ...")
        padding = dilation * (kernel_size - 1) // 2
        super().__init__(channels, channels, kernel_size, stride, padding, dilation, groups=channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""
        return depthwise_conv2d(x, self.weight, self.bias, stride=self.stride[0], dilation=self.dilation[0])
