"""From an image to pixels: the papers' training augmentation and test-time crop, as timm writes them."""

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
    """Random crop, flip and RandAugment of the papers' recipes (UniRepLKNet, appendix A).

    Erasing comes later, on the normalized map: it is an option of the task.

    Args:
        size: side of the result, in pixels.
        mean: of each channel, for pixels in [0, 1]; the color that a policy fills empty corners with.
        scale: range of the share of the image that the crop covers.
        ratio: range of the crop's width over its height.
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
    """Resize and crop of the papers' evaluation.

    'center' resizes the shorter side to size / 0.875 and cuts the center; 'squash' resizes the whole image to a square.
    'auto' is the official rule: center below 384 pixels, squash from there on.

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
