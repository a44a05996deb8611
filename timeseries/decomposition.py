"""Series into trend and season by a moving average, and the norm that goes with it (Autoformer, Corrformer)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import InputError

__all__ = ["SeasonalNorm", "SeriesDecomposition"]


class SeriesDecomposition(nn.Module):
    """Moving average over time as the trend, the rest as the season; the ends are repeated outwards.

    Args:
        kernel_size: time steps that are averaged.

    Raises:
        InputError: if the kernel has no middle.
    """

    def __init__(self, kernel_size: int = 25) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise InputError(f"the moving average runs over {kernel_size} steps; give an odd number of 1 or more")
        self.reach = kernel_size // 2

    def forward(self, x_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """Season and trend, each (B, L, D); their sum is the input."""
        padded = F.pad(x_BLD.transpose(1, 2), (self.reach, self.reach), mode="replicate")
        trend = F.avg_pool1d(padded, 2 * self.reach + 1, stride=1).transpose(1, 2)
        return x_BLD - trend, trend


class SeasonalNorm(nn.Module):
    """LayerNorm, then minus the mean over time: what is left has no level.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(dim)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """(B, L, D) to the same shape."""
        y: Tensor = self.layernorm(x_BLD)
        return y - torch.mean(y, dim=1, keepdim=True)
