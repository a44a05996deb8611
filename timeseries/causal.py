"""A causal temporal convolutional network (TCN) with normalised weights, over the nodes of a tree instead of time."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CausalConv1d", "CausalFusion"]


class CausalConv1d(nn.Conv1d):
    """A convolution that sees its place and earlier ones, its weight kept as length g and direction v.

    The names are those of torch's old ``weight_norm``: ``weight_g``, ``weight_v``.

    Args:
        channels: of input and output.
        kernel_size: places that it sees.
        dilation: distance between them.
    """

    def __init__(self, channels: int, kernel_size: int, dilation: int) -> None:
        super().__init__(channels, channels, kernel_size, dilation=dilation)
        direction = self.weight.detach().clone()
        del self.weight
        self.weight_g = nn.Parameter(torch.linalg.vector_norm(direction, dim=(1, 2), keepdim=True))
        self.weight_v = nn.Parameter(direction)

    def forward(self, x_BCN: Tensor) -> Tensor:
        """(B, C, N) to the same shape."""
        length = torch.linalg.vector_norm(self.weight_v, dim=(1, 2), keepdim=True)
        left = (self.kernel_size[0] - 1) * self.dilation[0]
        weight = self.weight_v * (self.weight_g / length)
        return F.conv1d(F.pad(x_BCN, (left, 0)), weight, self.bias, dilation=self.dilation)


class _Block(nn.Module):
    """Two causal convolutions, each with ReLU and dropout, under a shortcut."""

    def __init__(self, channels: int, kernel_size: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = CausalConv1d(channels, kernel_size, dilation)
        self.conv2 = CausalConv1d(channels, kernel_size, dilation)
        # published checkpoints hold both convolutions a second time under net.0 and net.4
        steps = [nn.Identity(), nn.ReLU(), nn.Dropout(dropout)]
        self.net = nn.Sequential(self.conv1, *steps, self.conv2, nn.Identity(), nn.ReLU(), nn.Dropout(dropout))

    def forward(self, x_BCN: Tensor) -> Tensor:
        return F.relu(x_BCN + self.net(x_BCN))


class CausalFusion(nn.Module):
    """Residual blocks with dilations 1, 3, 9, ...

    Args:
        channels: of a node.
        layers: number of blocks.
        kernel_size: nodes that a convolution sees.
        dropout: after each convolution.
    """

    def __init__(self, channels: int, layers: int = 1, *, kernel_size: int = 3, dropout: float = 0.2) -> None:
        super().__init__()
        blocks = [_Block(channels, kernel_size, kernel_size**i, dropout) for i in range(layers)]
        self.network = nn.Sequential(*blocks)

    def forward(self, x_BCN: Tensor) -> Tensor:
        """(B, C, N) to the same shape; node n depends on nodes up to n."""
        y: Tensor = self.network(x_BCN)
        return y
