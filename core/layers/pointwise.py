"""Products over the channels of a map, in the form that is fastest on the device."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.ops import onednn, transformed, written_down

__all__ = ["PointwiseConv2d", "PointwiseLinear"]


class PointwiseLinear(nn.Linear):
    """A linear layer on (B, H, W, C), with the weights and names of ``nn.Linear``.

    On a CPU with oneDNN the same product runs as a 1 x 1 convolution on channels_last data, without a copy: faster than
    the matrix product that ``nn.Linear`` calls, by how much depends on the processor (``benchmarks/networks.py``).
    """

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, in_features) to (B, H, W, out_features)."""
        if x_BHWC.ndim != 4 or not onednn(x_BHWC) or written_down() or transformed():
            return F.linear(x_BHWC, self.weight, self.bias)
        x = x_BHWC.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        return F.conv2d(x, self.weight[:, :, None, None], self.bias).permute(0, 2, 3, 1)


class PointwiseConv2d(nn.Conv2d):
    """A 1 x 1 convolution, with the weights and names of ``nn.Conv2d``, that is a matrix product on maps of one pixel.

    Preparing oneDNN's convolution takes longer than such a product does: a gate of squeeze and excitation, two products
    for each block, is about 4 times as fast without it.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H, W)."""
        if x.shape[2:] != (1, 1) or written_down():
            return super().forward(x)
        return F.linear(x.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None]
