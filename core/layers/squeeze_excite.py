"""Squeeze and excitation with the tensor names of UniRepLKNet (``down``, ``up``)."""

from torch import Tensor, nn
from torch.nn import functional as F

from core.layers.pointwise import PointwiseConv2d

__all__ = ["SqueezeExcite"]


class SqueezeExcite(nn.Module):
    """Multiply each channel by a gate computed from the mean of all channels (SENet; UniRepLKNet section 3.1).

    Args:
        channels: C.
        reduced: channels of the bottleneck, C / 4 in the paper.
    """

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.down = PointwiseConv2d(channels, reduced)
        self.up = PointwiseConv2d(reduced, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        squeezed = x.mean((2, 3), keepdim=True)
        return x * self.up(F.relu(self.down(squeezed))).sigmoid()
