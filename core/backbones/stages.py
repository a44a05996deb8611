"""What stages are given before and after they are built: rates of stochastic depth, and dilation for strides."""

from torch import nn

__all__ = ["dilate", "drop_path_rates"]


def drop_path_rates(last: float, blocks: int) -> list[float]:
    """Stochastic depth of each block: linear from 0 to ``last``."""
    return [last * block / max(blocks - 1, 1) for block in range(blocks)]


def dilate(layers: nn.Module, factor: int) -> None:
    """Take the strides of a stage's convolutions away and spread their taps, in place."""
    for conv in layers.modules():
        if isinstance(conv, nn.Conv2d) and conv.kernel_size != (1, 1):
            conv.stride = (1, 1)
            conv.dilation = tuple(factor * r for r in conv.dilation)
            conv.padding = tuple(r * (k - 1) // 2 for k, r in zip(conv.kernel_size, conv.dilation, strict=True))
