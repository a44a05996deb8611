"""Image to 2D map: the papers' training augmentation and test-time crop, as timm writes them."""

from collections.abc import Callable, Sequence
from typing import Literal

from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torch import Tensor

__all__ = ["IMAGENET_DEFAULT_MEAN", "IMAGENET_DEFAULT_STD", "eval_transform", "train_transform"]

Transform = Callable[[Image.Image], Tensor]


def train_transform(
    size: int,
    *,
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    hflip: float = 0.5,
    auto_augment: str | None = "rand-m9-mstd0.5-inc1",
    erasing: float = 0.25,
) -> Transform:
    """Random crop, flip, RandAugment and erasing of the papers' recipes (UniRepLKNet appendix A).

    Args:
        size: side of the map, in pixels.
        mean: of each channel, for pixels in [0, 1].
        std: of each channel.
        scale: range of the share of the image that the crop covers.
        ratio: range of the crop's width over its height.
        hflip: probability of a horizontal flip.
        auto_augment: timm's RandAugment or AutoAugment policy, or None.
        erasing: probability that a rectangle is replaced by noise.

    Returns:
        A function from a PIL image to a (C, size, size) float32 map, normalised.
    """
    transform: Transform = create_transform(
        size,
        is_training=True,
        mean=tuple(mean),
        std=tuple(std),
        scale=scale,
        ratio=ratio,
        hflip=hflip,
        color_jitter=None,
        auto_augment=auto_augment,
        re_prob=erasing,
        re_mode="pixel",
        interpolation="bicubic",
    )
    return transform


def eval_transform(
    size: int,
    *,
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    crop: Literal["auto", "center", "squash"] = "auto",
) -> Transform:
    """Resize and crop of the papers' evaluation.

    'center' resizes the shorter side to size / 0.875 and cuts the centre; 'squash' resizes the whole image to a square.
    'auto' is the official rule: centre below 384 pixels, squash from there on.

    Args:
        size: side of the map, in pixels.
        mean: of each channel, for pixels in [0, 1].
        std: of each channel.
        crop: how a rectangle becomes a square.

    Returns:
        A function from a PIL image to a (C, size, size) float32 map, normalised.
    """
    squash = crop == "squash" or (crop == "auto" and size >= 384)
    transform: Transform = create_transform(
        size,
        is_training=False,
        mean=tuple(mean),
        std=tuple(std),
        interpolation="bicubic",
        crop_pct=1.0 if squash else 0.875,
        crop_mode="squash" if squash else "center",
    )
    return transform
