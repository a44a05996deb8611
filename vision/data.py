"""The base of all image data modules, which turn files and arrays into pixels and augment them in training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from core.data.images import Mode, PixelSpec, check_size, image_files, read_image
from core.data.labeled import SampleDataModule, Split
from core.data.samples import SampleDataset, Samples, collate_found
from core.errors import InputError
from vision.augment import Crop, eval_transform, train_transform

__all__ = ["ImageDataModule", "ImageSpec", "Images"]


@dataclass(frozen=True)
class ImageSpec(PixelSpec):
    """What a model must know about images.

    Attributes:
        crop: how a rectangle becomes a square: 'center', 'squash', or 'auto' for the papers' rule by size.
    """

    crop: Crop = "auto"


class ImageDataModule(SampleDataModule):
    """Base of the image data modules: size and augmentation of the images, and prediction on any files.

    Batches are (pixels (B, C, size, size) uint8, labels (B,) int64) or, for prediction, (pixels, names).

    Args:
        size: side of an image, in pixels.
        mode: 'RGB' for three channels, or 'L' for one, gray.
        mean: mean of each channel, for pixels in [0, 1].
        std: standard deviation of each channel, for pixels in [0, 1].
        scale: range of the share of a training image that its crop covers.
        hflip: probability of a horizontal flip in training.
        auto_augment: timm's policy in training, or None.
        crop: 'center', 'squash', or 'auto' for the papers' rule by size.
        kwargs: arguments of :class:`core.data.labeled.SampleDataModule`.

    Raises:
        InputError: if ``mean`` or ``std`` do not have one value for each channel, or an option is out of range.
    """

    def __init__(
        self,
        *,
        size: int = 224,
        mode: Mode = "RGB",
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
        scale: tuple[float, float] = (0.08, 1.0),
        hflip: float = 0.5,
        auto_augment: str | None = "rand-m9-mstd0.5-inc1",
        crop: Crop = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        _check_statistics(mode, mean, std)
        check_size(size)
        if not 0 < scale[0] <= scale[1]:
            raise InputError(f"scale={tuple(scale)}; expected two shares in rising order, above 0")
        if not 0 <= hflip <= 1:
            raise InputError(f"hflip={hflip}; expected a probability")

        self.size = size
        self.mode = mode
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.crop = crop
        self.collate = partial(collate_found, kind="image")

        try:
            self.train_transform = train_transform(
                size,
                mean=mean,
                scale=scale,
                hflip=hflip,
                auto_augment=auto_augment,
            )
        except (AssertionError, ValueError) as error:  # timm's, for an unknown policy
            raise InputError(f"auto_augment={auto_augment!r}: {error}; expected one of timm's policies") from error
        self.eval_transform = eval_transform(size, crop=crop)

    def settings(self) -> ImageSpec:
        """Return the size, crop, mode and statistics."""
        return ImageSpec(
            size=self.size,
            mode=self.mode,
            mean=self.mean,
            std=self.std,
            crop=self.crop,
            multi_label=self.multi_label,
        )

    def find(self, path: Path) -> list[Path]:
        """Find all images below a folder; a path to an image gives that image alone."""
        return image_files(path)

    def dataset(self, samples: Samples, split: Split) -> "Images":
        """Return the dataset of a split, with the training or the evaluation transform."""
        transform = self.train_transform if split == "train" else self.eval_transform
        return Images(samples, transform, mode=self.mode, skip_broken=self.skip_broken)


class Images(SampleDataset):
    """A dataset of images from files and arrays, each with a target.

    Args:
        samples: (image, target) pairs; an image is a file, or a pair of a name and an array, see :func:`to_image`.
        transform: function from a PIL image to pixels (C, H, W).
        mode: 'RGB' or 'L' (gray); images are converted to it.
        skip_broken: leave out files that cannot be decoded, with a warning, instead of stopping.
    """

    def __init__(
        self,
        samples: Samples,
        transform: Callable[[Image.Image], Tensor],
        *,
        mode: Mode = "RGB",
        skip_broken: bool = False,
    ) -> None:
        super().__init__(samples, skip_broken=skip_broken)
        self.transform = transform
        self.mode = mode

    def read(self, source: Any) -> Tensor:
        """Return the pixels (C, H, W) of an image."""
        if isinstance(source, Path):
            return self.transform(read_image(source, self.mode))

        name, array = source
        return self.transform(to_image(array, name).convert(self.mode))


def _check_statistics(mode: Mode, mean: Sequence[float], std: Sequence[float]) -> None:
    """Refuse statistics that do not fit the channels."""
    if not len(mean) == len(std) == len(mode):
        raise InputError(
            f"mode={mode!r} has {len(mode)} channels, but mean has {len(mean)} values and std {len(std)}; give one for "
            "each channel"
        )
    if min(std) <= 0:
        raise InputError(f"std={tuple(std)}; expected numbers above 0")


def to_image(array: np.ndarray, name: str) -> Image.Image:
    """Make an image from an array: (H, W), (H, W, 1 or 3) or (1 or 3, H, W), uint8 or float in [0, 1].

    Args:
        array: the pixels.
        name: the name of the array in messages.

    Raises:
        InputError: if the array has another shape or dtype, or floats outside [0, 1].
    """
    # move the channels to the end, and drop a single channel
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or array.size == 0:
        raise InputError(f"{name} has the shape {array.shape}; expected (H, W), (H, W, 3) or (3, H, W)")

    if array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):
            raise InputError(f"{name} holds floats from {array.min():g} to {array.max():g}; expected [0, 1], or uint8")
        array = np.round(array * 255)
    elif array.dtype != np.uint8:
        raise InputError(f"{name} holds {array.dtype}; expected uint8, or floats in [0, 1]")

    return Image.fromarray(np.ascontiguousarray(array.astype(np.uint8)))
