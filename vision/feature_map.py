"""From the pixels of raw images to normalized maps."""

from collections.abc import Sequence

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from core.layers.feature_map import FeatureMap

__all__ = ["PixelMap"]


class PixelMap(FeatureMap):
    """Normalizes pixels by the mean and the standard deviation of each channel.

    Args:
        mean: mean of each channel, for pixels in [0, 1].
        std: standard deviation of each channel, for pixels in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32))
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32))

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Turn images (B, C, H, W), float in [0, 1] or uint8, into normalized maps of the same shape."""
        if pixels_BCHW.dtype == torch.uint8:
            pixels_BCHW = pixels_BCHW.float() / 255

        mean_C11 = self.mean.view(-1, 1, 1)
        std_C11 = self.std.view(-1, 1, 1)
        return (pixels_BCHW - mean_C11) / std_C11
