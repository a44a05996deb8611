"""From images to pixels: the papers' training augmentation and test-time crop, built from timm's transforms."""

from collections.abc import Callable, Sequence
from typing import Literal

from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, create_transform
from torch import Tensor

__all__ = ["Crop", "Transform", "eval_transform", "train_transform"]

Crop = Literal["auto", "center", "squash"]
Transform = Callable[[Image.Image], Tensor]


def train_transform(
    size: int,
    *,
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    hflip: float = 0.5,
    auto_augment: str | None = "rand-m9-mstd0.5-inc1",
) -> Transform:
    """Build the random crop, flip and RandAugment of the papers' recipes (UniRepLKNet, appendix A).

    Random erasing is applied later, to the normalized map, and is an option of the task.

    Args:
        size: side of the result, in pixels.
        mean: mean of each channel, for pixels in [0, 1]; the color with which a policy fills empty corners.
        scale: range of the share of the image that the crop covers.
        ratio: range of the aspect ratio of the crop, width over height.
        hflip: probability of a horizontal flip.
        auto_augment: timm's RandAugment or AutoAugment policy, or None.

    Returns:
        A function from a PIL image to pixels (C, size, size) uint8.
    """
    transform: Transform = create_transform(
        size,
        is_training=True,
        normalize=False,
        mean=tuple(mean),
        scale=scale,
        ratio=ratio,
        hflip=hflip,
        color_jitter=None,
        auto_augment=auto_augment,
        interpolation="bicubic",
    )
    return transform


def eval_transform(size: int, *, crop: Crop = "auto") -> Transform:
    """Build the resize and crop of the papers' evaluation.

    'center' resizes the shorter side to size / 0.875 and crops the center; 'squash' resizes the image to a square.
    'auto' is the official rule: 'center' below 384 pixels, 'squash' for 384 pixels and more.

    Args:
        size: side of the result, in pixels.
        crop: how a rectangle becomes a square.

    Returns:
        A function from a PIL image to pixels (C, size, size) uint8.
    """
    squash = crop == "squash" or (crop == "auto" and size >= 384)
    transform: Transform = create_transform(
        size,
        is_training=False,
        normalize=False,
        interpolation="bicubic",
        crop_pct=1.0 if squash else 0.875,
        crop_mode="squash" if squash else "center",
    )
    return transform
